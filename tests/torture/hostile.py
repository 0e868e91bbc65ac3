"""Replies no model should give: each is applied, repaired or refused, and none does harm."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, Final

from memory_r1 import Memory
from memory_r1.audit import check
from memory_r1.errors import MalformedReply
from memory_r1.llm import Agents, ScriptedLLM
from memory_r1.types import Entry, Prompt, Style
from torture.made import EMBEDDER, Figures

WORDS: Final = (
    *("Rex", "dog", "Lisbon", "ADD", "NOOP", "id", "text", "Memories", "**Answer:**", "none"),
    *("狗", "собака", "كلب", "🐕", "é", "\u202e", "\x00", "\ud83d", "\udc15", "\ufeff", "ﬁ", "İ"),
)
VALUES: Final = (
    *(None, True, False, -1, 0, 1, 2, 7, 10**9, 10**400, 0.0, 1.0, 0.5, -0.0, "", "0", "1", " 0 "),
    *("all", "*", [], {}, [0], [[0]], {"id": 0}, "2023-13-45", "NaN", "\ud83d", "x" * 5000),
)
EXAMPLES: Final = {
    "extract": (
        '{"facts": [{"text": "Mia has a dog, Rex", "quote": "a dog"}]}',
        '{"facts": [{"text": "Mia moved", "quote": "", "from": "2023-05-01", "to": "2023-05-31"}]}',
        '{"facts": []}',
        '{"facts": ["Mia has a dog"]}',
        "FACT Mia has a dog\nFACT Mia moved",
    ),
    "manage": (
        '{"operations": [{"op": "ADD", "text": "Mia has a dog"}]}',
        '{"operations": [{"op": "UPDATE", "id": 0, "text": "Mia has two dogs"}]}',
        '{"operations": [{"op": "DELETE", "id": 1}, {"op": "NOOP"}]}',
        '{"memory": [{"id": "0", "text": "Mia has a cat", "event": "UPDATE", "old_memory": "x"}]}',
        '[{"op": "NOOP", "id": 0}]',
        "ADD Mia has a dog",
    ),
    "answer": (
        "Memories: 0, 1\n**Answer:** a dog",
        "Memories: none\n**Answer:** not mentioned",
        "**Answer:** 2",
        "[0] Mia has a dog\n**Answer:** Rex",
    ),
}
"""Replies that are, or once were, right; what goes wrong starts from them."""


def reply(rng: random.Random, agent: str) -> str:
    """One reply, seldom a good one."""
    text = rng.choice(EXAMPLES[rng.choice(list(EXAMPLES)) if rng.random() < 0.1 else agent])
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        text = rng.choice(_WAYS)(rng, text)
    return text


def _cut(rng: random.Random, text: str) -> str:
    return text[: rng.randrange(len(text) + 1)]


def _nested(rng: random.Random, text: str) -> str:
    depth = rng.choice((10, 500, 5000))
    return rng.choice(("[" * depth, '{"a":' * depth, "[" * depth + "]" * depth, "(" * depth)) + text


def _retyped(rng: random.Random, text: str) -> str:
    """Some value is of another type, or invented."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text + str(rng.choice(VALUES))
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict | list):
            for key in node if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                walk(node[key])

    walk(value)
    if not places:
        return json.dumps(rng.choice(VALUES))
    node, key = rng.choice(places)
    node[key] = rng.choice(VALUES)
    return json.dumps(value, ensure_ascii=rng.random() < 0.5)


def _doubled(rng: random.Random, text: str) -> str:
    """Keys twice, or everything twice."""
    ways = (
        text.replace('"op":', '"op": "DELETE", "op":', 1),
        text.replace('"id":', '"id": 1, "id":', 1),
        text.replace('"facts":', '"facts": [], "facts":', 1),
        text + text,
        text + "\n" + text,
        "**Answer:** a cat\n" + text,
    )
    return rng.choice(ways)


def _constants(rng: random.Random, text: str) -> str:
    number = rng.choice(("NaN", "Infinity", "-Infinity", "1e999", "0x0", "01", "1_0", "--1"))
    return text.replace("0", number, 1) if "0" in text else text.replace('"', number, 1)


def _fenced(rng: random.Random, text: str) -> str:
    fence = rng.choice(("```", "```json\n", "~~~", "````", "<think>", "</think>", "<|im_end|>"))
    return f"Sure!\n{fence}{text}{rng.choice((fence, '```', '', '</think>'))}"


def _foreign(rng: random.Random, text: str) -> str:
    place = rng.randrange(len(text) + 1)
    return text[:place] + " ".join(rng.choices(WORDS, k=rng.randrange(1, 6))) + text[place:]


def _large(rng: random.Random, text: str) -> str:
    if rng.random() > 0.002:
        return text
    return rng.choice((text * 20_000, text + " " * 2_000_000, '{"facts": [' + '"x",' * 300_000))


def _flipped(rng: random.Random, text: str) -> str:
    """Bytes changed, and read as they can be."""
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(min(len(data), 3)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return data.decode("utf-8", rng.choice(("replace", "surrogateescape", "ignore")))


def _other(rng: random.Random, text: str) -> str:
    return rng.choice(
        (
            *("", " ", "\n", "null", "[]", "{}", '""', "0", "I can't help with that.", "{}" * 500),
            *('{"operations": []}', '{"operations": [[]]}', '{"operations": "ADD"}', text.upper()),
            *(text.replace('"', "'"), text.replace(",", ",,"), f"{text},", text[::-1]),
            '{"operations": [' + ",".join(['{"op": "DELETE", "id": 0}'] * 50) + "]}",
            '{"$schema": "", "type": "object", "properties": {"operations": {}}}',
        )
    )


Way = Callable[[random.Random, str], str]
_WAYS: Final[tuple[Way, ...]] = (
    *(_cut, _nested, _retyped, _retyped, _doubled, _constants, _fenced, _foreign, _large),
    *(_flipped, _other),
)


class _Hostile:
    """A model that gives such replies, and counts them."""

    def __init__(self, rng: random.Random, style: Style) -> None:
        self.outputs = 0
        self.shown: dict[str, str] = {}
        """By agent: the prompt it was shown last."""
        self.calls: dict[str, int] = {}

        def model(agent: str) -> ScriptedLLM:
            def say(prompt: Prompt) -> str:
                self.outputs += 1
                self.calls[agent] = self.calls.get(agent, 0) + 1
                self.shown[agent] = prompt.text
                llm.prompts.clear()
                return reply(rng, agent)

            llm = ScriptedLLM(say, style=style)
            return llm

        self.agents = Agents(model("extract"), model("manage"), model("answer"))


def torment(outputs: int, seed: int, style: Style = "instruct") -> Figures:
    """So many outputs, through the whole of add and ask; what became of each."""
    rng, figures = random.Random(seed), Figures()
    hostile = _Hostile(rng, style)
    fates = {"applied": 0, "repaired": 0, "deferred": 0, "refused": 0}
    rounds = 0
    while hostile.outputs < outputs:
        with Memory("ram:", llm=hostile.agents, embedder=EMBEDDER, related=5) as ours:
            for text in ("Mia has a dog named Rex", "Mia lives in Lisbon", "Mia likes tea"):
                ours.add(text, user_id="mia", infer=False)
            for n in range(40):
                _one_turn(ours, hostile, n, figures, fates)
                _one_question(ours, hostile, figures, fates)
            figures.wrong += check(ours.store)
            rounds += 1
    figures.add(outputs=hostile.outputs, invalid_mutations=len(figures.wrong), **fates)
    return figures


def _one_turn(
    ours: Memory, hostile: _Hostile, n: int, figures: Figures, fates: dict[str, int]
) -> None:
    before = {entry.id: entry for entry in ours.list(user_id="mia")}
    hostile.calls.clear()
    result = ours.add(f"I said something, {n}", user_id="mia", speaker="Mia")
    message, _ = ours.message(result.message_ids[0], user_id="mia")
    asked = sum(hostile.calls.values())
    if message.state == "deferred":
        fates["deferred"] += asked
        if result.complete or not message.error:
            figures.wrong.append(f"deferred without a word: {message}")
    elif message.state == "done" and result.complete:
        fates["applied" if max(hostile.calls.values(), default=0) < 2 else "repaired"] += asked
    else:
        figures.wrong.append(f"lost without a word: {message.state}, {result}")
    shown = hostile.shown.get("manage", "")
    for row in result.rows:
        if row.op in ("UPDATE", "DELETE"):
            known = before.get(row.entry_id)
            if known is None or not _shown(known, shown):
                figures.wrong.append(f"{row.op} of what the model was not shown: {row}")


def _shown(entry: Entry, prompt: str) -> bool:
    """The bank may have changed the entry itself in this turn; its first words stay telling."""
    told = json.dumps(entry.text, ensure_ascii=False)[1:-1]
    return told[:40] in prompt or entry.text[:20] in prompt


def _one_question(ours: Memory, hostile: _Hostile, figures: Figures, fates: dict[str, int]) -> None:
    hostile.calls.clear()
    try:
        answer = ours.ask("What is the dog called?", user_id="mia")
    except MalformedReply:
        fates["refused"] += hostile.calls.get("answer", 0)
        return
    kind = "applied" if hostile.calls.get("answer", 0) < 2 else "repaired"
    fates[kind] += hostile.calls.get("answer", 0)
    retrieved = {entry.id for entry in answer.retrieved}
    if not {entry.id for entry in answer.used} <= retrieved:
        figures.wrong.append(f"the answer rests on what was not shown: {answer.used}")
