"""mem0's routes on a real server: its hosted client, and plain calls of its shapes."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from made_server import serving

from memory_r1 import Memory
from memory_r1.serve.server.keys import Keys

PEERS = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
CLIENT = Path(__file__).parent / "compat" / "mem0_client.py"


@pytest.mark.slow
def test_mem0s_own_client_works_unchanged(tmp_path):
    if not PEERS.exists():
        pytest.skip(f"{PEERS} is not there: run  make peers")
    memory = Memory("ram:")
    _, key = Keys(memory.store).create("mem0")
    quiet = {**os.environ, "MEM0_TELEMETRY": "False", "MEM0_DIR": str(tmp_path)}
    with serving(memory) as url:
        done = subprocess.run(
            [PEERS, CLIENT, f"{url}/mem0", key],
            capture_output=True,
            text=True,
            timeout=120,
            env=quiet,
        )
    assert done.stdout == "all is well\n", done.stderr


@pytest.fixture
def api():
    with serving(Memory("ram:")) as url, httpx.Client(base_url=f"{url}/mem0") as client:
        yield client


def add(api, text, **ids):
    reply = api.post("/memories", json={"messages": text, "infer": False, **ids})
    assert reply.status_code == 200, reply.text
    return reply.json()["results"][0]["id"]


def texts(reply):
    assert reply.status_code == 200, reply.text
    return [item["memory"] for item in reply.json()["results"]]


def test_the_routes_of_mem0s_own_server(api):
    one = add(api, "I play the oboe", user_id="ann", metadata={"topic": "music"})
    add(api, "The vet opens at nine", user_id="ann", agent_id="vet")
    add(api, "Ben has a cat", user_id="ben")
    asked = {"query": "instrument", "user_id": "ann", "limit": 1}
    assert texts(api.post("/search", json=asked)) == ["I play the oboe"]
    assert texts(api.get("/memories", params={"agent_id": "vet"})) == ["The vet opens at nine"]
    assert len(texts(api.get("/memories", params={"user_id": "ann"}))) == 2
    assert api.put(f"/memories/{one}", json={"text": "I play the cello"}).json()["message"]
    item = api.get(f"/memories/{one}").json()
    assert item["memory"] == "I play the cello" and item["user_id"] == "ann"
    assert "agent_id" not in item
    rows = api.get(f"/memories/{one}/history").json()
    assert [row["event"] for row in rows] == ["ADD", "UPDATE"]
    assert api.delete(f"/memories/{one}").json() == {"message": "Memory deleted successfully!"}
    assert api.get(f"/memories/{one}").status_code == 404
    assert [r["event"] for r in api.get(f"/memories/{one}/history").json()][-1] == "DELETE"
    assert api.delete("/memories", params={"user_id": "ann"}).status_code == 200
    assert texts(api.get("/memories", params={"user_id": "ann"})) == []
    assert texts(api.get("/memories", params={"user_id": "ben"})) == ["Ben has a cat"]


def test_what_is_unknown_is_not_found(api):
    add(api, "I play the oboe", user_id="ann")
    for method, path in (
        ("GET", "/memories/none"),
        ("GET", "/memories/none/history"),
        ("DELETE", "/memories/none"),
        ("DELETE", "/v2/entities/user/none/"),
        ("DELETE", "/v2/entities/agent//"),  # every memory of no agent has this one's name
    ):
        reply = api.request(method, path)
        assert reply.status_code == 404, f"{method} {path}: {reply.text}"
    assert api.put("/memories/none", json={"text": "x"}).status_code == 404
    assert len(texts(api.get("/memories", params={"user_id": "ann"}))) == 1


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/memories", {"messages": "x"}, "whose memory?"),
        ("/memories", {"messages": "x", "user_id": "ann", "app_id": "shop"}, "app_id"),
        ("/memories", {"messages": "x", "user_id": "ann", "prompt": "be brief"}, "infer=False"),
        ("/memories", {"messages": "x", "filters": {"user_id": "a", "topic": "b"}}, "topic"),
        ("/search", {"query": "x"}, "whose memories?"),
        ("/search", {"query": " ", "user_id": "ann"}, "query is empty"),
        ("/search", {"query": "x", "filters": {"OR": [{"user_id": "ann"}]}}, "whose memories?"),
        (
            "/search",
            {"query": "x", "user_id": "a", "filters": {"AND": [{"run_id": "1"}, {"run_id": "2"}]}},
            "no memory has two",
        ),
        ("/reset", None, "confirm=true"),
    ],
)
def test_what_has_no_meaning_is_refused_with_what_to_do(api, path, body, expected):
    reply = api.post(path, json=body)
    assert reply.status_code == 422 and expected in reply.text


def test_the_same_key_adds_once(api):
    body = {"messages": "I play the oboe", "user_id": "ann"}
    first, second = (
        api.post("/memories", json=body, headers={"Idempotency-Key": "k"}) for _ in "12"
    )
    assert first.json() == second.json() and second.headers["idempotent-replayed"] == "true"
    other = api.post(
        "/memories", json={**body, "messages": "I sing"}, headers={"Idempotency-Key": "k"}
    )
    assert other.status_code == 422 and "another request" in other.json()["detail"]
    assert len(texts(api.get("/memories", params={"user_id": "ann"}))) == 1


@pytest.mark.parametrize("infer", [True, False])
@pytest.mark.parametrize("path", ["/memories", "/v3/memories/add/", "/v1/memories/"])
def test_a_request_whose_process_died_is_done_again_and_adds_once(path, infer):
    memory = Memory("ram:")
    said = [{"role": "user", "content": text} for text in ("I play the oboe", "I like tea")]
    body = {"messages": said, "user_id": "ann", "infer": infer}
    with serving(memory) as url:
        sent = {"json": body, "headers": {"Idempotency-Key": "k"}}
        first = httpx.post(f"{url}/mem0{path}", **sent)
        (kept,) = memory.store.records("reply")
        begun = {"request": kept.body["request"], "process": "another"}
        memory.store.put_record(replace(kept, body=begun))
        again = httpx.post(f"{url}/mem0{path}", **sent)
    assert again.status_code == 200 and again.json() == first.json()
    assert len(first.json()["results"]) == len(memory.list(user_id="ann")) == 2
    assert memory.stats("ann").messages == {"done": 2}


def test_reset_erases_everything_when_it_is_confirmed(api):
    add(api, "I play the oboe", user_id="ann")
    assert api.post("/reset", params={"confirm": True}).status_code == 200
    assert api.get("/v1/entities/").json()["results"] == []


def test_a_name_may_hold_a_slash(api):
    add(api, "I play the oboe", user_id="a/b")
    assert api.delete("/v2/entities/user/a%2Fb/").status_code == 200
    assert api.get("/v1/entities/").json()["count"] == 0


# Who may call


@pytest.fixture
def guarded():
    memory = Memory("ram:")
    keys = Keys(memory.store)
    shown = {
        "ann": keys.create("", user_id="ann")[1],
        "bot": keys.create("", user_id="ann", agent_id="bot")[1],
        "eye": keys.create("", read_only=True)[1],
    }
    memory.add("Ann likes tea", user_id="ann")
    memory.add("The bot likes oil", user_id="ann", agent_id="bot")
    memory.add("Ben's secret is 42", user_id="ben", agent_id="bot")
    with serving(memory) as url:
        clients = {
            name: httpx.Client(base_url=f"{url}/mem0", headers={"Authorization": f"Token {key}"})
            for name, key in shown.items()
        }
        yield memory, clients
        for client in clients.values():
            client.close()


def test_a_key_sees_its_own_memories_whatever_ids_are_asked_for(guarded):
    memory, clients = guarded
    ann, bot = clients["ann"], clients["bot"]
    assert len(texts(ann.get("/memories"))) == 2
    assert len(texts(ann.get("/memories", params={"agent_id": "bot"}))) == 1
    assert len(texts(ann.get("/memories", params={"user_id": "*"}))) == 2
    assert len(texts(bot.get("/memories"))) == 1
    assert texts(bot.post("/search", json={"query": "likes", "user_id": "*"})) != []
    assert "secret" not in ann.post("/search", json={"query": "secret", "user_id": "*"}).text
    for refused in (
        ann.get("/memories", params={"user_id": "ben"}),
        ann.post("/search", json={"query": "secret", "filters": {"user_id": "ben"}}),
        ann.post("/v3/memories/", json={"filters": {"AND": [{"user_id": "ben"}]}}),
        bot.get("/memories", params={"agent_id": "other"}),
        ann.post("/memories", json={"messages": "x", "user_id": "ben"}),
        ann.post("/memories", json={"messages": "x", "user_id": "*"}),
        ann.delete("/memories", params={"user_id": "ben"}),
        ann.post("/reset", params={"confirm": True}),
    ):
        assert refused.status_code == 403, refused.text
    told = ann.get("/v1/entities/").json()["results"]
    assert [(one["type"], one["name"]) for one in told] == [("user", "ann"), ("agent", "bot")]
    assert ann.delete("/memories", params={"user_id": "*"}).status_code == 200
    assert ann.delete("/v2/entities/agent/bot/").status_code == 200
    assert len(memory.list(user_id="ben", agent_id="bot")) == 1


def test_an_id_that_is_not_yours_is_not_there(guarded):
    memory, clients = guarded
    (secret,) = memory.list(user_id="ben", agent_id="bot")
    ann, theirs = clients["ann"], f"/v1/memories/{secret.id}/"
    batch = {"memories": [{"memory_id": secret.id, "text": "mine"}]}
    for reply in (
        ann.get(theirs),
        ann.get(f"{theirs}history/"),
        ann.put(theirs, json={"text": "mine"}),
        ann.delete(theirs),
        ann.put("/v1/batch/", json=batch),
        ann.request("DELETE", "/v1/batch/", json={"memories": [{"memory_id": secret.id}]}),
        ann.delete("/v2/entities/user/ben/"),
    ):
        assert reply.status_code == 404 and "secret" not in reply.text
    assert memory.list(user_id="ben", agent_id="bot") == [secret]


def test_a_key_that_only_reads_changes_nothing(guarded):
    memory, clients = guarded
    (tea,) = memory.list(user_id="ann")
    eye, at = clients["eye"], f"/memories/{tea.id}"
    assert eye.get(at).status_code == 200
    batch = {"memories": [{"memory_id": tea.id, "text": "x"}]}
    for reply in (
        eye.post("/memories", json={"messages": "x", "user_id": "ann"}),
        eye.put(at, json={"text": "x"}),
        eye.delete(at),
        eye.delete("/memories", params={"user_id": "ann"}),
        eye.put("/v1/batch/", json=batch),
        eye.request("DELETE", "/v1/batch/", json=batch),
        eye.delete("/v2/entities/user/ann/"),
        eye.post("/reset", params={"confirm": True}),
    ):
        assert reply.status_code == 403, reply.text
    assert memory.list(user_id="ann") == [tea]
