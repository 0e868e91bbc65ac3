"""The facade: nothing is lost, everything is explained."""

import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from memory_r1 import Memory, outbox
from memory_r1.errors import ConfigError, ModelUnavailable, StoreError, UnknownEntry, UnknownRow
from memory_r1.llm import Agents, ScriptedLLM, drive
from memory_r1.remember import remember
from memory_r1.respond import respond
from memory_r1.types import Owner, Turn

START = datetime(2023, 5, 7, tzinfo=UTC)
FACT = '{"facts": ["Mia has a dog named Rex"]}'
ADD = '{"operations": [{"op": "ADD", "text": "Mia has a dog named Rex"}]}'


class Clock:
    """A clock that moves a minute each time it is read."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(minutes=1)
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def memory(clock):
    """A function that opens memories over one RAM store with scripted models."""
    opened = Memory("ram:")

    def open_with(*replies, style="instruct", **settings) -> Memory:
        agents = Agents() if not replies else None
        llm = agents or ScriptedLLM(replies, style=style)
        return Memory(opened.store, llm=llm, embedder=opened.embedder, now=clock, **settings)

    return open_with


def texts(memory: Memory) -> list[str]:
    return [entry.text for entry in memory.list(user_id="mia")]


def states(memory: Memory) -> list[tuple[str, str]]:
    return [(m.state, m.error) for m in memory.store.messages(Owner("mia"))]


def test_two_dogs_become_one_memory_and_an_answer(memory):
    merged = "Mia has two dogs named Rex and Fay"
    llm = memory(
        FACT,
        ADD,
        '{"facts": ["Mia adopted another dog, Fay"]}',
        f'{{"operations": [{{"op": "UPDATE", "id": 0, "text": "{merged}"}}]}}',
        "Memories: 0\n**Answer:** 2",
    )
    llm.add("I have a dog, Rex", user_id="mia", speaker="Mia", timestamp=START)
    (row,) = llm.add("I adopted another dog, Fay", user_id="mia", speaker="Mia").rows
    assert (row.op, row.before.text, row.after.text) == (
        "UPDATE",
        "Mia has a dog named Rex",
        merged,
    )
    assert row.model == "scripted" and len(row.prompt_hash) == 12
    assert row.reason == "Mia adopted another dog, Fay"
    answer = llm.ask("How many dogs?", user_id="mia")
    assert answer.text == "2" and [entry.text for entry in answer.used] == [merged]
    assert answer.model == "scripted" and set(answer.latency) == {"search", "answer"}
    versions = llm.history(row.entry_id, user_id="mia")
    assert [entry.text for entry in versions] == ["Mia has a dog named Rex", merged]
    assert len(versions[-1].sources) == 2
    llm.undo(row.id, user_id="mia")
    assert texts(llm) == ["Mia has a dog named Rex"]


def test_a_compact_manager_sees_the_bank_as_the_facts_before_left_it(memory):
    llm = memory(
        "Mia has a dog ; the dog is called Rex ; Mia is tall",
        "Mia has a dog <s0> => UPDATE Mia has a dog named Rex",
        "Mia's height nothing => ADD",
        style="compact",
    )
    result = llm.add("...", user_id="mia")
    assert (
        llm.agents.manage.prompts[1].text
        == "memory Mia has a dog <s0> fact the dog is called Rex =>"
    )
    assert texts(llm) == ["Mia has a dog named Rex", "Mia is tall"]
    assert [row.op for row in result.rows] == ["ADD", "UPDATE", "ADD"]
    assert result.rows[0].entry_id == result.rows[1].entry_id
    assert result.complete and states(llm) == [("done", "")]


def test_a_compact_model_is_not_asked_where_there_is_nothing_to_choose_from(memory):
    llm = memory("Mia is tall", style="compact")
    assert llm.ask("How tall is Mia?", user_id="mia").text == "not mentioned"
    assert [row.op for row in llm.add("I am tall", user_id="mia").rows] == ["ADD"]


def test_what_could_not_be_decided_is_deferred_alone_and_retried_alone(memory):
    extracted = "Mia has a dog ; Mia is tall"
    llm = memory(extracted, "gibberish", style="compact")
    result = llm.add("I have a dog and I'm tall", user_id="mia", metadata={"chat": 7})
    assert [(f.fact.text, f.status) for f in result.facts] == [
        ("Mia has a dog", "stored"),
        ("Mia is tall", "deferred"),
    ]
    ((state, error),) = states(llm)
    assert state == "deferred" and "gibberish" in error and not result.complete
    again = memory(extracted, "nothing => ADD Mia is tall", style="compact")
    assert again.retry("mia").complete
    assert texts(again) == ["Mia has a dog", "Mia is tall"]
    assert states(again) == [("done", "")] and again.retry("mia").rows == ()
    assert {e.metadata["chat"] for e in again.list(user_id="mia")} == {7}


@pytest.mark.parametrize(
    "replies",
    [
        ["gibberish", "gibberish"],
        [FACT, "gibberish", "gibberish"],
        [ModelUnavailable("the server is down")],
        [FACT, ModelUnavailable("the server is down")],
        [FACT, "gibberish", ModelUnavailable("the server is down")],
    ],
)
def test_whatever_fails_the_turn_is_kept_and_retried(memory, replies):
    llm = memory(*replies)
    result = llm.add("I have a dog, Rex", user_id="mia")
    assert [fact.status for fact in result.facts] == ["deferred"] and not result.rows
    assert texts(llm) == [] and states(llm)[0][0] == "deferred"
    assert memory(FACT, ADD).retry("mia").complete
    assert texts(llm) == ["Mia has a dog named Rex"]


def test_a_model_that_went_away_is_not_asked_about_the_facts_that_follow(memory):
    llm = memory("a ; b ; c", ModelUnavailable("down"), style="compact")
    result = llm.add("...", user_id="mia")
    assert [fact.status for fact in result.facts] == ["stored", "deferred", "deferred"]
    assert texts(llm) == ["a"]


def test_a_turn_is_stored_whole_or_not_at_all(memory, monkeypatch):
    llm = memory("a ; b", "nothing => ADD b", style="compact")
    put = llm.store.put

    def failing(entry, vector):
        if entry.text == "b":
            raise StoreError("disk full")
        put(entry, vector)

    monkeypatch.setattr(llm.store, "put", failing)
    with pytest.raises(StoreError):
        llm.add("...", user_id="mia")
    assert texts(llm) == [] and llm.journal(user_id="mia") == []
    assert states(llm) == [("deferred", "StoreError('disk full')")]


def test_what_a_killed_process_left_is_retried_once_it_is_surely_dead(memory, clock, monkeypatch):
    llm = memory()
    with monkeypatch.context() as killed, pytest.raises(SystemExit):
        killed.setattr(llm._outbox, "process", lambda _: sys.exit())
        llm.add("Hi there", user_id="mia")
    assert states(llm) == [("working", "")]
    assert llm.retry("mia").facts == ()
    clock.now += timedelta(minutes=10)
    assert [fact.status for fact in llm.retry("mia").facts] == ["stored"]
    assert states(llm) == [("done", "")]


def test_an_entry_deleted_meanwhile_defers_the_turn(memory):
    llm = memory()
    llm.add("I have a dog", user_id="mia", speaker="Mia")
    (entry,) = llm.list(user_id="mia")

    def reply(prompt):
        if "long-term memory of an assistant. From one" in prompt.text:
            return FACT
        if llm.list(user_id="mia"):
            llm.delete(entry.id, user_id="mia")
        return '{"operations": [{"op": "DELETE", "id": 0}]}'

    racing = Memory(llm.store, llm=ScriptedLLM(reply), embedder=llm.embedder)
    result = racing.add("The dog is gone", user_id="mia")
    assert [fact.status for fact in result.facts] == ["deferred"]


def test_without_an_outbox_a_fact_fails_rather_than_being_deferred(memory):
    llm = memory("gibberish", "gibberish")
    bank = llm.bank("mia")
    (result,) = drive([remember(bank, Turn("Mia", "Hi"), llm.agents, llm.settings)], llm.agents)
    assert [fact.status for fact in result.facts] == ["failed"]


def test_many_conversations_advance_in_step(memory):
    llm = memory(FACT, FACT, ADD, ADD, "Memories: 0\n**Answer:** Rex")
    banks = [llm.bank(name) for name in ("a", "b")]
    turn = Turn("Mia", "I have a dog, Rex", said=START)
    drive([remember(b, turn, llm.agents, llm.settings) for b in banks], llm.agents)
    assert [[e.text for e in b.entries()] for b in banks] == [["Mia has a dog named Rex"]] * 2
    (said,) = drive([respond(banks[0], "Name?", llm.agents, llm.settings)], llm.agents)
    assert said.text == "Rex" and said.used == said.retrieved


def test_rules_need_no_model_and_keep_no_duplicates(memory):
    rules = memory()
    for text in ("I have a dog named Rex.", "I have a dog named Max.", "i have a dog named rex"):
        rules.add(text, user_id="mia", speaker="Mia")
    assert texts(rules) == [
        "[7 May 2023] Mia: I have a dog named Rex.",
        "[7 May 2023] Mia: I have a dog named Max.",
    ]
    assert [row.op for row in rules.journal(user_id="mia")] == ["ADD", "ADD", "NOOP"]
    assert rules.ask("What dog named Max?", user_id="mia").note


def test_system_text_is_no_memory_and_credentials_are_redacted(memory):
    rules = memory()
    rules.add(
        [
            {"role": "system", "content": "You are helpful"},
            {"role": "tool", "content": "42"},
            {"role": "user", "content": "my key is sk-abcdefghijklmnopqrstuv", "name": "Mia"},
        ],
        user_id="mia",
    )
    assert texts(rules) == ["[7 May 2023] Mia: my key is [redacted credential]"]
    kept = [message.turn.text for message in rules.store.messages(Owner("mia"))]
    assert kept == ["You are helpful", "42", "my key is [redacted credential]"]
    open_book = memory(redact=False)
    open_book.add("sk-abcdefghijklmnopqrstuv", user_id="bo")
    assert "sk-" in open_book.list(user_id="bo")[0].text


def test_the_extractor_is_shown_the_turns_before(memory):
    llm = memory(*['{"facts": []}'] * 3, context=1)
    for text in ("first", "second", "third"):
        llm.add(text, user_id="mia")
    last = llm.agents.extract.prompts[-1].text
    assert '"second"' in last and '"first"' not in last


def test_owners_share_nothing(memory):
    rules = memory()
    rules.add("I like tea", user_id="mia")
    rules.add("I like tea", user_id="mia", agent_id="other")
    assert len(texts(rules)) == 1 and rules.search("tea", user_id="bo") == []
    receipt = rules.forget("mia")
    assert receipt["entries"] == 1 and texts(rules) == []
    assert len(rules.list(user_id="mia", agent_id="other")) == 1
    (entry,) = rules.list(user_id="mia", agent_id="other")
    with pytest.raises(UnknownEntry):
        rules.get(entry.id, user_id="bo")


def test_search_can_look_at_what_was_believed_then(memory, clock):
    rules = memory()
    rules.add("I live in Oslo", user_id="mia")
    (entry,) = rules.list(user_id="mia")
    before = clock()
    rules.update(entry.id, "I live in Rome", user_id="mia")
    assert rules.search("live", user_id="mia")[0].entry.text == "I live in Rome"
    (then,) = rules.search("live", user_id="mia", as_of=before)
    assert "Oslo" in then.entry.text
    rules.delete(entry.id, user_id="mia")
    assert rules.search("live", user_id="mia") == []
    assert len(rules.list(user_id="mia", superseded=True)) == 1


def test_the_answer_agent_sees_oldest_first_and_as_many_as_asked(memory):
    llm = memory(*["Memories: none\n**Answer:** not mentioned"] * 3)
    rules = memory()
    for year in (2022, 2020, 2021):
        rules.add(f"tea {year}", user_id="mia", speaker=str(year), timestamp=f"{year}-01-01")
    shown = llm.ask("tea?", user_id="mia").retrieved
    assert [entry.said.year for entry in shown] == [2020, 2021, 2022]
    assert len(llm.ask("tea?", user_id="mia", k=2).retrieved) == 2
    assert len(llm.ask("tea?", user_id="mia", per_speaker=1).retrieved) == 3


def test_an_unreachable_answerer_is_an_error_not_an_answer(memory):
    with pytest.raises(ModelUnavailable):
        memory(ModelUnavailable("down")).ask("Who?", user_id="mia")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda m: m.add("x", user_id=""), "user_id"),
        (lambda m: m.add(7, user_id="mia"), "messages"),
        (lambda m: m.add("x", user_id="mia", metadata={"a": {1}}), "metadata"),
        (lambda m: m.add("x", user_id="mia", timestamp="soon"), "ISO 8601"),
        (lambda m: m.search("x", user_id="mia", k=0), "k is 0"),
        (lambda m: m.ask("x", user_id="mia", k=0), "'k'"),
        (lambda m: m.update("x", " ", user_id="mia"), "empty"),
    ],
)
def test_mistakes_are_named(memory, call, expected):
    with pytest.raises(ConfigError, match=expected):
        call(memory())


def test_settings_are_checked_and_a_near_miss_is_guessed():
    with pytest.raises(ConfigError, match="did you mean 'related'"):
        Memory("ram:", relatd=3)
    with pytest.raises(ConfigError, match="expected a number from 1"):
        Memory("ram:", related=0)
    with pytest.raises(ConfigError, match="llm should be"):
        Memory("ram:", llm=object())


def test_a_file_keeps_what_was_said(tmp_path):
    with Memory(tmp_path / "m.db") as memory:
        memory.add("I have a dog", user_id="mia")
    with Memory(tmp_path / "m.db") as memory:
        assert len(memory.search("dog", user_id="mia")) == 1


def test_importing_costs_nothing_and_needs_no_torch():
    code = (
        "import sys, memory_r1; assert 'numpy' not in sys.modules; memory_r1.Memory;"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_call_repeated_under_its_name_adds_nothing_again(memory):
    rules = memory()
    first = rules.add("I have a dog", user_id="mia", once="call 1")
    again = rules.add("I have a dog", user_id="mia", once="call 1")
    assert again.message_ids == first.message_ids and again.rows == first.rows and again.complete
    assert len(rules.store.messages(Owner("mia"))) == 1
    rules.add("I have a dog", user_id="ben", once="call 1")  # another owner's call
    assert len(rules.list(user_id="ben")) == 1
    rules.add("I have a cat", user_id="mia", once="call 2")
    assert len(rules.list(user_id="mia")) == 2


def test_a_repeated_call_tells_what_was_deferred(memory):
    broken = memory("no JSON", "no JSON")
    assert not broken.add("I have a dog", user_id="mia", once="c").complete
    again = broken.add("I have a dog", user_id="mia", once="c")
    assert [fact.status for fact in again.facts] == ["deferred"] and again.facts[0].error


def test_a_page_goes_on_after_the_last_entry_of_the_one_before(memory):
    rules = memory()
    for n in range(7):
        rules.add(f"Fact number {n}", user_id="mia")
    every = rules.list(user_id="mia")
    for superseded in (False, True):
        page = {"user_id": "mia", "superseded": superseded}
        assert rules.list(**page, limit=3) == every[:3]
        assert rules.list(**page, limit=3, after=every[2].id) == every[3:6]
        assert rules.list(**page, newest=True, limit=2) == every[:-3:-1]
        assert rules.list(**page, newest=True, after=every[2].id) == every[1::-1]
    rules.undo(every[2].id, user_id="mia")  # what the page ended with is gone meanwhile
    assert rules.list(user_id="mia", after=every[2].id, limit=2) == every[3:5]
    assert rules.list(user_id="mia", newest=True, after=every[2].id) == every[1::-1]


def test_a_message_tells_what_it_has_led_to(memory):
    rules = memory()
    said = [{"role": "user", "content": f"I have a {pet}"} for pet in ("dog", "cat")]
    result = rules.add(said, user_id="mia")
    message, rows = rules.message(result.message_ids[1], user_id="mia")
    assert message.turn.text == "I have a cat" and message.state == "done"
    assert rows == result.rows[1:]
    with pytest.raises(UnknownRow):
        rules.message(result.message_ids[1], user_id="ben")


def test_the_latest_operations_come_first_and_page_by_page(memory):
    rules = memory()
    for n in range(5):
        rules.add(f"Fact number {n}", user_id="mia")
    rows = rules.journal(user_id="mia")[::-1]
    assert rules.recent(user_id="mia", limit=2) == rows[:2]
    assert rules.recent(user_id="mia", limit=9, before=rows[1].id) == rows[2:]


def test_what_waits_is_processed_after_a_restart(memory):
    rules = memory()
    rules._outbox.submit = lambda owner: None  # as if it was killed before it began
    rules.add("I have a dog", user_id="mia", wait=False)
    assert states(rules) == [("pending", "")]
    after = memory()
    after.resume()
    after.flush()
    assert texts(after) == ["[7 May 2023] user: I have a dog"] and states(after) == [("done", "")]


def test_a_background_add_goes_on_when_what_held_it_up_is_done(memory, monkeypatch):
    monkeypatch.setattr(outbox, "AGAIN", 0.01)
    started, go = threading.Event(), threading.Event()

    def slow(prompt):
        started.set()
        go.wait(10)
        return '{"facts": []}'

    held = Memory("ram:", llm=ScriptedLLM(slow))
    first = threading.Thread(target=lambda: held.add("first", user_id="mia"))
    first.start()
    started.wait(10)
    held.add("second", user_id="mia", wait=False)
    time.sleep(0.1)
    assert {message.state for message in held.store.messages(Owner("mia"))} == {
        "working",
        "pending",
    }
    go.set()
    first.join()
    deadline = time.monotonic() + 10
    while held.store.waiting():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    held.close()


def test_what_is_nested_too_deeply_is_refused(memory):
    deep = {}
    for _ in range(1000):
        deep = {"AND": [deep]}
    for call in (
        lambda: memory().add("x", user_id="mia", metadata=deep),
        lambda: memory().search("x", user_id="mia", filters=deep),
    ):
        with pytest.raises(ConfigError, match="nested more than 50 deep"):
            call()


def test_what_a_message_came_to_can_be_watched(memory):
    rules, seen = memory(), []
    rules.watch = seen.append
    rules.add("I have a dog", user_id="mia")
    rules.add("I have a cat", user_id="mia", wait=False)
    rules.flush()
    assert [row.op for result in seen for row in result.rows] == ["ADD", "ADD"]
