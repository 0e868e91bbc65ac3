"""mem0 and LangMem as systems: the worker's protocol with a toy package, then the real ones."""

import json
import os
import signal
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_server import Server, completion

import memory_r1
from memory_r1.bank import Bank
from memory_r1.bench.plan import Plan
from memory_r1.bench.run import run
from memory_r1.bench.systems import peers, peers_worker
from memory_r1.bench.systems.base import Options
from memory_r1.bench.systems.peers import PEERS, PeerManager, PeerSystem, open_peer
from memory_r1.bench.systems.peers_process import Model, Worker
from memory_r1.config import Settings
from memory_r1.data import Dialogue, Question, Session, jsonl
from memory_r1.embed import LocalEmbedder
from memory_r1.errors import ConfigError, DataError, ModelUnavailable
from memory_r1.llm import Agents, ScriptedLLM, drive
from memory_r1.store import open_store
from memory_r1.types import Message, Owner, Turn

PEER_PYTHON = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
EMBEDDER = LocalEmbedder()
MAY = datetime(2023, 5, 8, 13, 56, tzinfo=UTC)
KEY = "sk-not-for-anybody"

TOY = '''
import json, os, sys, threading, time
from collections import Counter
from memory_r1.bench.systems.peers_worker import serve

MEETING = threading.Barrier(4)

class Toy:
    """What a turn says after its speaker: NAME is TEXT, forget NAME, or a mishap."""
    model_errors = (ConnectionError,)
    def __init__(self, asked):
        self.about = f"toy 1 asking {asked.model}"
        print("a package prints what it likes")
    def open(self, folder, embedder):
        if (folder / "broken").exists():
            raise OSError("someone sits on it")
        return Memories(folder / "toy.json")

class Memories:
    def __init__(self, path):
        self.path, self.usage = path, Counter()
        self.kept = json.loads(path.read_text()) if path.exists() else {}
    def add(self, turn):
        os.write(1, b"more noise\\n")
        words = turn["text"].split(": ", 1)[1]
        self.usage += Counter(calls=2, prompt_tokens=20, completion_tokens=2)
        match words.split(" ", 1):
            case ["forget", name]:
                self.kept.pop(name)
                changes = [{"op": "DELETE", "id": name, "text": ""}]
            case ["wait", seconds]:
                changes = []
                time.sleep(float(seconds))
            case ["meet"]:
                changes = []
                MEETING.wait(30)
            case ["stumble"]:
                raise LookupError("the reply made no sense")
            case ["offline"]:
                raise RuntimeError("no memories today") from ConnectionError("refused")
            case ["die"]:
                print("the last words", os.environ["OPENAI_API_KEY"], file=sys.stderr)
                os._exit(3)
            case _:
                name, _, text = words.partition(" is ")
                op = "UPDATE" if name in self.kept else "ADD"
                self.kept[name] = {"text": words, "turn": turn["id"], "said": turn["said"]}
                changes = [{"op": op, "id": name, "text": words}]
        self.path.write_text(json.dumps(self.kept))
        return changes
    def search(self, query, k):
        if query == "crash":
            raise LookupError("no such query")
        return [
            {"id": name, "text": one["text"], "sources": [one["turn"]], "said": one["said"],
             "score": 1 / (1 + place)}
            for place, (name, one) in enumerate(self.kept.items())
        ][:k]
    def close(self):
        pass

serve(Toy)
'''


def as_python(folder, script):
    """An executable that plays the given script, whatever module it is asked to run."""
    folder.mkdir(exist_ok=True)
    (folder / "worker.py").write_text(script)
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder / "worker.py"}"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def toy_python(tmp_path_factory):
    return as_python(tmp_path_factory.mktemp("toy"), TOY)


MODEL = Model("m", "http://127.0.0.1:9/v1", KEY)


@contextmanager
def new_worker(python, **bounds):
    worker = Worker(PEERS["mem0"], python, MODEL, **bounds)
    try:
        yield worker
    finally:
        worker.close()


@pytest.fixture(scope="module")
def toy(toy_python):
    """A worker for all tests that leave it alive."""
    with new_worker(toy_python) as worker:
        yield worker


def played_by(worker, *replies):
    manager = PeerManager(MODEL, worker)
    agents = Agents(manage=manager, answer=ScriptedLLM(list(replies)))
    return PeerSystem("mem0", agents, manager=manager, worker=worker, model=MODEL)


@pytest.fixture
def new_bank(tmp_path):
    """A function that opens the bank of a dialogue, as the runner does."""
    stores = []

    def opened(name="talk"):
        stores.append(open_store(tmp_path / f"{name}.db"))
        return Bank(stores[-1], EMBEDDER, Owner(name))

    yield opened
    for store in stores:
        store.close()


def told(number, text, speaker="Ann", said=MAY, **more):
    return Turn(speaker, text, said, f"D1:{number}", **more)


def remembering(system, bank, turn, context=()):
    """The conversation of one turn, and its message, stored before as the runner does."""
    known = [one for one in bank.store.messages(bank.owner) if one.turn.id == turn.id]
    message = known[0] if known else Message(f"m{turn.id}", bank.owner, turn, MAY)
    if not known:
        bank.store.add_message(message)
    return system.remember(bank, turn, message, context=context, last=False)


def remember(system, bank, *turns, context=()):
    for turn in turns:
        drive([remembering(system, bank, turn, context)], system.agents)


def ask(system, bank, text="What is remembered?"):
    question = Question("q1", bank.owner.user_id, text, "x", ("D1:1",), 4)
    (answer,) = drive([system.answer(bank, question)], system.agents)
    return answer


def texts(bank):
    return [entry.text for entry in bank.entries()]


def states(bank):
    return [message.state for message in bank.store.messages(bank.owner)]


# the protocol, with a toy for a package


def test_what_a_package_remembers_is_in_the_bank_with_its_turns(toy, new_bank):
    bank = new_bank()
    system = played_by(toy, "**Answer:** the cello")
    remember(
        system,
        bank,
        told(1, "music is the oboe"),
        told(2, "pet is a dog"),
        told(3, "music is the cello"),
        told(4, "forget pet"),
    )
    answer = ask(system, bank)
    assert system.built_by == "toy 1 asking m http://127.0.0.1:9/v1#m"
    assert not system.shares_banks
    assert not system.rehearsable
    (music,) = bank.entries()
    assert (music.text, music.sources, music.said) == (
        "music is the cello",
        ("D1:1", "D1:3"),
        MAY,
    )
    assert [row.op for row in bank.journal()] == ["ADD", "ADD", "UPDATE", "DELETE"]
    assert {row.turn_id for row in bank.journal(music.id)} == {"mD1:1", "mD1:3"}
    assert states(bank) == ["done"] * 4
    assert answer.text == "the cello"
    assert [entry.id for entry in answer.retrieved] == [music.id]
    assert answer.scores == (1.0,)
    assert set(answer.latency) == {"search", "answer"}


def test_what_the_packages_own_calls_took_is_told_with_the_turn(toy, new_bank):
    bank = new_bank()
    system = played_by(toy)
    conversation = remembering(system, bank, told(1, "music is the oboe"))
    (reply,) = system.agents.manage.complete([next(conversation).prompt])
    with pytest.raises(StopIteration):
        conversation.send(reply)
    assert system.players == {"extract": "m", "manage": "m", "answer": "scripted"}
    assert (reply.prompt_tokens, reply.completion_tokens) == (20, 2)
    (message,) = bank.store.messages(bank.owner)
    assert message.usage["calls"] == 2
    assert message.usage["prompt_tokens"] == 20


def test_dialogues_in_step_do_not_wait_for_each_other(toy, new_bank):
    banks = [new_bank(name) for name in "abcd"]
    system = played_by(toy)
    drive([remembering(system, bank, told(1, "meet")) for bank in banks], system.agents)
    assert [states(bank) for bank in banks] == [["done"]] * 4


def test_what_nobody_said_is_not_told_to_the_package(toy, new_bank):
    bank = new_bank()
    system = played_by(toy)
    remember(system, bank, told(1, "  "), told(2, "die", role="system"))
    assert states(bank) == ["done", "done"]


def test_a_turn_the_package_took_in_before_a_kill_is_not_told_to_it_again(
    toy, toy_python, new_bank
):
    """The worker had it, and we were killed before the bank knew."""
    bank = new_bank()
    system = played_by(toy)
    call = next(remembering(system, bank, told(1, "music is the oboe")))
    (first,) = system.agents.manage.complete([call.prompt])
    assert texts(bank) == []
    with new_worker(toy_python) as worker:
        system = played_by(worker, "**Answer:** oboe")
        (again,) = system.agents.manage.complete([call.prompt])
        assert again == first  # with what it took, which nobody has counted yet
        remember(system, bank, told(1, "music is the oboe"))
        assert ask(system, bank).retrieved[0].sources == ("D1:1",)
    assert texts(bank) == ["music is the oboe"]
    assert [row.op for row in bank.journal()] == ["ADD"]


def test_a_memory_that_the_bank_does_not_know_is_found_all_the_same(
    toy, toy_python, new_bank, tmp_path
):
    """Its worker was killed between the package's write and its own note."""
    bank = new_bank()
    system = played_by(toy)
    remember(system, bank, told(1, "music is the oboe"))
    kept = tmp_path / "talk.mem0" / "toy.json"
    lost = {"text": "pet is a dog", "turn": "D1:2", "said": MAY.isoformat()}
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"pet": lost}))
    with new_worker(toy_python) as worker:
        system = played_by(worker, "**Answer:** a dog")
        found = ask(system, bank).retrieved
    assert sorted(entry.text for entry in found) == ["music is the oboe", "pet is a dog"]
    assert {entry.sources for entry in found} == {("D1:1",), ("D1:2",)}


def test_a_line_torn_by_a_kill_is_a_turn_to_take_in_again(toy, toy_python, new_bank, tmp_path):
    bank = new_bank()
    system = played_by(toy)
    remember(system, bank, told(1, "music is the oboe"))
    done = tmp_path / "talk.mem0" / "done.jsonl"
    with done.open("a") as file:
        file.write('["D1:2", [{"op": "AD')
    with new_worker(toy_python) as worker:
        system = played_by(worker)
        remember(system, bank, told(2, "pet is a dog"))
    assert texts(bank) == ["music is the oboe", "pet is a dog"]
    assert [json.loads(line)[0] for line in done.read_text().splitlines()] == ["D1:1", "D1:2"]


def test_what_the_package_fails_at_is_deferred_with_the_reason_and_the_run_goes_on(toy, new_bank):
    bank = new_bank()
    system = played_by(toy)
    remember(system, bank, told(1, "stumble"), told(2, "pet is a dog"))
    assert states(bank) == ["deferred", "done"]
    failed = bank.store.messages(bank.owner, "deferred")[0]
    assert failed.error == "LookupError: the reply made no sense"
    assert failed.usage["calls"] == 2
    assert texts(bank) == ["pet is a dog"]


def test_a_package_that_fails_at_every_turn_ends_the_run(toy, new_bank, monkeypatch):
    monkeypatch.setattr(peers, "FAILURES", 3)
    bank = new_bank()
    system = played_by(toy)
    remember(system, bank, told(1, "stumble"), told(2, "stumble"))
    with pytest.raises(ModelUnavailable, match=r"3 turns in a row.*made no sense.*tool calls"):
        remember(system, bank, told(3, "stumble"))
    assert states(bank)[2] == "pending"


def test_a_model_that_is_gone_leaves_the_turn_pending(toy, new_bank):
    bank = new_bank()
    system = played_by(toy)
    with pytest.raises(ModelUnavailable, match="no memories today.*run the same again"):
        remember(system, bank, told(1, "offline"))
    remember(system, bank, told(2, "pet is a dog"))
    assert states(bank) == ["pending", "done"]


def test_a_search_that_fails_is_no_wrong_answer(toy, new_bank):
    bank = new_bank()
    system = played_by(toy)
    with pytest.raises(ModelUnavailable, match="no such query"):
        ask(system, bank, "crash")


def test_a_worker_that_dies_leaves_its_last_words_and_no_key(toy_python, new_bank):
    bank = new_bank()
    with new_worker(toy_python) as worker:
        system = played_by(worker)
        with pytest.raises(ModelUnavailable) as death:
            remember(system, bank, told(1, "die"))
        assert "exit status 3" in str(death.value)
        assert "the last words [key]" in str(death.value)
        assert KEY not in str(death.value)
        with pytest.raises(ModelUnavailable, match="has ended"):
            remember(system, bank, told(2, "pet is a dog"))


def test_a_worker_that_says_nothing_for_too_long_is_stopped(toy_python, new_bank):
    bank = new_bank()
    with new_worker(toy_python, patience=0.5) as worker:
        system = played_by(worker)
        with pytest.raises(ModelUnavailable, match=r"did not reply for 0\.5 seconds"):
            remember(system, bank, told(1, "wait 30"))
        with pytest.raises(ModelUnavailable, match="has ended"):
            remember(system, bank, told(2, "pet is a dog"))
    assert states(bank) == ["pending", "pending"]


def test_files_that_cannot_be_opened_end_the_run(toy, new_bank, tmp_path):
    bank = new_bank()
    system = played_by(toy)
    (tmp_path / "talk.mem0").mkdir()
    (tmp_path / "talk.mem0" / "broken").touch()
    with pytest.raises(ModelUnavailable, match="someone sits on it"):
        remember(system, bank, told(1, "pet is a dog"))
    assert states(bank) == ["pending"]


def test_an_embedder_that_the_worker_does_not_have_ends_the_run(toy, tmp_path):
    class Other(LocalEmbedder):
        name = "other"

    store = open_store(tmp_path / "talk.db")
    with pytest.raises(ModelUnavailable, match="unknown embedder 'other'"):
        ask(played_by(toy), Bank(store, Other(), Owner("talk")))
    store.close()


def test_a_bank_without_the_packages_files_is_refused(toy, new_bank, tmp_path):
    bank = new_bank()
    system = played_by(toy)
    remember(system, bank, told(1, "pet is a dog"))
    (tmp_path / "talk.mem0").rename(tmp_path / "elsewhere")
    system = played_by(toy)
    with pytest.raises(DataError, match=r"talk\.mem0 is missing"):
        ask(system, bank)


def test_a_bank_of_another_version_is_refused(toy, new_bank):
    bank = new_bank()
    system = played_by(toy)
    remember(system, bank, told(1, "pet is a dog"))
    other = replace(system, model=Model("other", system.model.url))
    with pytest.raises(ConfigError, match=r"filled by toy 1.*#m, and this is .*#other"):
        remember(other, bank, told(2, "pet is a cat"))


def test_a_bank_in_ram_has_no_place_for_the_packages_files(toy):
    store = open_store("ram:")
    system = played_by(toy)
    with pytest.raises(ConfigError, match="SQLite file"):
        ask(system, Bank(store, EMBEDDER, Owner("talk")))


@settings(max_examples=40)
@given(st.lists(st.text(), max_size=4))
def test_any_words_reach_the_package_and_come_back(toy, tmp_path_factory, words):
    folder = str(tmp_path_factory.mktemp("any"))
    adds = [
        {
            "do": "add",
            "folder": folder,
            "embedder": EMBEDDER.name,
            "turn": {"id": f"D1:{i}", "text": f"Ann: {i} is {text}", "said": None},
        }
        for i, text in enumerate(words)
    ]
    replies = toy.ask(adds)
    search = {"do": "search", "folder": folder, "embedder": EMBEDDER.name, "query": "x", "k": 9}
    (found,) = toy.ask([search])
    expected = [f"{i} is {text}" for i, text in enumerate(words)]
    assert [reply["changes"][0]["text"] for reply in replies] == expected
    assert [one["text"] for one in found["found"]] == expected


def test_the_runner_plays_a_package_like_any_system(toy, tmp_path):
    turns = [told(1, "music is the oboe"), told(2, "stumble"), told(3, "pet is a dog", "Ben")]
    question = Question("q1", "talk", "Which pet?", "a dog", ("D1:3",), 4)
    talk = Dialogue("talk", ("Ann", "Ben"), (Session(1, MAY, tuple(turns)),), (question,))
    data = tmp_path / "talk.jsonl"
    data.write_text(jsonl.dump([talk]))
    plan = Plan("jsonl", data, tmp_path / "out", system="mem0", split="all")
    scores = run(plan, played_by(toy, "**Answer:** a dog"), cache=tmp_path / "cache")
    assert scores["overall"]["em"] == scores["overall"]["recall@60"] == 100.0
    assert scores["bank"]["entries"] == 2
    assert scores["bank"]["deferred_turns"] == 1
    assert scores["cost"]["prompt_tokens"] >= 60
    assert not list((tmp_path / "cache").glob("banks/*"))
    assert run(plan, played_by(toy), cache=tmp_path / "cache") == scores  # nothing is asked again


def test_dialogues_that_were_long_not_used_are_closed_and_opened_again(monkeypatch, tmp_path):
    monkeypatch.setattr(peers_worker, "OPEN", 2)
    opened, said = [], []

    class Counting:
        model_errors = ()

        def open(self, folder, embedder):
            opened.append(folder.name)
            return self

        usage = Counter()

        def search(self, query, k):
            return []

        def close(self):
            opened.append("closed")

    server = peers_worker._Server(Counting(), 1, said.append)
    for number, name in enumerate("abca"):
        (tmp_path / name).mkdir(exist_ok=True)
        request = {"folder": str(tmp_path / name), "embedder": EMBEDDER.name}
        server.take({"n": number, "do": "search", "query": "x", "k": 1, **request})
        while len(said) <= number:
            time.sleep(0.001)
    assert opened == ["a", "b", "closed", "c", "closed", "a"]
    server.end()
    assert [reply["n"] for reply in said] == [0, 1, 2, 3]


# what can't be played


def test_a_python_that_is_not_there_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"can't be run \(No such file.*make peers"):
        Worker(PEERS["mem0"], str(tmp_path / "python"), Model("m", "http://127.0.0.1:9/v1"))


@pytest.mark.parametrize("name", ["mem0", "langmem"])
def test_a_python_without_the_package_is_refused_with_what_to_do(name):
    with pytest.raises(ConfigError, match=rf"{name}.*pip install memory-r1 {name}"):
        Worker(PEERS[name], sys.executable, Model("m", "http://127.0.0.1:9/v1"))


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("raise SystemExit('No module named memory_r1')", r"exit status 1.*named memory_r1"),
        ("print('Welcome!')\ninput()", "Welcome!.*which is no reply"),
        (
            "import json; n = json.loads(input())['n']\n"
            "print(json.dumps({'n': n, 'about': 'x', 'memory_r1': '0.0.1'}), flush=True); input()",
            rf"has memory-r1 0\.0\.1, and this is {memory_r1.__version__}",
        ),
        ("import time; time.sleep(60)", "said nothing for 1 seconds"),
    ],
)
def test_a_worker_that_does_not_begin_well_is_refused(tmp_path, script, told):
    python = as_python(tmp_path, script)
    start = 1.0 if "sleep" in script else 60.0
    with pytest.raises(ConfigError, match=f"(?s){told}.*make peers"):
        Worker(PEERS["mem0"], python, MODEL, start=start)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (Options(), "over HTTP.*got none.*--model openai:MODEL"),
        (Options(model="tiny-base"), "got tiny-base.*has to be served"),
        (Options(manager="http://127.0.0.1:9/v1#m"), "--system mem0 needs a model that answers"),
        (Options(model="http://127.0.0.1:9/v1"), "which model"),
        (
            Options(model="http://127.0.0.1:9/v1#m", settings=Settings(per_speaker=30)),
            "without --per-speaker",
        ),
        (Options(model="http://127.0.0.1:9/v1#m"), "--peer-python"),
    ],
)
def test_options_that_a_package_cannot_be_played_with_are_refused(
    options, told, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=told):
        open_peer("mem0", options)


def test_settings_in_the_name_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="unknown setting 'k'"):
        open_peer("mem0?k=3", Options(model="http://127.0.0.1:9/v1#m"))


def test_the_service_is_read_from_the_models_name(toy_python, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1/")
    options = Options(
        manager="http://127.0.0.1:7/v1?concurrency=3#small",
        answer="openai:large",
        peer_python=toy_python,
    )
    system = open_peer("langmem", options)
    system.close()
    assert system.model == Model("small", "http://127.0.0.1:7/v1", KEY, 3)
    assert system.players == {"extract": "small", "manage": "small", "answer": "large"}
    assert system.built_by.endswith("http://127.0.0.1:7/v1#small context=4")


# the real packages


def said_by(body):
    """The new message of a prompt of either package."""
    text = body["messages"][-1]["content"]
    if "## New Messages" in text:
        text = text.partition("## New Messages")[2].partition("##")[0]
    return [line for line in text.splitlines() if "] Ann: " in line or "] Ben: " in line][-1]


def tool(name, **arguments):
    call = {"name": name, "arguments": json.dumps(arguments)}
    message = {"role": "assistant", "content": None}
    message["tool_calls"] = [{"id": "call1", "type": "function", "function": call}]
    return {"message": message, "finish_reason": "tool_calls"}


def scripted(body):
    """A model for all: it keeps what follows "I " as it is, and answers with what it was shown."""
    whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    last = body["messages"][-1]["content"]
    if "Passages" in last:
        shown = [line for line in last.splitlines() if line.startswith("- ")]
        word = shown[0].split()[-1].strip('"')
        return 200, whole | completion(f"**Answer:** {word}")
    line = said_by(body)
    speaker, text = line.partition("] ")[2].split(": ", 1)
    kept = f"{speaker} {text.removeprefix('I ')}"
    if "tools" not in body:
        return 200, whole | completion(json.dumps({"memory": [{"id": "0", "text": kept}]}))
    known = body["messages"][0]["content"]
    if "instance id=" in known:
        first = known.partition("instance id=")[2].split()[0]
        patch = {"op": "replace", "path": "/content", "value": kept}
        choice = tool("PatchDoc", json_doc_id=first, planned_edits="", patches=[patch])
    else:
        choice = tool("Memory", content=kept)
    usage = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14}
    return 200, whole | {"choices": [{"index": 0, **choice}], "usage": usage}


@pytest.fixture
def server():
    server = Server()
    server.respond = scripted
    yield server
    server.close()


@contextmanager
def real(name, server):
    if not PEER_PYTHON.exists():
        pytest.skip(f"{PEER_PYTHON} is not there: run  make peers")
    system = open_peer(name, Options(model=f"{server.url}#m", peer_python=str(PEER_PYTHON)))
    try:
        yield system
    finally:
        system.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("mem0", "mem0ai 2.2.1", ["Ann play the oboe", "Ann moved to Porto"]),
        ("langmem", "langmem 0.0.30", ["Ann moved to Porto"]),
    ],
)
def test_the_real_package_remembers_two_dialogues_and_goes_on_after_a_kill(
    name, version, expected, server, new_bank
):
    ann, ben = new_bank("conv 1.a"), new_bank("conv-2")
    oboe, dog = told(1, "I play the oboe"), told(1, "I have a dog", "Ben")
    moved = told(2, "I moved to Porto", said=datetime(2023, 6, 1, tzinfo=UTC))
    with real(name, server) as system:
        assert system.worker.about.startswith(version)
        drive([remembering(system, ann, oboe), remembering(system, ben, dog)], system.agents)
        assert [texts(ann), texts(ben)] == [["Ann play the oboe"], ["Ben have a dog"]]
        assert "[8 May 2023] Ann: I play the oboe" in json.dumps(server.bodies)
        asked = {json.dumps(body.get("temperature")) for body in server.bodies}
        assert asked == {"0.0"}
        # The worker is killed while the model is being asked.
        pid, fine = system.worker._process.pid, server.respond
        server.respond = lambda body: os.kill(pid, signal.SIGKILL) or fine(body)
        with pytest.raises(ModelUnavailable, match="exit status -9"):
            remember(system, ann, moved, context=[oboe])
        server.respond = fine
    with real(name, server) as system:
        calls = len(server.bodies)
        remember(system, ann, moved, context=[oboe])
        assert len(server.bodies) == calls + 1
        (message,) = [m for m in ann.store.messages(ann.owner) if m.turn == moved]
        assert {name: message.usage[name] for name in ("calls", "prompt_tokens")} == {
            "calls": 1,
            "prompt_tokens": 11,
        }
        answers = [ask(system, bank, "Ann and Ben: the oboe, a dog, Porto") for bank in (ann, ben)]
    assert texts(ann) == expected
    assert texts(ben) == ["Ben have a dog"]
    assert [len(answer.retrieved) for answer in answers] == [len(expected), 1]
    assert answers[1].text == "dog"
    assert answers[1].retrieved[0].sources == ("D1:1",)
    assert answers[0].retrieved[-1].sources[-1] == "D1:2"
    assert answers[0].retrieved[-1].said == moved.said
    assert [states(ann), states(ben)] == [["done", "done"], ["done"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mem0", "langmem"])
def test_a_real_package_whose_model_is_refused_or_gone_loses_nothing(name, server, new_bank):
    bank = new_bank()
    with real(name, server) as system:
        remember(system, bank, told(1, "I play the oboe"))
        server.respond = lambda body: (400, {"error": {"message": f"no tools here, {KEY}"}})
        with pytest.raises(ModelUnavailable, match="no tools here"):
            remember(system, bank, told(2, "I moved to Porto"))
        asked = len(server.bodies)
        server.http.socket.close()  # nobody listens any more
        server.http.shutdown()
        with pytest.raises(ModelUnavailable, match="Connection error"):
            remember(system, bank, told(2, "I moved to Porto"))
        assert asked == 2  # a refusal is not argued with
    assert states(bank) == ["done", "pending"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mem0", "langmem"])
def test_a_reply_that_makes_no_sense_is_the_packages_to_deal_with(name, server, new_bank):
    bank = new_bank()
    with real(name, server) as system:
        whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        server.respond = lambda body: (200, whole | completion("I'd rather not."))
        remember(system, bank, told(1, "I play the oboe"))
    assert texts(bank) == []
    assert states(bank) == ["done"]
