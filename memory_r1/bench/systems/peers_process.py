"""A peer package in an environment of its own, as a process that answers lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import memory_r1
from memory_r1.errors import ConfigError, MemoryR1Error, ModelUnavailable

Json = dict[str, Any]
PATIENCE = 1800.0
"""Seconds without a reply after which a worker is given up. Each of a package's calls of a model
is bounded by the worker (`peers_worker.TIMEOUT`); this is for a package that hangs."""
START = 180.0
"""Seconds for a worker to import its package."""
_TOLD_LINES = 12


@dataclass(frozen=True)
class Peer:
    """A package that can be measured."""

    package: str
    """Its name at PyPI."""
    requirement: str
    """What pip is told, with the version that the worker was written against."""
    worker: str
    """The module that drives it, run by the other Python."""

    @property
    def how(self) -> str:
        """How its environment is made."""
        return (
            "In a checkout, `make peers` makes one at .venv-peers/bin/python; elsewhere, with "
            "Python 3.11 or later:  python -m venv peers && peers/bin/pip install memory-r1 "
            f"{self.requirement}  and --peer-python peers/bin/python"
        )


@dataclass(frozen=True)
class Model:
    """The model that the package calls by itself."""

    name: str
    url: str
    key: str = ""
    concurrency: int = 8
    """Turns it may be asked about at the same time."""


class Worker:
    """A running worker. Threads may share it; each of its dialogues takes one request at a time."""

    def __init__(
        self,
        peer: Peer,
        python: str,
        model: Model,
        *,
        start: float = START,
        patience: float = PATIENCE,
    ) -> None:
        """Start it. ConfigError where the Python or the package isn't there, with what to do.

        start, patience: seconds for its first word, and for a reply to any request.
        """
        self.peer, self._python, self._key, self._patience = peer, python, model.key, patience
        self._lock = threading.Lock()
        self._number = 0
        self._waiting: dict[int, Future[Json]] = {}
        self._ended = False
        self._babble = b""
        self._errors = tempfile.TemporaryFile()
        try:
            # -P: a file of the user's called like a package must not hide it.
            self._process = subprocess.Popen(
                [python, "-P", "-m", peer.worker],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=_environment(model.key),
                start_new_session=True,  # Ctrl-C is for the runner, which then closes it
            )
        except OSError as error:
            self._errors.close()
            raise self._refusal(f"{python} can't be run ({error.strerror})") from error
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.about = self._begin(model, start)
        except BaseException:
            self.close(wait=0)
            raise

    def _begin(self, model: Model, start: float) -> str:
        """What it says it is: package, version, and what it does without."""
        asked = {"do": "start", "model": model.name, "url": model.url}
        try:
            said = self._send(asked | {"concurrency": model.concurrency}).result(start)
        except TimeoutError as error:
            raise self._refusal(f"its worker said nothing for {start:g} seconds") from error
        except ModelUnavailable as error:
            raise self._refusal(str(error)) from error
        match said:
            case {"about": str(about), "memory_r1": memory_r1.__version__}:
                return about
            case {"memory_r1": str(version)}:
                raise self._refusal(
                    f"it has memory-r1 {version}, and this is {memory_r1.__version__}"
                )
            case {"error": {"text": str(text)}}:
                raise self._refusal(text)
        raise self._refusal(f"its worker said {said!r:.200}")

    def _refusal(self, problem: str) -> ConfigError:
        return ConfigError(
            f"{self.peer.package} can't be run by {self._python}: {problem.rstrip('.')}. It needs "
            f"an environment of its own, with memory-r1. {self.peer.how}"
        )

    def ask(self, requests: Sequence[Mapping[str, Any]]) -> list[Json]:
        """The replies to some requests, in order; those of different dialogues run side by side.

        A request that failed has {"error": {"kind": "model" or "package", "text"}} for a reply.
        ModelUnavailable when the worker has died or does not reply.
        """
        sent = [self._send(request) for request in requests]
        try:
            return [reply.result(self._patience) for reply in sent]
        except TimeoutError as error:
            self._process.kill()
            raise ModelUnavailable(
                f"{self.peer.package} did not reply for {self._patience:g} seconds, and was "
                f"stopped.{self._told()}"
            ) from error

    def _send(self, request: Mapping[str, Any]) -> Future[Json]:
        reply: Future[Json] = Future()
        stdin = self._process.stdin
        assert stdin is not None
        with self._lock:
            self._number += 1
            self._waiting[self._number] = reply
            line = json.dumps({"n": self._number, **request})
            with suppress(OSError, ValueError):  # it has died, or was closed: the reader sees it
                stdin.write(line.encode() + b"\n")
                stdin.flush()
            if self._ended:
                self._fail_all()
        return reply

    def _read(self) -> None:
        """Hand every reply to who waits for it, until the worker ends."""
        stdout = self._process.stdout
        assert stdout is not None
        for line in stdout:
            try:
                reply = json.loads(line)
                with self._lock:
                    waiting = self._waiting.pop(reply["n"])
            except (ValueError, LookupError, TypeError):
                self._babble = line[:200]  # this is no worker, and nothing it says counts
                self._process.kill()
                break
            waiting.set_result(reply)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        with self._lock:
            self._ended = True
            self._fail_all()

    def _fail_all(self) -> None:
        while self._waiting:
            _, reply = self._waiting.popitem()
            reply.set_exception(self._died())

    def _died(self) -> MemoryR1Error:
        if self._babble:
            problem = f"said {hidden(repr(self._babble), self._key)}, which is no reply"
        else:
            problem = f"has ended (exit status {self._process.poll()})"
        return ModelUnavailable(f"the worker of {self.peer.package} {problem}.{self._told()}")

    def _told(self) -> str:
        """The last lines that the package wrote to stderr, without the key."""
        if self._errors.closed:
            return ""
        # pread: the position is the worker's too, which goes on writing.
        size = os.fstat(self._errors.fileno()).st_size
        data = os.pread(self._errors.fileno(), 4000, max(0, size - 4000))
        lines = data.decode("utf-8", "replace").strip().splitlines()[-_TOLD_LINES:]
        text = "\n".join(lines)
        return f" It last said:\n{hidden(text, self._key)}" if text else " It said nothing."

    def close(self, wait: float = 10.0) -> None:
        """Let it end; after so many seconds it is killed. Again: nothing."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        with self._lock, suppress(OSError):
            stdin.close()  # which tells it to end
        try:
            self._process.wait(wait)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        stdout.close()
        self._errors.close()


def hidden(text: str, key: str) -> str:
    """A text without the key: servers echo it."""
    return text.replace(key, "[key]") if key else text


def _environment(key: str) -> dict[str, str]:
    """The environment of a worker: nothing is reported anywhere, and the key is ours."""
    taken = {"OPENROUTER_API_KEY", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"}
    return {name: value for name, value in os.environ.items() if name not in taken} | {
        "OPENAI_API_KEY": key or "none",  # the clients refuse to start without one
        "MEM0_TELEMETRY": "False",
        "LANGSMITH_TRACING": "false",
        "LANGCHAIN_TRACING_V2": "false",
        "PYTHONUNBUFFERED": "1",
    }
