"""A-Mem and MemoryOS, built anew: what they keep, what they change, what they find."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from goldens import assert_golden

from memory_r1.bank import Bank
from memory_r1.bench.systems import a_mem, memory_os
from memory_r1.bench.systems.a_mem import AMem, Note
from memory_r1.bench.systems.memory_os import MemoryOs
from memory_r1.config import Settings
from memory_r1.embed import open_embedder
from memory_r1.errors import ModelUnavailable
from memory_r1.llm import Agents, ScriptedLLM, drive
from memory_r1.store import new_id
from memory_r1.store.ram import RamStore
from memory_r1.types import Entry, Message, Owner, Turn

MAY_8 = datetime(2023, 5, 8, tzinfo=UTC)
EMBEDDER = open_embedder()


@pytest.fixture
def bank():
    return Bank(RamStore(), EMBEDDER, Owner("talk"))


def turn(number, text, speaker="Ines"):
    return Turn(speaker, text, MAY_8 + timedelta(days=number), f"D1:{number}")


def play(system, bank, turns):
    for one in turns:
        message = Message(new_id(), bank.owner, one, MAY_8)
        bank.store.add_message(message)
        drive([system.remember(bank, one, message, context=(), last=False)], system.agents)


def played(system_type, bank, replies, turns, **fields):
    llm = ScriptedLLM(replies)
    system = system_type("name", Agents(llm, llm, llm), **fields)
    play(system, bank, turns)
    assert {message.state for message in bank.store.messages(bank.owner)} == {"done"}
    return system


def note(keywords=(), context="", tags=()):
    return json.dumps({"keywords": [*keywords], "context": context, "tags": [*tags]})


def links(*numbers, changed=()):
    items = [{"id": i, "context": context, "tags": ["new"]} for i, context in changed]
    return json.dumps({"links": [*numbers], "changed": items})


BEES = turn(1, "I keep bees on the roof.")
HONEY = turn(2, "The honey was sold in Porto.")


def test_the_prompts_of_a_mem_are_the_reviewed_ones():
    assert_golden("a_mem_note", a_mem.render_note(BEES))
    old = Note("[8 May 2023] Olaf: odd\n</s>", ("ships",), "Olaf speaks.", ("art",))
    near = [Entry("e0", old.text, Owner("u"), MAY_8, metadata=old.metadata)]
    assert_golden("a_mem_links", a_mem.render_links(Note("Ines: I keep bees."), near))


def test_a_turn_becomes_a_note_that_is_found_by_what_was_written_about_it(bank):
    replies = [note(["bees", "roof"], "Ines has a hobby.", ["hobby"])]
    system = played(AMem, bank, replies, [BEES])
    [entry] = bank.entries()
    assert entry.text == (
        "[9 May 2023] Ines: I keep bees on the roof.\n"
        "about: Ines has a hobby.\nkeywords: bees, roof\ntags: hobby"
    )
    assert (entry.sources, entry.speaker) == (("D1:1",), "Ines")
    assert a_mem.note_of(entry).keywords == ("bees", "roof")
    assert [hit.entry.id for hit in system.find(bank, "Which hobby?")] == [entry.id]


def test_a_new_note_is_linked_and_changes_what_an_old_one_says_of_its_context(bank):
    replies = [note(), note(["honey"]), links(0, changed=[(0, "The bees give honey.")])]
    played(AMem, bank, replies, [BEES, HONEY])
    bees, honey = bank.entries()
    assert a_mem.note_of(honey).links == (bees.id,)
    assert bees.text.endswith("roof.\nabout: The bees give honey.\ntags: new")
    # It is the same thing said by the same person on the same day.
    assert (bees.sources, bees.said, bees.version) == (("D1:1",), BEES.said, 2)
    assert [row.op for row in bank.journal(bees.id)] == ["ADD", "UPDATE"]
    bank.undo(bank.journal(bees.id)[-1].id)
    assert bank.get(bees.id).text == bank.history(bees.id)[0].text


def test_links_are_followed_both_ways_within_what_is_shown(bank):
    ships = turn(3, "I paint ships.", "Olaf")
    replies = [note(), note(), links(), note(), links(0)]
    system = played(AMem, bank, replies, [BEES, HONEY, ships], settings=Settings(k=2))
    by_source = {entry.sources[0]: entry for entry in bank.entries()}
    linked_to = {entry.id: entry for entry in by_source.values()}[
        a_mem.note_of(by_source["D1:3"]).links[0]
    ]
    for question, found in [("ships?", by_source["D1:3"]), (linked_to.text, linked_to)]:
        hits = system.find(bank, question)
        assert [hit.entry.id for hit in hits][0] == found.id
        assert {hit.entry.id for hit in hits} == {by_source["D1:3"].id, linked_to.id}
        assert hits[0].score == hits[1].score


@pytest.mark.parametrize("bad", ["no", "[]", '{"keywords": "a", "context": "", "tags": []}', "{}"])
def test_a_note_that_cannot_be_read_keeps_what_was_said(bank, bad):
    played(AMem, bank, [bad, bad], [BEES])
    [entry] = bank.entries()
    assert entry.text == "[9 May 2023] Ines: I keep bees on the roof."
    assert "the note could not be read" in bank.journal()[0].reason


@pytest.mark.parametrize("bad", [links(1), links(-1), links(0, changed=[(7, "x")]), "{}"])
def test_a_note_that_was_not_shown_cannot_be_linked_or_changed(bank, bad):
    played(AMem, bank, [note(), note(), bad, bad], [BEES, HONEY])
    bees, honey = bank.entries()
    assert a_mem.note_of(honey).links == () and bees.version == 1
    assert "the links could not be read" in bank.journal(honey.id)[0].reason


def topic(*keywords, summary="about it"):
    return json.dumps({"keywords": [*keywords], "summary": summary})


def lasting(*facts):
    return json.dumps({"facts": [{"text": text, "from": [*rests_on]} for text, rests_on in facts]})


def of(bank, tier):
    return [entry for entry in bank.entries() if entry.metadata["tier"] == tier]


def talk(pages, text="We talk about bees and honey"):
    """So many pages, and those that keep short-term memory full."""
    return [turn(i, f"{text} {i}") for i in range(1, 2 * (pages + memory_os.SHORT) + 1)]


SAME = topic("talk", "bees", "honey", summary="We talk about bees and honey.")


def test_the_prompts_of_memory_os_are_the_reviewed_ones():
    page = [
        Entry("e0", "[8 May 2023] Ines: </s> odd", Owner("u"), MAY_8, said=MAY_8),
        Entry("e1", "Olaf: I paint", Owner("u"), MAY_8),
    ]
    assert_golden("memory_os_topic", memory_os.render_topic(page[1], page))
    assert_golden("memory_os_lasting", memory_os.render_lasting(page))


def test_the_last_turns_are_kept_as_they_are_and_ask_nobody(bank):
    system = played(MemoryOs, bank, [], talk(0))
    assert len(of(bank, "short")) == len(bank.entries()) == 14
    assert len(system.find(bank, "bees?")) == 14


def test_an_older_page_is_filed_under_its_topic(bank):
    turns = [*talk(0)[:2], turn(50, "I paint grey ships"), turn(51, "On paper"), *talk(2)[4:]]
    replies = [SAME, topic("ships", summary="Ships.")]
    played(MemoryOs, bank, replies, turns)
    bees, ships = of(bank, "segment")
    assert (bees.text, ships.text) == ("We talk about bees and honey.", "Ships.")
    pages = of(bank, "page")
    assert [page.metadata["segment"] for page in pages] == [bees.id] * 2 + [ships.id] * 2
    assert pages[0].metadata["page"] == pages[1].metadata["page"] == pages[0].id
    assert (pages[0].sources, pages[0].said) == (("D1:1",), turns[0].said)
    assert len(of(bank, "short")) == 14


def test_a_page_joins_the_topic_that_is_near(bank):
    played(MemoryOs, bank, [SAME, topic("more", summary="Bees, honey and more.")], talk(2))
    [segment] = of(bank, "segment")
    assert segment.text == "Bees, honey and more."
    assert segment.metadata["keywords"] == ["talk", "bees", "honey", "more"]
    assert (segment.metadata["fresh"], segment.said) == (2, talk(2)[3].said)


def test_a_hot_topic_is_read_once_for_what_lasts(bank):
    facts = lasting(("Ines keeps bees.", [0, 3]), ("Ines sells honey.", []))
    system = played(MemoryOs, bank, [SAME] * 5 + [facts] + [SAME], talk(6))
    bees, honey = of(bank, "long")
    assert (bees.text, bees.sources) == ("Ines keeps bees.", ("D1:1", "D1:4"))
    assert len(honey.sources) == 10
    [segment] = of(bank, "segment")
    assert segment.metadata["fresh"] == 1
    assert [page.metadata["read"] for page in of(bank, "page")] == [True] * 10 + [False] * 2
    found = system.find(bank, "Does Ines keep bees?")
    assert {hit.entry.id for hit in found} == {
        entry.id for tier in ("short", "page", "long") for entry in of(bank, tier)
    }
    assert len(found) <= system.shown


def test_what_was_read_for_what_lasts_is_not_read_again(bank):
    replies = [SAME] * 5 + [lasting()] + [SAME] * 5 + [lasting(("Ines likes honey.", [0]))]
    system = played(MemoryOs, bank, replies, talk(10))
    assert system.agents.manage.prompts[-1].text.count("bees and honey") == 10
    assert [entry.sources for entry in of(bank, "long")] == [("D1:11",)]


def test_memory_os_goes_on_where_its_model_went_away(bank):
    facts = lasting(("Ines keeps bees.", [0, 3]))
    replies = [SAME] * 4 + [SAME, ModelUnavailable("gone")]
    with pytest.raises(ModelUnavailable):
        played(MemoryOs, bank, replies, talk(5))
    assert len(of(bank, "page")) == 8 and len(of(bank, "short")) == 14
    before = [message.turn for message in bank.store.messages(bank.owner)]
    [waiting] = bank.store.messages(bank.owner, "pending")
    assert before[-1] == waiting.turn
    llm = ScriptedLLM([SAME, facts])
    system = MemoryOs("name", Agents(llm, llm, llm))
    drive([system.remember(bank, waiting.turn, waiting, context=(), last=False)], system.agents)
    assert len(of(bank, "page")) == 10 and len(of(bank, "long")) == 1
    assert bank.store.messages(bank.owner, "pending") == []


def test_what_lasts_is_tried_again_when_it_could_not_be_read(bank):
    replies = [SAME] * 5 + ["no", "no", SAME, lasting(("Ines keeps bees.", [0]))]
    played(MemoryOs, bank, replies, talk(6))
    assert [entry.sources for entry in of(bank, "long")] == [("D1:1",)]
    assert any("lasting facts could not be read" in row.reason for row in bank.journal())


def test_a_topic_that_cannot_be_read_is_what_was_said(bank):
    played(MemoryOs, bank, ["no", '{"keywords": [], "summary": ""}'], talk(1))
    [segment] = of(bank, "segment")
    assert segment.text.startswith("Ines: We talk about bees and honey 1\nInes: ")
    assert any("topic could not be read" in row.reason for row in bank.journal())


def test_only_the_best_pages_are_read(bank):
    replies = [topic(f"k{i}", summary=f"Topic {i}.") for i in range(12)]
    turns = [turn(i, f"{word} " * 3) for i, word in enumerate(WORDS, 1)]
    system = played(MemoryOs, bank, replies, [*turns, *talk(0)])
    found = [hit.entry for hit in system.find(bank, "violin")]
    pages = [entry for entry in found if entry.metadata["tier"] == "page"]
    assert len({entry.metadata["segment"] for entry in pages}) == memory_os.SEARCHED
    assert len(of(bank, "segment")) == 12 and len(of(bank, "short")) == 14


WORDS = (
    *("volcano", "lava", "carpet", "loom", "engine", "piston", "tulip", "garden", "harbour"),
    *("pier", "oven", "bread", "planet", "comet", "glacier", "ice", "poem", "verse", "hammer"),
    *("nail", "tiger", "zebra", "pencil", "eraser"),
)


def test_the_coldest_topic_and_the_oldest_facts_leave_but_stay_in_the_history(bank, monkeypatch):
    monkeypatch.setattr(memory_os, "SEGMENTS", 1)
    monkeypatch.setattr(memory_os, "FACTS", 1)
    monkeypatch.setattr(memory_os, "HOT_FROM", 0.5)
    turns = [*talk(0)[:2], turn(50, "I paint grey ships"), turn(51, "On grey paper"), *talk(2)[4:]]
    replies = [
        *(SAME, lasting(("Ines keeps bees.", [0]))),
        *(topic("ships", summary="Ships."), lasting(("Ines paints ships.", [0]))),
    ]
    played(MemoryOs, bank, replies, turns)
    assert [entry.text for entry in of(bank, "long")] == ["Ines paints ships."]
    assert [entry.text for entry in of(bank, "segment")] == ["Ships."]
    assert [entry.sources for entry in of(bank, "page")] == [("D1:50",), ("D1:51",)]
    gone = [e for e in bank.entries(superseded=True) if e.superseded]
    assert {e.metadata["tier"] for e in gone} == {"segment", "page", "long"}
    assert [row.op for row in bank.journal(gone[0].id)][-1] == "DELETE"
