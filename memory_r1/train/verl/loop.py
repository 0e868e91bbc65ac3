"""verl's agent loop of level b: an episode of several prompts, one reward at its end."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import (  # type: ignore[import-not-found]
    AgentLoopBase,
    AgentLoopOutput,
)

from memory_r1.errors import ConfigError
from memory_r1.llm import drive
from memory_r1.train.verl.reward import frozen_agents, scores
from memory_r1.train.verl.samples import begin_row
from memory_r1.types import Completion, Prompt


class EpisodeLoop(AgentLoopBase):  # type: ignore[misc]
    """Plays a row's episode to its end; every model call becomes a row of the training batch.

    Tokens are kept as they were sampled, never decoded and encoded again. verl copies the last
    output's reward to the others and computes GRPO's advantage from the last one alone.
    """

    def __init__(
        self, *args: Any, answerer: str | None = None, judge: str | None = None, **kwargs: Any
    ) -> None:
        """answerer, judge: as for `compute_score`."""
        super().__init__(*args, **kwargs)
        self._partners = (answerer, judge)

    async def run(
        self, sampling_params: dict[str, Any], priority: int = 0, **row: Any
    ) -> list[AgentLoopOutput]:
        """One rollout. An absent answerer raises ModelUnavailable, which fails its whole group."""
        # Embedding and the answerer's replies take a while; other episodes share this event loop.
        frozen = await asyncio.to_thread(frozen_agents, *self._partners)
        episode = await asyncio.to_thread(begin_row, row["extra_info"], frozen)
        outputs: list[AgentLoopOutput] = []
        while not episode.done:
            output = await self._reply(episode.prompt(), sampling_params, int(priority))
            outputs.append(output)
            text = self.tokenizer.decode(output.response_ids, skip_special_tokens=True)
            finished = len(output.response_ids) < self.rollout_config.response_length
            await asyncio.to_thread(episode.step, Completion(text, finished=finished))
        outcome = await asyncio.to_thread(lambda: drive([episode.judge()], frozen)[0])
        outputs[-1].reward_score = outcome.reward
        outputs[-1].extra_fields["reward_extra_info"] = scores(episode, outcome)
        return outputs

    async def _reply(
        self, prompt: Prompt, sampling_params: dict[str, Any], priority: int
    ) -> AgentLoopOutput:
        messages = [{"role": role, "content": text} for role, text in prompt.messages]
        prompt_ids = await self.ct_build_initial_tokens(messages)
        most = self.rollout_config.prompt_length
        if len(prompt_ids) >= most:  # verl has cut its beginning off, the instructions
            raise ConfigError(
                f"a prompt has {most} tokens or more; raise verl.prompt_tokens or shorten episodes"
            )
        sampled = await self.server_manager.generate(
            request_id=uuid4().hex,
            prompt_ids=prompt_ids,
            sampling_params=sampling_params,
            priority=priority,
        )
        length = self.rollout_config.response_length
        ids = sampled.token_ids[:length]
        return AgentLoopOutput(
            prompt_ids=prompt_ids,
            response_ids=ids,
            response_mask=[1] * len(ids),
            response_logprobs=sampled.log_probs[:length] if sampled.log_probs else None,
            num_turns=2,
            metrics={},
            extra_fields={**sampled.extra_fields, "turn_scores": [], "tool_rewards": []},
        )
