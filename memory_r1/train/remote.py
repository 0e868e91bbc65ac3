"""prompts -> rollouts that a vLLM server samples with the weights in training.

Tokens go in and tokens come out; nothing is decoded and encoded again. Before each step the server
is given the present weights, and its log-probs are compared with our own: what was sampled with
other weights is never trained on. docs/vllm.md says how to start the server.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

import torch

from memory_r1.errors import ConfigError, MemoryR1Error, ModelUnavailable
from memory_r1.train.policy import Policy, Row, micro_batches, sampled_logps
from memory_r1.train.rollout import Rollout, Step
from memory_r1.train.runfile import Sampler
from memory_r1.train.vllm import Ask, Reply, VllmServer
from memory_r1.types import Prompt

T = TypeVar("T")
CHECKED = 64
"""Completions of a step whose log-probs are computed again, spread over all of them."""
_TOKENS = 16_384
"""In one forward pass of that check."""
_POLL = 5.0
"""Seconds between looks for a server that is gone."""


class Agreement(NamedTuple):
    """How far sampled log-probs are from recomputed ones, nats per token."""

    mean: float
    worst: float


class RemoteSampler:
    """Samples a policy on a vLLM server; a context manager that leaves the server as it was."""

    def __init__(
        self,
        policy: Policy,
        settings: Sampler,
        folder: Path,
        say: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """folder: where weights are left for the server, unless the settings name another.

        Raises ModelUnavailable when there is no such server, ConfigError when it serves several
        models and the settings name none.
        """
        self.policy = policy
        self._processes = policy.processes
        self.noted: dict[str, float] = {}
        """The last step's sampler_difference, sampler_dropped, seconds_publish."""
        self._settings = settings
        # No two runs, nor a run and its continuation, may give two adapters one name: the server
        # would answer from the cache of the other's prompts.
        self._run = self._processes.tell(secrets.token_hex(4))
        self._folder = Path(settings.folder or folder).absolute() / self._run
        self._say, self._sleep = say, sleep
        self._server = VllmServer(
            settings.url,
            key=os.environ.get("VLLM_API_KEY", ""),
            timeout=settings.timeout,
            retries=settings.retries,
            sleep=sleep,
        )
        self._pool = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="memory-r1-vllm")
        self._step = -1
        self._adapter = policy.llm.adapter is not None
        try:
            self._base = settings.model or self._ask_first(self._only_model)
        except MemoryR1Error:
            self._close()
            raise

    def __enter__(self) -> RemoteSampler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._processes.first:
            self._clear()
        self._close()

    def _clear(self) -> None:
        if self._adapter and self._step >= 0:
            self._server.unload(self._name)
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._settings.folder is None:
            with suppress(OSError):  # what another run left there is not ours
                self._folder.parent.rmdir()

    def _ask_first(self, ask: Callable[[], T]) -> T:
        """What the first process is answered; it alone talks to the server."""
        return self._processes.tell(ask() if self._processes.first else None)  # type: ignore[return-value]

    def publish(self, step: int) -> None:
        """Give the server the policy's present weights; to be called before a step is sampled.

        Raises ModelUnavailable with the server's words when it does not take them.
        """
        began = time.perf_counter()
        first = self._processes.first
        if first and self._adapter and self._step >= 0:
            self._server.unload(self._name)
        old = self._place
        self._step = step
        self.policy.save(self._place)
        if first:
            if old != self._place:
                shutil.rmtree(old, ignore_errors=True)
            self._patiently(self._load)
        self.noted = {"sampler_dropped": 0.0, "seconds_publish": time.perf_counter() - began}

    def generate(self, prompts: Sequence[Prompt], *, seed: int) -> list[Step | None]:
        """Sampled completions, in order; None where the server failed a prompt again and again.

        Equal prompts travel as one request. A server that is gone is waited for; then
        ModelUnavailable, also when it is there and fails every prompt.
        """
        places: dict[tuple[int, ...], list[int]] = {}
        for i, prompt in enumerate(prompts):
            places.setdefault(tuple(self.policy.llm.encode(prompt)), []).append(i)
        seeds = random.Random(seed)
        asks = [
            Ask(
                self._name,
                ids,
                len(where),
                self.policy.max_tokens,
                self.policy.temperature,
                tuple(sorted(self.policy.llm.end_ids)),
                seeds.getrandbits(31),
            )
            for ids, where in places.items()
        ]
        steps: list[Step | None] = [None] * len(prompts)
        answers = self._ask_first(lambda: self._ask_all(asks))
        for ask, replies in zip(asks, answers, strict=True):
            for i, reply in zip(places[ask.ids], replies or (), strict=False):
                steps[i] = self._step_of(prompts[i], ask, reply)
        return steps

    def accept(self, played: Sequence[Rollout], groups: Sequence[int]) -> list[Rollout]:
        """The rollouts as they may be trained on.

        A group that lost a rollout is dropped: the ones that fail may be the long ones, and what
        is left of their group would teach to be brief. Raises MemoryR1Error when the server did
        not sample with the weights it was given.
        """
        agreement = agree(self.policy, [step for rollout in played for step in rollout.steps])
        self.noted["sampler_difference"] = agreement.mean
        if agreement.mean > self._settings.tolerance:
            raise MemoryR1Error(
                f"step {self._step + 1} was not sampled with the weights in training: sampled and "
                f"recomputed log-probs differ by {agreement.mean:.3g} nats per token (at most "
                f"{agreement.worst:.3g}), expected up to sampler.tolerance = "
                f"{self._settings.tolerance:g}. Check that the server at {self._settings.url} "
                "serves the same base model, with --logprobs-mode processed_logprobs; then go on "
                "with --resume"
            )
        spoiled = {group for rollout, group in zip(played, groups, strict=True) if rollout.lost}
        self.noted["sampler_dropped"] = float(sum(group in spoiled for group in groups))
        return [
            replace(rollout, outcome=None) if group in spoiled else rollout
            for rollout, group in zip(played, groups, strict=True)
        ]

    @property
    def _name(self) -> str:
        """What the server calls the present weights."""
        return f"memory-r1-{self._run}-{self._step}" if self._adapter else self._base

    @property
    def _place(self) -> Path:
        return self._folder / (f"step-{self._step}" if self._adapter else "weights")

    def _close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._server.close()

    def _load(self) -> None:
        if self._adapter:
            self._server.load(self._name, self._place)
        else:
            self._server.reload(self._place)

    def _only_model(self) -> str:
        served = [name for name, model in self._server.models().items() if model.parent is None]
        if len(served) != 1:
            raise ConfigError(
                f"the server at {self._settings.url} serves {', '.join(served) or 'no model'}; "
                "say with sampler.model which one is trained"
            )
        return served[0]

    def _ask_all(self, asks: Sequence[Ask]) -> list[list[Reply] | None]:
        """The replies to each; the failed ones are asked once more when the server is there."""
        found: dict[int, list[Reply]] = {}
        error: ModelUnavailable | None = None
        for _ in range(2):
            left = [i for i in range(len(asks)) if i not in found]
            error = None
            for i, got in zip(
                left, self._pool.map(self._try, (asks[i] for i in left)), strict=True
            ):
                if isinstance(got, ModelUnavailable):
                    error = got
                else:
                    found[i] = got
            if error is None:
                break
            # It may be away, or back again without the weights.
            self._patiently(self._load)
        if error is not None:
            if not found:
                raise error
            self._say(f"warning: step {self._step + 1} goes on without some groups: {error}")
        return [found.get(i) for i in range(len(asks))]

    def _try(self, ask: Ask) -> list[Reply] | ModelUnavailable:
        try:
            return self._server.complete(ask)
        except ModelUnavailable as error:
            return error

    def _patiently(self, do: Callable[[], object]) -> None:
        """Do it; while the server is gone, wait for it. ModelUnavailable when it stays away."""
        until = time.monotonic() + self._settings.wait
        waited = False
        while True:
            try:
                do()
            except ModelUnavailable as error:
                if self._server.alive():
                    raise
                if time.monotonic() >= until:
                    raise ModelUnavailable(
                        f"{error} The run stopped after waiting {self._settings.wait:g} s; start "
                        "the server and go on with --resume"
                    ) from error
                if not waited:
                    self._say(f"paused for at most {self._settings.wait:g} s: {error}")
                waited = True
                self._sleep(_POLL)
            else:
                if waited:
                    self._say("the server is back; the run goes on")
                return

    def _step_of(self, prompt: Prompt, ask: Ask, reply: Reply) -> Step:
        end = self.policy.llm.end_ids
        if reply.stopped and reply.ids[-1] not in end:
            raise ConfigError(
                f"the server ended a reply at token {reply.ids[-1]}, which ends none here (those "
                f"that do: {', '.join(map(str, sorted(end)))}). Start it with "
                "--generation-config vllm, and with the tokenizer of the model in training"
            )
        text = self.policy.llm.decode(reply.ids)
        return Step(ask.ids, reply.ids, reply.logps, text, prompt.text, reply.ids[-1] in end)


def agree(policy: Policy, steps: Sequence[Step]) -> Agreement:
    """Sampled against recomputed log-probs, of up to CHECKED completions; zero for none."""
    chosen = steps[:: max(1, -(-len(steps) // CHECKED))]
    rows = [Row(step, i) for i, step in enumerate(chosen)]
    if not rows:
        return Agreement(0.0, 0.0)
    total = worst = 0.0
    with torch.no_grad():
        for batch in micro_batches(rows, _TOKENS, policy.llm.pad_id, policy.model.device):
            scored = policy.score(batch)
            apart = (scored.logp - sampled_logps(rows, batch)).abs().masked_fill(~batch.mask, 0.0)
            total += float(apart.sum())
            worst = max(worst, float(apart.max()))
    return Agreement(total / sum(len(row.step.ids) for row in rows), worst)
