"""--processes N: the same command in N processes on this machine, by accelerate's launcher."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import socket
import sys
from collections.abc import Sequence

from memory_r1.errors import ConfigError, MissingExtra

PROGRAM = "memory_r1.serve.cli"


def start(number: int, arguments: Sequence[str]) -> int:
    """Run this program in so many processes and wait for them; returns the exit code.

    arguments: of the command line, as each process gets them
    accelerate's own settings count (`accelerate config`), but for the number of processes. What a
    process says, the user sees; one that was killed can't say so, and then this does.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise MissingExtra("--processes", "accelerate", "train")
    if "WORLD_SIZE" in os.environ:
        raise ConfigError("this is one of several processes already; leave out --processes")
    from accelerate.commands.launch import (  # type: ignore[import-untyped]
        launch_command,
        launch_command_parser,
    )
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))
    options = ["--num_processes", str(number), "--main_process_port", str(_free_port())]
    kind = [] if _configured() else ["--multi_gpu", "--num_machines", "1"]
    command = [*options, *kind, "--module", PROGRAM, *arguments]
    logging.disable(logging.ERROR)  # torch's log of a failure, beside what the process said
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            launch_command(launch_command_parser().parse_args(command))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return int(failure.exitcode)
        print(
            f"memory-r1: process {rank} of {number} was ended by {failure.signal_name()}, often "
            "for want of memory; go on with --resume",
            file=sys.stderr,
        )
        return 1
    except (SignalException, KeyboardInterrupt):
        return 130
    return 0


def _configured() -> bool:
    """Whether the user has told accelerate what their machine is like."""
    from accelerate.commands.config.config_args import (  # type: ignore[import-untyped]
        default_config_file,
    )

    return os.path.isfile(default_config_file)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
