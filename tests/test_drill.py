"""Each agent alone: an agent that knows the labels is right everywhere, one vice shows as one."""

import json
import re

import pytest

from memory_r1.bench.drill import drill
from memory_r1.bench.systems import System
from memory_r1.data.world import WorldConfig, write
from memory_r1.errors import ConfigError, DataError
from memory_r1.llm import Agents
from memory_r1.types import Completion


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("drill") / "world.json"
    write(WorldConfig(seed=3, dialogues=2), path)
    return path


class Knowing:
    """Plays both agents from the labels of a world file."""

    name, style = "knowing", "compact"

    def __init__(self, world, vice=""):
        self.vice = vice
        self.facts, self.answers = {}, {}
        for sample in json.loads(world.read_text("utf-8")):
            for event in sample["world"]["events"]:
                # A fact told twice has two right decisions: they are used up in order.
                self.facts.setdefault(event["fact"], []).append(event)
            for question in sample["qa"]:
                self.answers[question["question"]] = question["answer"]

    def complete(self, prompts, *, max_tokens=512, temperature=0.0, schema=None):
        return [Completion(self.reply(prompt.text), 1, 1, True) for prompt in prompts]

    def reply(self, text):
        rows = dict(re.findall(r"(?:^memory |(?<=> ))([^<>]+) (<s\d+>)", text))
        if " question " in text:
            label = next(iter(rows.values()))
            return f"row {label} => {self.answers[text.split(' question ')[1][:-3]]}"
        event = self.facts[text.split(" fact ")[1][:-3]].pop(0)
        if event["phenomenon"] == self.vice == "accumulate":
            return f"row {rows[event['target']]} => DELETE ; ADD"
        if event["phenomenon"] == self.vice == "retract":
            return "no arrow"
        if event["op"] == "ADD" or event["op"] == "NOOP":
            return f"nothing => {event['op']}"
        return f"row {rows[event['target']]} => {event['op']} {event['text']}".strip()


def drilled(world, player):
    return drill(world, System("knowing", Agents(manage=player, answer=player)))


def first_facts_are_not_asked(world):
    """On an empty bank a compact manager isn't asked: its first labels are dropped here."""
    return [sample["world"]["events"][0] for sample in json.loads(world.read_text("utf-8"))]


def knowing(world, vice=""):
    player = Knowing(world, vice)
    for event in first_facts_are_not_asked(world):
        player.facts[event["fact"]].pop(0)
    return player


def test_an_agent_that_knows_the_labels_is_right_everywhere(world):
    found = drilled(world, knowing(world))
    for row in found["manager"].values():
        assert row["right_operation"] == 100.0 and row["malformed"] == 0
        assert row["right_entry"] in (100.0, None) and row["merged_exactly"] in (100.0, None)
    assert found["manager"]["all"]["merges"] > 5
    assert all(row["em"] == 100.0 for row in found["answer"].values())


def test_the_vice_points_right_and_does_wrong(world):
    found = drilled(world, knowing(world, vice="accumulate"))["manager"]
    assert found["accumulate"]["right_operation"] == 0.0
    assert found["accumulate"]["right_entry"] == 100.0
    assert found["accumulate"]["operations"].keys() == {"ADD", "DELETE"}
    assert found["overwrite"]["right_operation"] == 100.0


def test_an_unreadable_reply_is_counted_and_wrong(world):
    found = drilled(world, knowing(world, vice="retract"))["manager"]
    assert found["retract"]["malformed"] == found["retract"]["n"] > 0
    assert found["retract"]["right_operation"] == 0.0


def test_what_cannot_be_drilled_is_refused(world, tmp_path):
    with pytest.raises(ConfigError, match="no two agents"):
        drill(world, System("rules", Agents()))
    small = tmp_path / "small.json"
    write(WorldConfig(seed=3, dialogues=1, threads=1, friends=0), small)
    with pytest.raises(DataError, match="16 memories"):
        drilled(small, knowing(small))
