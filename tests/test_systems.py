"""Every system under test remembers, is resumed and answers by the same rules."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from goldens import assert_golden
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_r1.bank import Bank
from memory_r1.bench.systems import (
    SYSTEMS,
    Options,
    System,
    base,
    kind_of,
    open_system,
    rewrite,
)
from memory_r1.bench.systems.a_mem import AMem
from memory_r1.bench.systems.chunks import Rag
from memory_r1.bench.systems.full import FullContext
from memory_r1.bench.systems.memory_os import MemoryOs
from memory_r1.bench.systems.reader import Reading
from memory_r1.bench.systems.rerank import Rerank
from memory_r1.bench.systems.rewrite import Rewrite
from memory_r1.config import Settings
from memory_r1.data import Question
from memory_r1.embed import open_embedder
from memory_r1.errors import ConfigError, MalformedReply, ModelUnavailable, StoreError
from memory_r1.llm import Agents, ScriptedLLM, drive
from memory_r1.store import new_id, open_store
from memory_r1.store.ram import RamStore
from memory_r1.types import Add, Completion, Message, Owner, Turn

MAY_8 = datetime(2023, 5, 8, 13, 56, tzinfo=UTC)
JUNE_2 = datetime(2023, 6, 2, 9, 10, tzinfo=UTC)
TALK = (
    Turn("Ines", "I keep bees on the roof.", MAY_8, "D1:1"),
    Turn("Olaf", "I paint ships.", MAY_8, "D1:2", caption="a red ship"),
    Turn("Ines", "Bye!", MAY_8, "D1:3"),
    Turn("Ines", "The honey was sold in Porto.", JUNE_2, "D2:1"),
    Turn("Ines", "Bye!", JUNE_2, "D2:2"),
)
BEES = Question("q1", "talk", "What does Ines keep on the roof?", "bees", ("D1:1",), 4)
URL = "http://localhost:9/v1#"
EMBEDDER = open_embedder()


@pytest.fixture
def bank():
    return Bank(RamStore(), EMBEDDER, Owner("talk"))


def play(system, bank, turns=TALK):
    """Remember turns as the runner does: in order, those whose messages are pending."""
    known = {message.turn.id: message for message in bank.store.messages(bank.owner)}
    sessions = [turn.id.split(":")[0] for turn in turns]
    for i, turn in enumerate(turns):
        message = known.get(turn.id)
        if message is None:
            message = Message(new_id(), bank.owner, turn, datetime.now(UTC))
            bank.store.add_message(message)
        if message.state == "pending":
            last = sessions[i : i + 2].count(sessions[i]) == 1
            context = turns[max(0, i - system.settings.context) : i]
            drive([system.remember(bank, turn, message, context=context, last=last)], system.agents)


def ask(system, bank, question=BEES):
    return drive([system.answer(bank, question)], system.agents)[0]


def texts(bank):
    return [entry.text for entry in bank.entries()]


def states(bank):
    return [message.state for message in bank.store.messages(bank.owner)]


def model(prompt):
    """Extracts the message, adds each fact, summarises by the last lines, answers 'bees'."""
    user = prompt.messages[1][1]
    if '{"facts": [{"text"' in prompt.text:
        said = user.split(": ", 1)[1][-40:]
        return json.dumps({"facts": [{"text": said, "quote": "", "when": ""}]})
    if "New facts:" in user:
        return json.dumps({"operations": [{"op": "ADD", "text": user.split("New facts:")[1]}]})
    if user.startswith("Message of"):
        return json.dumps({"keywords": [user[-20:]], "context": "said", "tags": []})
    if user.startswith("Nearest notes:"):
        changed = [{"id": 0, "context": f"before {user[-20:]}", "tags": []}]
        return json.dumps({"links": [0], "changed": changed})
    if "Said since:" in user:
        return f"{user.count('- ')} lines, the last {user[-30:]}"
    return "**Answer:** bees"


def llm(reply=model, **fields):
    return ScriptedLLM(reply, **fields)


def built(name, player=None, **fields):
    """A system with one model in every role that it has."""
    player = player or llm()
    everyone = Agents(player, player, player)
    reading = Agents(answer=player)
    return {
        "memory-r1": lambda: System(name, everyone),
        "no-distillation": lambda: Reading(name, everyone),
        "rerank": lambda: Rerank(name, everyone, reranker=Backwards(), **fields),
        "in-context": lambda: Reading(name, everyone),
        "add-only": lambda: Reading(name, replace(everyone, manage=None)),
        "rewrite": lambda: Rewrite(name, replace(everyone, extract=None), **fields),
        "a-mem": lambda: AMem(name, everyone, **fields),
        "memory-os": lambda: MemoryOs(name, everyone),
        "rag-bm25": lambda: Rag(name, reading, **fields),
        "rag-hybrid": lambda: Rag(name, reading, by="hybrid", **fields),
        "full-context": lambda: FullContext(name, reading, **fields),
    }[name]()


class Backwards:
    """A reranker that likes what comes last."""

    name = "backwards"

    def scores(self, query, texts):
        return [float(i) for i in range(len(texts))]


OURS = sorted(set(SYSTEMS) - {"mem0", "langmem"})


@pytest.mark.parametrize("name", OURS)
def test_a_system_remembers_every_turn_and_answers(name, bank):
    system = built(name)
    play(system, bank)
    assert states(bank) == ["done"] * 5
    assert bank.entries()
    answer = ask(system, bank)
    assert (answer.text, answer.known, answer.question) == ("bees", True, BEES.text)
    assert answer.model == "scripted" and answer.prompt_hash
    assert answer.latency["answer"] >= 0
    assert len(answer.scores) == len(answer.retrieved) <= (system.shown or 0)
    assert {row.turn_id for row in bank.journal()} <= {
        message.id for message in bank.store.messages(bank.owner)
    }


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_system_that_lost_its_model_goes_on_where_it_was(name, calls, tmp_path):
    """The model goes away after some calls; the run is started again on the same file."""
    left = [calls]

    def dying(prompt):
        left[0] -= 1
        if left[0] < 0:
            raise ModelUnavailable("gone")
        return model(prompt)

    def again():
        store = open_store(tmp_path / "bank.db")
        return store, Bank(store, EMBEDDER, Owner("talk"))

    store, interrupted = again()
    try:
        # As the runner does, so that nothing is deferred because a model was away.
        play(Strictly(built(name, llm(dying))), interrupted)
    except ModelUnavailable:
        assert "deferred" not in states(interrupted)
    store.close()
    store, resumed = again()
    play(built(name), resumed)
    whole = Bank(RamStore(), EMBEDDER, Owner("talk"))
    play(built(name), whole)
    assert texts(resumed) == texts(whole)
    assert states(resumed) == ["done"] * 5
    store.close()


class Strictly:
    """A system whose absent model ends what it is doing."""

    def __init__(self, system):
        self.system, self.agents, self.settings = system, system.agents, system.settings

    def remember(self, *args, **fields):
        from memory_r1.llm import strictly

        return strictly(self.system.remember(*args, **fields))


# Memory-R1 with a part taken away


def test_without_distillation_the_same_memories_are_read_from_the_same_bank(bank):
    ours, reads = built("memory-r1"), built("no-distillation")
    assert ours.built_by == reads.built_by
    play(ours, bank)
    selected, read = ask(ours, bank), ask(reads, bank)
    assert (read.retrieved, read.scores) == (selected.retrieved, selected.scores)
    assert read.prompt_hash != selected.prompt_hash
    shown = reads.agents.answer.prompts[-1].messages[1][1]
    assert "[0]" not in shown and shown.startswith("Passages:\n8 May 2023\n- ")


def test_only_a_compact_model_selects_all_the_same():
    assert System("memory-r1", Agents(answer=llm())).distillation
    assert not Reading("no-distillation", Agents(answer=llm())).distillation
    assert Reading("no-distillation", Agents(answer=llm(style="compact"))).distillation


def test_what_is_shown_is_bounded_by_the_settings(bank):
    few = replace(built("no-distillation"), settings=Settings(k=2))
    play(few, bank)
    assert len(ask(few, bank).retrieved) == few.shown == 2
    each = replace(few, settings=Settings(per_speaker=1))
    assert len({e.speaker for e in ask(each, bank).retrieved}) == 2


def test_add_only_changes_and_deletes_nothing(bank):
    def stubborn(prompt):
        assert "New facts:" not in prompt.messages[1][1]
        return model(prompt)

    play(built("add-only", llm(stubborn)), bank)
    assert {row.op for row in bank.journal()} <= {"ADD", "NOOP"}
    assert len(bank.entries()) == len(set(texts(bank)))


def test_add_only_has_no_manager_whatever_the_options_say():
    system = open_system("add-only", Options(model=URL + "m", manager=URL + "keeper"))
    assert list(system.players.values()) == ["keeper", "rules", "m"]


def test_in_context_asks_the_model_to_manage(bank):
    player = llm()
    play(built("in-context", player), bank)
    assert any("New facts:" in prompt.messages[1][1] for prompt in player.prompts)


# Chunks


def test_turns_of_a_session_grow_into_chunks(bank):
    play(built("rag-bm25", words=13), bank)
    assert texts(bank) == [
        "[8 May 2023] Ines: I keep bees on the roof.",
        "[8 May 2023] Olaf: I paint ships. [shares a red ship]\nInes: Bye!",
        "[2 June 2023] Ines: The honey was sold in Porto.\nInes: Bye!",
    ]
    _, ships, honey = bank.entries()
    assert (ships.sources, honey.sources) == (("D1:2", "D1:3"), ("D2:1", "D2:2"))
    assert ships.speaker == "" and honey.said == JUNE_2
    assert len(bank.history(ships.id)) == 2


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=4),
    st.integers(1, 40),
)
def test_chunks_hold_every_turn_once_in_order_within_their_size(lengths, words):
    turns = [
        Turn("Ann", f"turn{s}x{t} " + "w " * (length - 1), MAY_8, f"D{s}:{t}")
        for s, session in enumerate(lengths, 1)
        for t, length in enumerate(session, 1)
    ]
    bank = Bank(RamStore(), EMBEDDER, Owner("talk"))
    play(built("rag-bm25", words=words), bank, turns)
    chunks = bank.entries()
    assert [source for chunk in chunks for source in chunk.sources] == [t.id for t in turns]
    for chunk in chunks:
        assert len({source.split(":")[0] for source in chunk.sources}) == 1
        assert len(chunk.text.split()) <= words or len(chunk.sources) == 1


def test_keywords_alone_and_the_hybrid_search_find_the_chunk(bank):
    question = replace(BEES, text="Where was the honey sold?")
    for name in ("rag-bm25", "rag-hybrid"):
        system = replace(built(name, words=8), settings=Settings(k=1))
        play(system, bank)
        assert [e.sources for e in ask(system, bank, question).retrieved] == [("D2:1",)]
    assert built("rag-bm25", words=8).built_by == built("rag-hybrid", words=8).built_by


def test_as_many_words_are_shown_as_a_memory_would_show():
    assert built("rag-bm25").shown == 15
    assert built("rag-bm25", words=256).shown == 8
    assert built("rag-bm25", words=100_000).shown == 1
    assert built("rag-bm25", llm(style="compact")).shown == 4
    assert replace(built("rag-bm25"), settings=Settings(k=7)).shown == 7


def test_chunks_are_shown_with_their_dates_and_speakers(bank):
    system = built("rag-hybrid")
    play(system, bank)
    ask(system, bank)
    shown = system.agents.answer.prompts[-1].messages[1][1]
    assert shown.startswith(
        'Passages:\n8 May 2023\n- "Ines: I keep bees on the roof."\n'
        '- "Olaf: I paint ships. [shares a red ship]"\n- "Ines: Bye!"\n2 June 2023\n'
    )


def test_what_is_no_memory_is_in_no_chunk(bank):
    turns = [
        Turn("tool", "a listing", MAY_8, "D1:1", role="tool"),
        Turn("Ann", "  ", MAY_8, "D1:2"),
        Turn("Ann", "<recalled-memories>old</recalled-memories> new", MAY_8, "D1:3"),
    ]
    for name in ("rag-bm25", "full-context"):
        play(built(name), bank, turns)
        assert states(bank) == ["done"] * 3
        assert [text.removeprefix("[8 May 2023] ") for text in texts(bank)] == ["Ann: new"]


# The whole transcript


def test_the_full_context_shows_every_turn_in_order_under_its_date(bank):
    system = built("full-context")
    play(system, bank)
    answer = ask(system, bank)
    shown = system.agents.answer.prompts[-1].messages[1][1]
    assert shown == (
        'Passages:\n8 May 2023\n- "Ines: I keep bees on the roof."\n'
        '- "Olaf: I paint ships. [shares a red ship]"\n- "Ines: Bye!"\n'
        '2 June 2023\n- "Ines: The honey was sold in Porto."\n- "Ines: Bye!"\n\n'
        'Question: "What does Ines keep on the roof?"'
    )
    assert answer.retrieved == () and system.shown is None


def test_a_context_that_is_too_small_is_no_wrong_answer(bank):
    def small(prompt):
        raise ModelUnavailable("the prompt has 30,000 tokens and the model takes 4,096")

    system = built("full-context", llm(small))
    play(system, bank)
    with pytest.raises(ModelUnavailable, match="30,000"):
        ask(system, bank)


# The running summary


def test_the_summarys_prompt_is_the_reviewed_one():
    assert_golden("rewrite_instruct", rewrite.render("Mia runs.\nBo cooks.", TALK, 300))


def test_the_summary_is_rewritten_at_the_end_of_a_session(bank):
    summaries = llm(["Ines keeps bees.", "Ines keeps bees.\n\nShe sold honey. "])
    system = built("rewrite", summaries)
    play(system, bank, TALK[:2] + TALK[3:4])
    [summary] = bank.entries()
    assert summary.text == "Ines keeps bees.\nShe sold honey."
    assert [version.text for version in bank.history(summary.id)][0] == "Ines keeps bees."
    assert "D1" not in summaries.prompts[1].text
    assert '- "Ines keeps bees."' in summaries.prompts[1].text
    assert [prompt.text.count("I paint ships") for prompt in summaries.prompts] == [1, 0]


def test_a_long_session_is_summarised_on_the_way(bank):
    turns = [Turn("Ann", "five words are said here", MAY_8, f"D1:{i}") for i in range(1, 8)]
    player = llm(lambda prompt: "short")
    play(built("rewrite", player, words=17), bank, turns)
    assert [prompt.text.count("five words") for prompt in player.prompts] == [3, 3, 1]


def test_a_run_that_was_killed_summarises_the_same_turns_together(bank):
    """All seven turns were received, and none was taken in: as a kill may leave it."""
    turns = [Turn("Ann", "five words are said here", MAY_8, f"D1:{i}") for i in range(1, 8)]
    for turn in turns:
        bank.store.add_message(Message(new_id(), bank.owner, turn, MAY_8))
    player = llm(lambda prompt: "short")
    play(built("rewrite", player, words=17), bank, turns)
    assert [prompt.text.count("five words") for prompt in player.prompts] == [3, 3, 1]


def said_of(system):
    return system.agents.answer.prompts[-1].messages[1][1]


def test_turns_that_are_not_in_the_summary_are_read_beside_it(bank):
    system = built("rewrite")
    play(system, bank, TALK)
    mid = Turn("Olaf", "I moved to Oslo.", JUNE_2 + timedelta(days=1), "D3:1")
    later = Turn("Olaf", "It is cold.", JUNE_2 + timedelta(days=1), "D3:2")
    play(system, bank, (*TALK, mid, later)[:-1] + (later,))
    assert states(bank) == ["done"] * 7
    message = Message(new_id(), bank.owner, replace(mid, id="D4:1"), MAY_8)
    bank.store.add_message(message)
    drive([system.remember(bank, mid, message, context=(), last=False)], system.agents)
    assert ask(system, bank).retrieved == ()
    assert states(bank)[-1] == "pending"
    assert said_of(system).startswith("Passages:\nno date\n- ")
    assert '3 June 2023\n- "Olaf: I moved to Oslo."\n\n' in said_of(system)


@pytest.mark.parametrize("bad", ["", "<think>never closed", "```\n```"])
def test_a_summary_that_cannot_be_used_leaves_the_old_one_and_loses_nothing(bank, bad):
    player = llm(["old", bad, bad, "all", "**Answer:** bees"])
    system = built("rewrite", player)
    play(system, bank, TALK)
    assert states(bank) == ["done"] * 3 + ["deferred"] * 2
    assert texts(bank) == ["old"]
    [first, _] = bank.store.messages(bank.owner, "deferred")
    assert "expected a summary" in first.error
    more = Turn("Olaf", "I moved to Oslo.", JUNE_2, "D3:1")
    play(system, bank, (*TALK, more))
    assert states(bank) == ["done"] * 6 and texts(bank) == ["all"]
    assert "honey" in player.prompts[3].text and "Oslo" in player.prompts[3].text


def test_a_summary_that_was_cut_off_is_not_taken(bank):
    with pytest.raises(MalformedReply, match="cut off at 'Ines keeps'"):
        rewrite.parse(Completion("Ines keeps", finished=False))


def test_a_model_that_never_writes_a_summary_does_not_read_everything_each_time(bank):
    player = llm(lambda prompt: "**Answer:** bees" if "Passages:" in prompt.text else "")
    turns = [Turn("Ann", "five words are said here", MAY_8, f"D{i}:1") for i in range(1, 20)]
    system = built("rewrite", player, words=12)
    play(system, bank, turns)
    assert states(bank) == ["deferred"] * 19
    assert max(prompt.text.count("five words") for prompt in player.prompts) == 9
    ask(system, bank)
    assert said_of(system).count("five words") == 8


def test_a_session_in_which_nothing_is_said_asks_nobody(bank):
    play(built("rewrite", llm([])), bank, [Turn("Ann", " ", MAY_8, "D1:1")])
    assert states(bank) == ["done"] and not bank.entries()


# Names and options


@pytest.mark.parametrize("name", OURS)
def test_a_name_opens_the_system_it_says(name):
    options = Options(model=URL + "m", reranker="http://localhost:9/rerank#r")
    system = open_system(name, options)
    assert type(system) is type(built(name))
    assert system.name == name and kind_of(name) == name
    assert system.agents.answer.name == "m"
    assert system.players.keys() >= {"extract", "manage", "answer"}
    system.close()


def test_memory_r1_is_a_name_and_so_is_a_model():
    rules = open_system("memory-r1")
    assert rules.agents == Agents() and rules.built_by == open_system("rules").built_by
    system = open_system("memory-r1", Options(manager=URL + "keeper", answer=URL + "speaker"))
    assert list(system.players.values()) == ["keeper", "keeper", "speaker"]
    assert open_system(URL + "m").players["manage"] == "m"
    assert kind_of(URL + "m") == kind_of("tiny") == "memory-r1"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rag-bm25", {}, "needs a model that answers; add for instance  --answer tiny-base"),
        ("full-context", {"manager": URL + "m"}, "--answer tiny-base"),
        ("no-distillation", {}, "a model that answers"),
        ("in-context", {"answer": URL + "m"}, "reads the turns; add for instance  --manager"),
        ("add-only", {"answer": URL + "m"}, "reads the turns"),
        ("rewrite", {"answer": URL + "m"}, "follows instructions; add .* --manager openai:"),
        ("rewrite", {"model": "tiny-base"}, "'tiny-base' knows only the prompts"),
        ("rewrite", {"manager": URL + "m"}, "a model that answers"),
        ("rerank", {"model": URL + "m"}, "needs a reranker; add for instance  --reranker"),
        ("rag-bm25?word=3", {"answer": URL + "m"}, "unknown setting 'word'.*mean 'words'"),
        ("rag-bm25?words=0", {"answer": URL + "m"}, "'words' .* is '0'; expected a number"),
        ("rag-bm25?words=", {"answer": URL + "m"}, "expected a number"),
        ("full-context?x=1", {"answer": URL + "m"}, "unknown setting 'x'.*it has none"),
        ("rag-bm52", {}, "no system is called 'rag-bm52'; did you mean 'rag-bm25'"),
        ("rag", {}, "did you mean 'rag-bm25'"),
        ("full", {}, "did you mean 'full-context'"),
        ("./nowhere", {}, "no model is called"),
    ],
)
def test_what_cannot_be_played_says_what_to_add(name, options, message):
    with pytest.raises(ConfigError, match=message):
        open_system(name, Options(**options))


def test_settings_stand_in_the_name():
    options = Options(model=URL + "m", reranker="http://localhost:9/rerank#r")
    assert open_system("rag-bm25?words=256", options).words == 256
    assert open_system("rerank?keep=3", options).keep == 3
    summary = open_system("rewrite?words=900&summary=200", options)
    assert (summary.words, summary.summary) == (900, 200)
    assert summary.name == "rewrite?words=900&summary=200" and kind_of(summary.name) == "rewrite"


def test_banks_are_shared_by_those_that_build_the_same():
    names = {name: built(name).built_by for name in OURS}
    memory = {"memory-r1", "no-distillation", "rerank", "in-context"}
    assert len({names[name] for name in memory}) == 1
    assert len(set(names.values())) == 7  # and add-only, whose agents differ too
    assert built("rag-bm25", words=64).built_by != names["rag-bm25"]
    assert built("rewrite", words=64).built_by != built("rewrite", summary=64).built_by


def test_only_what_matters_to_the_bank_tells_its_builders_apart():
    player = llm()
    models = Agents(player, player, player)

    def with_settings(agents=models, **fields):
        return System("memory-r1", agents, Settings(**fields)).built_by

    assert with_settings(k=5) == with_settings(per_speaker=3) == with_settings(related=10)
    assert with_settings(related=4) != with_settings()
    assert with_settings(context=0) != with_settings()
    # Rules are shown no related entries, and no earlier turns.
    assert with_settings(Agents(), related=4, context=0) == with_settings(Agents())


def test_a_turn_that_somebody_else_processed_changes_nothing(bank):
    message = Message(new_id(), bank.owner, TALK[0], MAY_8)
    bank.store.add_message(message)
    bank.store.set_message(replace(message, state="done", since=MAY_8))
    with pytest.raises(StoreError, match="processed by somebody else"):
        base.settle(bank, [message], [Add("twice")])
    assert not bank.entries() and not bank.journal()
