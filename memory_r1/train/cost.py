"""run file -> what its models will be asked, before anything is paid for: calls and tokens.

The real code is played with stand-ins that reply in the right form. Replies that are kept from
earlier runs are taken as they are and cost nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from memory_r1.config import Settings
from memory_r1.data import Dialogue
from memory_r1.embed import Embedder, open_embedder
from memory_r1.llm import LLM, Agents, Conversation, drive
from memory_r1.llm.replies import Replies, Watched, cache_folder, key_of
from memory_r1.llm.stand_in import FACT_WORDS, PER_TOKEN, StandIn
from memory_r1.train.construct import starts
from memory_r1.train.episodes import AnswerEpisode, ManagerEpisode, Situation, Task
from memory_r1.train.players import REPLIES, is_dear, judge_of, partners, teacher_of
from memory_r1.train.rewards import Reward, open_reward
from memory_r1.train.runfile import Run
from memory_r1.types import Completion, Prompt

PLAYED: Final = 24
"""Episodes that are played to see what one takes."""
ROLES: Final = ("extract", "manage", "answer", "judge")


@dataclass(frozen=True)
class Need:
    """What a role will be asked. Tokens are estimates, calls too where replies decide on them."""

    calls: int = 0
    """That must be paid for."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    known: int = 0
    """Calls whose replies are kept already; not among `calls`."""

    def times(self, factor: float) -> Need:
        """So many times as much."""
        return Need(**{name: round(value * factor) for name, value in asdict(self).items()})


class _Rehearsal(StandIn):
    """A stand-in that repeats what its model is known to have replied; only the rest counts."""

    def __init__(self, role: Any, llm: LLM, replies: Replies | None) -> None:
        super().__init__(role, llm)
        self.known = 0
        self._llm = llm.llm if isinstance(llm, Watched) else llm
        self._replies = replies

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """Known replies, and for the others some of the right form and length."""
        if self._replies is None or not getattr(self._llm, "identity", ""):
            return super().complete(prompts, schema=schema)
        keys = [key_of(self._llm, prompt, max_tokens, schema) for prompt in prompts]
        found = self._replies.get(set(keys))
        self.known += sum(key in found for key in keys)
        new = [p for p, key in zip(prompts, keys, strict=True) if key not in found]
        made = iter(super().complete(new, schema=schema))
        return [found[key] if key in found else next(made) for key in keys]

    @property
    def need(self) -> Need:
        """What was asked so far."""
        asked = self.needed
        return Need(
            round(asked.calls),
            round(asked.prompt_tokens),
            round(asked.completion_tokens),
            self.known,
        )


def rehearsing(agents: Agents) -> Agents:
    """Stand-ins in the places of the agents; what they are asked is counted in them."""
    players = {role: llm for role in ROLES if (llm := getattr(agents, role)) is not None}
    replies = None
    if any(map(is_dear, players.values())):
        replies = Replies(cache_folder() / REPLIES)
    return Agents(
        **{
            role: _Rehearsal(role, llm, replies if is_dear(llm) else None)
            for role, llm in players.items()
        }
    )


def asked(agents: Agents) -> dict[str, Need]:
    """What stand-ins were asked, by role; roles that were not asked are left out."""
    players = {role: getattr(agents, role) for role in ROLES}
    needs = {r: p.need for r, p in players.items() if isinstance(p, _Rehearsal)}
    return {role: need for role, need in needs.items() if need.calls or need.known}


def plan(
    run: Run,
    makers: Agents,
    embedder: Embedder,
    settings: Settings,
    dialogues: Sequence[Dialogue],
    *,
    practised: bool = False,
) -> tuple[dict[str, Need], list[Situation | Task]]:
    """What making the banks of dialogues will take, by role; and about what starts it will give.

    Takes what `construct.starts` takes.
    """
    stand_ins = rehearsing(makers)
    found = starts(run, stand_ins, embedder, settings, dialogues, practised=practised)
    return asked(stand_ins), found


def cost(run: Run) -> dict[str, Any]:
    """What a run will ask of models beside the one it trains, as numbers to print.

    {"players": {role: name}, "building": {role: {...}}, "imitated": {role: {...}},
    "training": {role: {...}}, "episodes", "held_out", "assumes"}, each {...} with the fields of
    `Need`. Training counts every rollout, though equal prompts are asked once. Empty for the tiny
    model's lessons, which ask nobody, and for LoGo-GRPO, whose practice is not made beforehand.
    Raises what opening the models and reading the data raises; weights are not loaded.
    """
    if run.gives_lessons or run.algorithm == "logo":
        return {}
    from memory_r1.train.stage import dialogues_of

    frozen = replace(partners(run), judge=judge_of(run))
    policy = getattr(partners(replace(run, extract=None, manager=None, answer=None)), run.trains[0])
    teacher = teacher_of(run, policy, frozen)
    settings, embedder = Settings(per_speaker=run.rollout.per_speaker), open_embedder()
    practised, held_out = dialogues_of(run)
    made, practice = plan(run, teacher or frozen, embedder, settings, practised, practised=True)
    tested_made, tested = plan(run, frozen, embedder, settings, held_out)
    reward = open_reward(run.reward.name)
    building = {
        role: _sum(made.get(role), tested_made.get(role)) for role in {**made, **tested_made}
    }
    rounds = 1 + (run.eval.every and run.steps.total // run.eval.every) + 1
    evaluated = rounds * min(run.eval.questions, len(tested))
    rollouts = run.steps.total * run.rollout.prompts * run.rollout.group_size
    training = _playing(tested, policy, frozen, settings, reward, evaluated)
    imitated: dict[str, Need] = {}
    if teacher is not None:
        imitated = _playing(practice, None, teacher, settings, reward, len(practice))
    else:
        learned = _playing(practice, policy, frozen, settings, reward, rollouts)
        training = {r: _sum(training.get(r), learned.get(r)) for r in {**training, **learned}}
    names = {role: getattr(frozen, role) for role in ROLES}
    return {
        "players": {role: llm.name for role, llm in names.items() if llm is not None}
        | ({"teacher": run.teacher.model} if run.teacher else {}),
        "building": {role: asdict(need) for role, need in building.items()},
        "imitated": {role: asdict(need) for role, need in imitated.items()},
        "training": {role: asdict(need) for role, need in training.items()},
        "episodes": len(practice),
        "held_out": min(run.eval.questions, len(tested)),
        "assumes": f"one fact of at most {FACT_WORDS} words per turn, each kept, {PER_TOKEN} "
        f"characters per token, {PLAYED} episodes played; rollouts of the model in training are "
        "not counted",
    }


def announce(
    run: Run,
    makers: Agents,
    embedder: Embedder,
    settings: Settings,
    dialogues: Sequence[Dialogue],
    say: Callable[[str], None],
) -> None:
    """Say what making the banks to practise on will take, where models are asked that cost."""
    ready_made = run.data is not None and run.data.banks == "observations"
    if ready_made or not any(isinstance(m, Watched) for m in (makers.extract, makers.manage)):
        return
    needs, _ = plan(run, makers, embedder, settings, dialogues, practised=True)
    total = _sum(*needs.values())
    known = f" ({total.known:,} more are known)" if total.known else ""
    say(
        f"building them asks for about {total.calls:,} replies{known}: {total.prompt_tokens:,} "
        f"tokens read, {total.completion_tokens:,} written"
    )


def _sum(*needs: Need | None) -> Need:
    rows = [asdict(need) for need in needs if need is not None]
    return Need(**{name: sum(row[name] for row in rows) for name in asdict(Need())})


def _playing(
    begins: Sequence[Situation | Task],
    policy: LLM | None,
    partners: Agents,
    settings: Settings,
    reward: Reward,
    episodes: int,
) -> dict[str, Need]:
    """What so many episodes ask of the partners: a few are played, the rest is like them.

    policy: who is trained, and not counted; None where a teacher's own replies count as well.
    """
    if not begins or not episodes:
        return {}
    chosen = random.Random(0).sample(list(begins), min(PLAYED, len(begins)))
    stand_ins = rehearsing(partners)
    trained = rehearsing(Agents(manage=policy, answer=policy))

    def one(start: Situation | Task) -> Conversation[None]:
        episode: AnswerEpisode | ManagerEpisode
        if isinstance(start, Task):
            player = trained.answer or stand_ins.answer
            assert player is not None
            episode = AnswerEpisode(start, player, settings, reward)
        else:
            player = trained.manage or stand_ins.manage
            assert player is not None
            episode = ManagerEpisode(start, player, stand_ins, settings, reward)
        while not episode.done:
            call = episode.call
            if policy is None:
                episode.step((yield call))
            else:
                [reply] = player.complete([call.prompt], schema=call.schema)
                episode.step(reply)
        if isinstance(start, Task) or start.questions or start.right is not None:
            yield from episode.judge()

    drive([one(start) for start in chosen], stand_ins)
    scale = episodes / len(chosen)
    return {role: need.times(scale) for role, need in asked(stand_ins).items()}
