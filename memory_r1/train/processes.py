"""One training, several processes: each does its share, and all know the whole.

Every process runs the same loop on the same episodes with the same seeds. What costs is split:
prompts to complete, questions to frozen agents, prompt trees to learn from. Parts are gathered or
added up, so that all processes come to the same numbers and the same weights, and these are the
ones that a process alone would have come to. With one process nothing is sent anywhere.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor

from memory_r1.errors import ConfigError, MemoryR1Error
from memory_r1.llm import LLM, Agents
from memory_r1.types import Completion, Prompt, Style

T = TypeVar("T")
PATIENCE = timedelta(days=2)
"""How long a process waits for the others, one of which may be asking a slow service. That one
has died is noticed by its launcher, not by waiting."""
AT_ONCE = 1 << 25
"""Numbers of a gradient that travel together."""
_OTHERS = ("DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")
"""What accelerate's settings may ask for that is not done here."""


class LostProcess(MemoryR1Error):
    """Another process of the run ended, so this one can't go on."""


class Processes:
    """The processes of a run, as one of them sees them. All of them call the same methods."""

    def __init__(self, rank: int = 0, number: int = 1) -> None:
        """rank: which one this is, from 0; number: how many there are."""
        self.rank, self.number = rank, number

    @property
    def first(self) -> bool:
        """Whether this is the one that writes, prints and decides."""
        return self.rank == 0

    def share(self, sizes: Sequence[int]) -> list[int]:
        """The positions this process works on, ascending; sizes: what each will cost.

        The largest are given out first, each to whoever has least to do.
        """
        if self.number == 1:
            return list(range(len(sizes)))
        loads = [0] * self.number
        mine = []
        for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            rank = loads.index(min(loads))
            loads[rank] += sizes[i]
            if rank == self.rank:
                mine.append(i)
        return sorted(mine)

    def gather(self, value: T) -> list[T]:
        """What each process gave, by rank."""
        if self.number == 1:
            return [value]
        found: list[Any] = [None] * self.number
        dist.all_gather_object(found, value)
        return found

    def tell(self, value: T) -> T:
        """What the first process gave."""
        if self.number == 1:
            return value
        told = [value if self.first else None]
        dist.broadcast_object_list(told, src=0)
        return told[0]  # type: ignore[return-value]

    def check_same(self, what: str, value: object) -> None:
        """MemoryR1Error when a value is not the same in all processes: they would drift apart."""
        if self.number > 1:
            _check_same(what, self.gather(_digest(value)))

    def put_together(self, parts: Mapping[int, T], of: object) -> list[T]:
        """The shares of all processes in order. parts: by position.

        of: the whole work; raises MemoryR1Error when it is not the same in all processes.
        """
        if self.number == 1:
            return list(parts.values())
        gathered = self.gather((_digest(of), dict(parts)))
        _check_same("prompts", [digest for digest, _ in gathered])
        whole = {i: part for _, share in gathered for i, part in share.items()}
        return [whole[i] for i in range(len(whole))]

    def add(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The sums over all processes, by name; the names may differ."""
        if self.number == 1:
            return dict(numbers)
        total: dict[str, float] = {}
        for part in self.gather(dict(numbers)):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def count(self, number: int) -> int:
        """The sum of a count over all processes."""
        return sum(self.gather(number))

    def most(self, number: float) -> float:
        """The largest of a number over all processes."""
        return max(self.gather(number))

    def add_tensor(self, part: Tensor) -> Tensor:
        """The sum of a tensor over all processes; `part` holds it afterwards."""
        if self.number > 1:
            dist.all_reduce(part)
        return part

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Each gradient becomes the sum over all processes; sharded ones have been summed.

        One that no process has stays None.
        """
        if self.number == 1:
            return
        whole = [p for p in parameters if p.requires_grad and not isinstance(p, DTensor)]
        if not whole:
            return
        seen = torch.tensor([float(p.grad is not None) for p in whole])
        learned = [p for p, n in zip(whole, self.add_tensor(seen).tolist(), strict=True) if n]
        for p in learned:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        for bucket in _buckets([p.grad for p in learned if p.grad is not None]):
            if len(bucket) == 1:
                self.add_tensor(bucket[0])
                continue
            flat = self.add_tensor(torch.cat([grad.flatten() for grad in bucket]))
            parts = torch.split(flat, [grad.numel() for grad in bucket])
            for grad, part in zip(bucket, parts, strict=True):
                grad.copy_(part.view_as(grad))

    def split_agents(self, agents: Agents) -> Agents:
        """The same agents, each process asking its share of what is asked together."""
        if self.number == 1:
            return agents
        roles = (agents.extract, agents.manage, agents.answer, agents.judge)
        split = {id(llm): SplitLLM(llm, self) for llm in roles if llm is not None}
        return Agents(*(split.get(id(llm)) for llm in roles))


def present() -> Processes:
    """Those of the run this process has `joined`; else it is alone."""
    if not dist.is_initialized():
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size())


def _digest(value: object) -> int:
    """A number that stands for a plain value, in every process the same."""
    return zlib.crc32(repr(value).encode("utf-8", "replace"))


def _check_same(what: str, digests: Sequence[int]) -> None:
    if len(set(digests)) > 1:
        raise MemoryR1Error(
            f"the processes of this run no longer do the same: their {what} differ. Expected one "
            "version of the code, the data and the libraries on all machines, and a [reward] "
            "function and agents that say the same every time"
        )


def _buckets(grads: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one kind that travel together; a large one travels alone."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for grad in grads:
        kinds.setdefault((grad.device, grad.dtype), []).append(grad)
    for alike in kinds.values():
        bucket: list[Tensor] = []
        for grad in alike:
            if bucket and sum(g.numel() for g in bucket) + grad.numel() > AT_ONCE:
                yield bucket
                bucket = []
            bucket.append(grad)
        yield bucket


class SplitLLM:
    """A model that each process asks for its share of the prompts; all get every reply.

    A prompt belongs to one process for good, which so knows what it replied before.
    """

    def __init__(self, llm: LLM, processes: Processes) -> None:
        self.llm = llm
        self.name = llm.name
        self.style: Style = llm.style
        self._processes = processes

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order; what one process can't get, all are refused."""
        marks = [_digest(prompt.messages) for prompt in prompts]
        rank, number = self._processes.rank, self._processes.number
        mine = [i for i, mark in enumerate(marks) if mark % number == rank]
        replies: list[Completion] = []
        refused: MemoryR1Error | None = None
        try:
            if mine:
                replies = self.llm.complete(
                    [prompts[i] for i in mine],
                    max_tokens=max_tokens,
                    temperature=temperature,
                    schema=schema,
                )
        except MemoryR1Error as error:
            refused = error
        for problem in self._processes.gather(refused):
            if problem is not None:
                raise problem
        shares = dict(zip(mine, replies, strict=True))
        return self._processes.put_together(shares, of=marks)


# --- joining and leaving


@contextmanager
def joined() -> Iterator[Processes]:
    """The run this process was started for, by accelerate's launcher or torchrun; or it is alone.

    An error in one process ends all of them, and is shown once: it is raised where it came first,
    and elsewhere SystemExit.
    """
    number = int(os.environ.get("WORLD_SIZE", "1"))
    if number == 1:
        yield Processes()
        return
    _refuse_others()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, _ = next(rendezvous("env://"))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=store,
        rank=rank,
        world_size=number,
        timeout=PATIENCE,
    )
    processes = present()
    try:
        yield processes
        processes.tell(None)  # nobody leaves before all are done
    except BaseException as error:
        if not _speaks(store):
            raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from error
        if _is_lost(error):
            raise LostProcess(
                f"another process of this run ended, and process {rank} of {number} with it "
                f"({' '.join(str(error).split())[:200]}). If it said nothing itself, it was "
                "killed, often for want of memory; go on with --resume"
            ) from error
        raise
    dist.destroy_process_group()


def _speaks(store: Any) -> bool:
    """Whether this process is the first that has an error to show."""
    try:
        return int(store.add("memory-r1/errors", 1)) == 1
    except RuntimeError:  # the store went with the process that kept it, which had its say
        return False


def _is_lost(error: BaseException) -> bool:
    """Whether an error only says that somebody else is gone."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or "gloo" in str(error)
    )


def _refuse_others() -> None:
    for name in _OTHERS:
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise ConfigError(
                f"accelerate's settings ask for {name.lower()}; expected plain multi-GPU or FSDP "
                "(accelerate config), or engine = 'verl' in the run file for more"
            )


def asks_for_shards() -> bool:
    """Whether accelerate's settings (accelerate config, --use_fsdp) ask for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
