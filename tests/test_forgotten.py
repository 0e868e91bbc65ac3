"""After `forget` this process holds none of the user's words: no cache, queue or last exception.

Everything Python's garbage collector can reach is looked through for a word that only the
forgotten user has said, while the store and the server are still open.
"""

import gc
import json
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from made_server import serving

from memory_r1 import Memory, outbox
from memory_r1.llm import ScriptedLLM

DROW = "ztralebre"  # said backwards: here, as everywhere, it must not be found


def word() -> str:
    return DROW[::-1]


def said() -> str:
    return f"I bought a {word().capitalize()} table in Oslo, and its colour is green."


def traces() -> Iterator[str]:
    """Where the word still is: the types on the way to it, nearest first. New things come first."""
    gc.collect()
    needle = word()
    seen: set[int] = set()
    every = gc.get_objects()
    tracked = {id(one) for one in every}
    waiting = [(one, ()) for one in every]
    skipped = {id(every), id(waiting), id(tracked), id(seen)}
    while waiting:
        one, path = waiting.pop()
        if id(one) in seen or id(one) in skipped:
            continue
        seen.add(id(one))
        inside = one.ravel().tolist() if _of_objects(one) else gc.get_referents(one)
        for part in inside:
            if issubclass(type(part), str | bytes | bytearray):  # some mind being asked themselves
                if part is not needle and _says(part, needle):
                    yield f"{' < '.join([_named(one), *path])}: {part[:80]!r}"
            elif id(part) not in tracked:  # containers of plain values, which it doesn't list
                waiting.append((part, (_named(one), *path[:3])))


def _of_objects(one: object) -> bool:
    return type(one) is np.ndarray and one.dtype.hasobject


def _says(part: str | bytes | bytearray, needle: str) -> bool:
    if isinstance(part, str):
        return needle in part.lower()
    return needle.encode() in bytes(part).lower()


def _named(one: object) -> str:
    return f"{type(one).__module__}.{type(one).__qualname__}"


def live(memory: Memory, url: str) -> None:
    """What a user may do, through Memory itself and through every face of the server."""
    memory.add(said(), user_id="ann", metadata={"about": word()}, once=word())
    memory.add(said().replace("green", "red"), user_id="ann", wait=False)
    memory.add(f"She sold the {word()} chair.", user_id="ann", infer=False)
    memory.flush()
    (entry, *_) = memory.list(user_id="ann")
    memory.update(entry.id, f"Ann has a {word()}", user_id="ann")
    memory.search(f"Which {word()}?", user_id="ann", filters={"about": word()}, explain=True)
    memory.ask(f"Where is the {word()}?", user_id="ann")
    memory.context(word(), user_id="ann")
    memory.search(word(), user_id="ann", as_of="2030-01-01")
    memory.audit(user_id="ann")
    memory.check()
    ann = {"user_id": "ann"}
    with httpx.Client(base_url=url, timeout=60) as api:
        key = {"Idempotency-Key": word()}
        kept = api.post("/v1/memories", json={**ann, "messages": said()}, headers=key)
        assert kept.status_code == 200
        api.post("/v1/memories", json={**ann, "messages": said() + "!", "wait": False})
        memory.flush()
        api.post("/v1/memories", json={**ann, "messages": f"{said()} It chokes.", "wait": False})
        while set(memory.stats("ann").messages) - {"done", "deferred"}:
            time.sleep(0.01)
        for path, body in (
            ("/v1/search", {"query": word()}),
            ("/v1/context", {"query": word()}),
            ("/v1/ask", {"question": f"{word()}?"}),
            ("/v1/search", {"query": [word()]}),
            ("/mem0/memories", {"messages": said()}),
            ("/mem0/search", {"query": word()}),
        ):
            api.post(path, json={**ann, **body})
        for path in ("/", "/memories", "/journal", "/ask", "/v1/stats", "/v1/export"):
            api.get(path, params={**ann, "q": word()})
        call = {"name": "search_memories", "arguments": {"query": word()}}
        asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        accepts = {"Accept": "application/json, text/event-stream"}
        assert word() in api.post("/mcp?user_id=ann", json=asked, headers=accepts).text


def test_the_search_finds_what_is_kept():
    for kept in ({"a": [(said(),)]}, [np.array([said().encode()], object)]):
        assert next(traces(), None)
        kept.clear()
    assert list(traces()) == []


def models(kind: str):
    match kind:
        case "a model":
            choking = [True]

            def reply(prompt):
                llm.prompts.clear()
                if "chokes" in prompt.text and choking:
                    choking.clear()
                    raise RuntimeError("a bug")
                if "New facts" in prompt.text:
                    return json.dumps({"operations": [{"op": "ADD", "text": said()}]})
                if "facts" in prompt.text:
                    return json.dumps({"facts": [{"text": said()}]})
                return f"Memories: 0\n**Answer:** {word()}"

            llm = ScriptedLLM(reply)
            return llm
        case "tiny":
            pytest.importorskip("torch")
            return "tiny"
    return None


@pytest.mark.parametrize("kind", ["rules", "a model", pytest.param("tiny", marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", ["ram", "file"])
def test_a_process_that_has_forgotten_a_user_holds_none_of_their_words(
    kind, place, tmp_path, monkeypatch
):
    # pytest keeps all that is logged, and with an error the frames it passed.
    monkeypatch.setattr(outbox, "_report", lambda future: None)
    memory = Memory("ram:" if place == "ram" else tmp_path / "m.db", llm=models(kind))
    memory.add("Ben likes tea", user_id="ben", infer=False)
    with serving(memory) as url:
        live(memory, url)
        assert next(traces(), None)
        httpx.post(f"{url}/v1/forget", json={"user_id": "ann"}, timeout=60).raise_for_status()
        assert list(traces()) == []
        assert memory.search("tea", user_id="ben")
