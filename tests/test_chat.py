"""memory-r1 chat: lines in, replies out, and what was said is remembered."""

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from model_server import Server, chunk, chunks, completion
from typer.testing import CliRunner

from memory_r1 import Memory
from memory_r1.llm.openai import OpenAILLM
from memory_r1.serve.cli import app
from memory_r1.types import Owner


@pytest.fixture
def talk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("USER", "STORE", "LLM", "EMBEDDER"):
        monkeypatch.delenv(f"MEMORY_R1_{name}", raising=False)

    def talk(*lines, options=(), code=0):
        result = CliRunner().invoke(app, ["chat", *options], input="\n".join(lines))
        assert result.exit_code == code, result.output + repr(result.exception)
        return result

    return talk


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def facts(text, quote):
    return f'{{"facts": [{{"text": "{text}", "quote": "{quote}", "when": ""}}]}}'


def remembered():
    with Memory("memory.db") as memory:
        return [entry.text for entry in memory.list(user_id="me")]


def test_a_line_is_answered_from_the_lines_before(talk):
    said = talk("I moved to Lisbon.", "", "Where did I move to?")
    assert said.stdout.splitlines() == ["not mentioned", "I moved to Lisbon."]
    assert "ADD" in said.stderr and "used  [" in said.stderr
    assert len(remembered()) == 2


def test_commands_show_and_take_back(talk):
    said = talk("I have a cat", "/memories", "/undo", "/memories", "/undo", "/what?", "/quit", "No")
    reply, listed, undone = said.stdout.splitlines()
    assert "I have a cat" in listed and "UNDO" in undone
    assert "is empty" in said.stderr and "nothing to take back" in said.stderr
    assert (
        "there is no command /what?\n/memories   the newest" in said.stderr and remembered() == []
    )


def test_a_model_is_shown_the_memories_and_what_was_said_before(talk, server):
    replies = iter(
        [
            "<think>who?</think>Nice to meet you.",
            facts("Kim plays the oboe", "I play the oboe"),
            '{"operations": [{"op": "ADD", "text": "Kim plays the oboe"}]}',
            "The oboe.",
            '{"facts": []}',
        ]
    )
    server.respond = lambda body: (200, completion(next(replies)))
    said = talk("I play the oboe", "What do I play?", options=["--llm", f"{server.url}#m"])
    assert said.stdout == "Nice to meet you.\nThe oboe.\n"
    assert "ADD     Kim plays the oboe" in said.stderr and "used  Kim plays" in said.stderr
    first, _, _, second, _ = (body["messages"] for body in server.bodies)
    assert first[1:] == [{"role": "user", "content": "I play the oboe"}]
    system, *earlier, last = second
    assert system == first[0] and [m["content"] for m in earlier] == [
        "I play the oboe",
        "Nice to meet you.",
    ]
    block, _, line = last["content"].rpartition("\n\n")
    assert line == "What do I play?" and '"Kim plays the oboe"' in block
    assert block.startswith("<recalled-memories>") and block.endswith("</recalled-memories>")


def test_a_reply_is_shown_as_it_comes_and_thinking_is_not(talk, server):
    begun = ["", "<th", "ink>who?</", "think>\n\nNice to", " meet ", "you.\n"]
    replies = [begun, ["The", " oboe ", "<3"], ["Well, the user", " asks.</think>", "The oboe."]]

    def respond(body):
        if body.get("stream"):
            return 200, chunks(*replies.pop(0))
        return 200, completion('{"facts": []}')

    server.respond = respond
    said = talk("I play the oboe", "What?", "What?", options=["--llm", f"{server.url}#m"])
    shown = ["Nice to meet you.", "The oboe <3", "Well, the user asks.", "The oboe."]
    assert said.stdout.splitlines()[:2] == shown[:2]
    streamed = [body for body in server.bodies if body.get("stream")]
    assert [m["content"] for m in streamed[2]["messages"][2::2]] == shown[:2]


def test_a_reply_that_breaks_off_is_none(talk, server):
    replies = [[chunk({"content": "I nev"}), None], chunks("Hello")]
    server.respond = lambda body: (
        (200, replies.pop(0)) if body.get("stream") else (200, completion('{"facts": []}'))
    )
    said = talk("Hi", "Hi!", options=["--llm", f"{server.url}#m"])
    assert said.stdout == "I nev\nHello\n" and "no reply: model 'm'" in said.stderr
    (second,) = [body for body in server.bodies if body.get("stream")][1:]
    assert [m["content"] for m in second["messages"][1:]] == ["Hi!"]


def test_without_a_reply_nothing_that_was_said_is_lost(talk, monkeypatch):
    opened = OpenAILLM.__init__
    monkeypatch.setattr(
        OpenAILLM, "__init__", lambda self, *a, **k: opened(self, *a, **{**k, "retries": 0})
    )
    said = talk("I have a cat", "I have a dog", options=["--llm", "http://127.0.0.1:9/v1#m"])
    assert said.stdout == "" and said.stderr.count("no reply: model 'm'") == 2
    assert said.stderr.count("kept for `memory-r1 retry`") == 2
    with Memory("memory.db") as memory:
        assert memory.retry("me").complete
    assert len(remembered()) == 2


def test_a_reply_of_thoughts_alone_is_said_to_be_none(talk, server):
    server.respond = lambda body: (
        (200, chunks("<think>Hm")) if body.get("stream") else (200, completion('{"facts": []}'))
    )
    said = talk("Hi", options=["--llm", f"{server.url}#m"])
    assert said.stdout == "" and "the model said nothing" in said.stderr


def test_ctrl_c_stops_a_reply_and_then_what_is_being_remembered(tmp_path, server):
    asked, held = threading.Event(), threading.Event()

    def respond(body):
        if body.get("stream"):
            return 200, [chunk({"content": "Well, "}), held]
        asked.set()
        held.wait(60)
        return 200, completion('{"facts": []}')

    server.respond = respond
    with in_a_terminal("--store", tmp_path / "m.db", "--llm", f"{server.url}#m") as (chat, ours):
        read_until(ours, b"> ")
        os.write(ours, b"I have a cat\n")
        read_until(ours, b"Well,")
        os.write(ours, b"\x03")
        assert b"stopped" in read_until(ours, b"> ")
        assert asked.wait(60)
        os.write(ours, b"\x04")
        read_until(ours, b"Ctrl-C leaves that to the next start")
        os.write(ours, b"\x03")
        assert b"remembered at the next start" in read_until(ours, b"start.")
        assert chat.wait(60) == 130
    held.set()
    with Memory(tmp_path / "m.db") as memory:
        (message,) = memory.store.messages(Owner("me"))
        assert message.turn.text == "I have a cat" and message.state != "done"


def read_until(terminal, end):
    seen = b""
    while end not in seen:
        assert select.select([terminal], [], [], 60)[0], seen
        seen += os.read(terminal, 4096)
    return seen


@contextmanager
def in_a_terminal(*options):
    ours, theirs = pty.openpty()
    program = Path(sys.executable).parent / "memory-r1"
    chat = subprocess.Popen(
        [program, "chat", *options],
        **{"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True},
        env={**os.environ, "TERM": "dumb"},
        preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        yield chat, ours
    finally:
        chat.kill()
        chat.wait()
        os.close(ours)


def test_it_talks_in_a_terminal_until_ctrl_d(tmp_path):
    ours, theirs = pty.openpty()
    program = Path(sys.executable).parent / "memory-r1"
    chat = subprocess.Popen(
        [program, "chat", "--store", tmp_path / "memory.db"],
        **{"stdin": theirs, "stdout": theirs, "stderr": theirs},
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(theirs)
    seen, typed = b"", [b"I moved to Lisbon.\n", b"Where did I move to?\n", b"\x04"]
    try:
        while select.select([ours], [], [], 60)[0] and (part := os.read(ours, 4096)):
            seen += part
            if typed and seen.endswith(b"> "):
                os.write(ours, typed.pop(0))
    except OSError:  # how a terminal says that the program has ended
        pass
    finally:
        os.close(ours)  # which ends the program, too
    assert chat.wait(60) == 0
    assert b"You are me." in seen and seen.count(b"> ") >= 3 and b"ADD" in seen
