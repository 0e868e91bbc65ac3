"""A real mem0 is filled, and comes over: from the object, and from what it wrote.

python tests/compat/mem0_import.py FOLDER    in the peers' environment: prints JSON
"""

import json
import os
import sys
from pathlib import Path

folder = Path(sys.argv[1])
os.environ |= {"MEM0_TELEMETRY": "False", "MEM0_DIR": str(folder), "HOME": str(folder)}
sys.path.insert(0, str(Path(__file__).parent))
import mem0_contract  # noqa: E402

mem0_contract.close_the_network()
import mem0  # noqa: E402
from mem0.utils.factory import EmbedderFactory, LlmFactory  # noqa: E402

from memory_r1 import Memory  # noqa: E402
from memory_r1.compat.importers import bring  # noqa: E402
from memory_r1.compat.readers import read_json, read_mem0  # noqa: E402


class Letters:
    class config:
        embedding_dims = 8

    def embed(self, text, memory_action=None):
        return mem0_contract.vector(text)


LlmFactory.create = staticmethod(lambda *_, **__: None)
EmbedderFactory.create = staticmethod(lambda *_, **__: Letters())
theirs = mem0.Memory.from_config(
    {
        "vector_store": {
            "provider": "qdrant",
            "config": {"path": str(folder / "qdrant"), "embedding_model_dims": 8},
        },
        "history_db_path": str(folder / "history.db"),
    }
)
cat = theirs.add(
    "My cat is Tom", user_id="ann", run_id="r1", infer=False, metadata={"topic": "pets"}
)
theirs.update(cat["results"][0]["id"], text="My cat is Felix")
theirs.add("The vet opens at nine", agent_id="vet", infer=False)

everyone = [{"user_id": "ann"}, {"agent_id": "vet"}]
listed = [item for ids in everyone for item in theirs.get_all(filters=ids, top_k=1000)["results"]]
(folder / "mem0.json").write_text(json.dumps({"results": listed}), "utf-8")


def versions(memory):
    told = []
    for owner in memory.store.owners():
        bank = memory.bank(owner.user_id, owner.agent_id, owner.run_id)
        told += [[version.text for version in bank.history(e.id)] for e in bank.entries()]
    return sorted(told)


seen = {}
with Memory(folder / "object.db") as memory:
    bring(memory, read_mem0(theirs))
    seen["from the object"] = versions(memory)
    seen["again"] = bring(memory, read_mem0(theirs)).memories
    (entry,) = memory.list(user_id="ann", run_id="r1")
    seen["metadata"] = {k: v for k, v in entry.metadata.items() if k != "imported_id"}
    owners = [[o.user_id, o.agent_id, o.run_id] for o in memory.store.owners()]
    seen["owners"] = sorted(owners)
theirs.close()
with Memory(folder / "files.db") as memory:
    found = read_mem0(read_json(folder / "mem0.json"), history=folder / "history.db")
    bring(memory, found)
    seen["from its files"] = versions(memory)
print(json.dumps(seen))
