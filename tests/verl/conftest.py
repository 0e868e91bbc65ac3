"""Nothing of these tests stays in the user's own caches; Ray stays small and silent."""

import os
import tempfile

os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="memory-r1-verl-")
os.environ["HF_HUB_OFFLINE"] = "1"
# By default its workers yield to whatever else runs, and on a busy machine never begin.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
