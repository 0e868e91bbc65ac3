"""A small memory with a past, and who looks at it: a visitor without a script, and a browser."""

import html
import json
import os
import re
import shutil
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from made_server import serving

from memory_r1 import Memory
from memory_r1.llm import ScriptedLLM
from memory_r1.types import Add

STORY = [  # when, what Ann says, the fact, the operations
    ("2023-05-08T09:12", "I moved to Beijing last week, the flat is tiny.", "Ann lives in Beijing",
     [("ADD", "Ann lives in Beijing")]),
    ("2023-05-20T18:40", "We adopted a dog, Rex! He already ate a shoe.", "Ann has a dog, Rex",
     [("ADD", "Ann has a dog, Rex")]),
    ("2023-06-02T12:05", "No peanuts for me, please. I am allergic.", "Ann is allergic to peanuts",
     [("ADD", "Ann is allergic to peanuts")]),
    ("2023-06-15T20:31", "I drive the old blue car to work.", "Ann drives an old blue car",
     [("ADD", "Ann drives an old blue car")]),
    ("2023-07-01T10:00", "Rex has company: I adopted another dog, Scout.",
     "Ann adopted another dog, Scout", [("UPDATE", 1, "Ann has two dogs, Rex and Scout")]),
    ("2023-07-09T08:00", "I am allergic to peanuts, remember?", "Ann is allergic to peanuts",
     [("NOOP",)]),
    ("2023-08-21T19:45", "I moved to Shanghai for a new job.", "Ann lives in Shanghai",
     [("UPDATE", 0, "Ann lives in Shanghai")]),
    ("2023-08-22T07:15", "The blue car is sold.", "Ann sold the blue car", [("DELETE", 3)]),
]  # fmt: skip
NOW = "2023-09-01T12:00"
ANN = {"user_id": "ann"}
PAGES = ("/memories", "/ask", "/then", "/journal", "/proposals", "/waiting", "/forget")


def moment(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def remembered(policy="confirm_deletes"):
    """Ann's memory as a model of a script managed it, one of an agent's, and one of Ben's."""
    clock = [moment(NOW)]
    replies = []

    def play(prompt):
        if "How many dogs" in prompt.text:
            return "Memories: 2\n**Answer:** 2"
        return replies.pop(0) if replies else "no JSON"

    llm = ScriptedLLM(play, name="a-model-of-8b")
    memory = Memory("ram:", llm=llm, policy=policy, now=lambda: clock[0])
    for when, said, fact, operations in STORY:
        clock[0] = moment(when)
        replies += [
            json.dumps({"facts": [{"text": fact, "quote": said.split(".")[0]}]}),
            json.dumps({"operations": [_operation(*operation) for operation in operations]}),
        ]
        memory.add(said, **ANN, speaker="Ann", timestamp=when)
    clock[0] = moment(NOW)
    memory.add("Could you book the dentist?", **ANN, speaker="Ann")
    memory.bank("ann", "travel-bot").apply([Add("Ann prefers window seats")], reason="by hand")
    memory.bank("ben").apply([Add("Ben likes jazz")], reason="by hand")
    return memory


def _operation(op, *rest):
    match op, rest:
        case "ADD", [text]:
            return {"op": op, "text": text}
        case "UPDATE", [label, text]:
            return {"op": op, "id": label, "text": text}
        case "DELETE", [label]:
            return {"op": op, "id": label}
    return {"op": op}


def entry_of(memory, text, user="ann"):
    """The entry whose text holds this."""
    (found,) = [entry for entry in memory.list(user_id=user, superseded=True) if text in entry.text]
    return found


def wrote_run(folder, steps=40, ended=False):
    """A run folder as training leaves it, in the middle of a line."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "step": step,
            "reward_mean": 0.3 + 0.5 * step / steps + 0.05 * (-1) ** step,
            "em": 0.2 + 0.6 * step / steps,
            "entropy": 1.2 - step / steps,
            "format_valid": min(1.0, 0.7 + step / steps),
            "kl": 0.01 * step,
            "op_add": 0.5,
            "op_update": 0.3 * step / steps,
            "op_delete": 0.3 - 0.3 * step / steps,
            "op_noop": 0.2,
            **({"eval_reward_mean": 0.35 + 0.5 * step / steps} if step % 10 == 0 else {}),
        }
        for step in range(steps + 1)
    ]
    lines = [json.dumps(row) for row in rows]
    text = "\n".join([*lines[:5], "{damaged", "[1]", '{"step": "x"}', *lines[5:]])
    (folder / "metrics.jsonl").write_text(text + '\n{"step": 41, "rewa')
    about = {"started": "2023-05-08T09:00:00+00:00", "command": "memory-r1 train run.toml"}
    about |= {"ended": "2023-05-08T10:00:00+00:00", "outcome": "finished"} if ended else {}
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "config.toml").write_text('stage = "manager"\n')


class Visitor:
    """What a browser without a script does: pages, and forms with what is hidden in them."""

    def __init__(self, url, **more):
        self.client = httpx.Client(base_url=url, follow_redirects=True, **more)

    def get(self, path, /, **query):
        return self.client.get(path, params=query or None)

    def post(self, path, query=(), /, form_of="/signin", **fields):
        page = self.client.get(form_of)
        token = re.search('name="token" value="([^"]+)"', page.text)
        data = {"token": token[1] if token else "", **fields}
        return self.client.post(path, params=dict(query), data=data)


@contextmanager
def visited(memory, **settings):
    """A visitor of a server, its memory in `.memory`."""
    with serving(memory, **settings) as url:
        visitor = Visitor(url)
        visitor.memory = memory
        with visitor.client:
            yield visitor


def text_of(reply):
    """What a reader sees, spaces tidied."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", reply.text)).split())


@contextmanager
def chromium():
    """Debian's Chromium, headless; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is absent")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Debian's chromium, which the pages are looked at with, is absent")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def shoot(page, name):
    """A picture of a page, where MEMORY_R1_SCREENSHOTS names a folder for it."""
    if folder := os.environ.get("MEMORY_R1_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", animations="disabled")
