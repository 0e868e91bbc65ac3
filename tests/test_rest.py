"""REST on a real server: the verbs of Memory, who may call them, and what happens twice."""

import json
import socket
import threading
import time

import httpx
import pytest
from made_server import serving

from memory_r1 import Memory
from memory_r1.errors import ConfigError, StoreError
from memory_r1.llm import ScriptedLLM
from memory_r1.serve.server.keys import Keys
from memory_r1.serve.server.settings import Serving
from memory_r1.types import Add


@pytest.fixture(scope="module")
def url():
    """A server that is open, as on one's own machine."""
    with serving(Memory("ram:")) as url:
        yield url


@pytest.fixture
def api(url, request):
    """A client, and a user of its own in every call."""
    with httpx.Client(base_url=url, headers={"x-user": request.node.name}) as client:
        yield client


@pytest.fixture
def user(request):
    return request.node.name


def add(api, text, user, **more):
    reply = api.post("/v1/memories", json={"user_id": user, "messages": text, **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_the_life_of_a_memory(api, user):
    added = add(api, "I moved to Beijing.", user, timestamp="2023-05-08", speaker="Ann")
    (operation,) = added["operations"]
    entry = operation["after"]
    assert operation["op"] == "ADD" and "Beijing" in entry["text"] and added["complete"]
    at = f"/v1/memories/{entry['id']}"
    assert api.get(at).json() == entry
    updated = api.patch(at, json={"text": "Ann lives in Shanghai", "metadata": {"sure": True}})
    assert updated.json()["before"]["text"] == entry["text"]
    assert updated.json()["after"]["metadata"] == {"sure": True}
    found = api.post("/v1/search", json={"user_id": user, "query": "Shanghai", "explain": True})
    (hit,) = found.json()["results"]
    assert hit["entry"]["version"] == 2 and set(hit["signals"]) >= {"words", "vectors"}
    assert api.delete(at).json()["op"] == "DELETE"
    assert api.post("/v1/search", json={"user_id": user, "query": "Shanghai"}).json() == {
        "results": []
    }
    undone = api.post("/v1/undo", json={"user_id": user, "target": entry["id"]}).json()
    assert [row["op"] for row in undone["operations"]] == ["UNDO"]
    life = api.get(f"{at}/history").json()
    assert [version["text"] for version in life["versions"]] == [
        entry["text"],
        "Ann lives in Shanghai",
    ]
    assert [row["op"] for row in life["operations"]] == ["ADD", "UPDATE", "DELETE", "UNDO"]
    journal = api.get("/v1/journal", params={"user_id": user, "limit": 3}).json()
    assert [row["op"] for row in journal["operations"]] == ["UNDO", "DELETE", "UPDATE"]
    rest = {"user_id": user, "before": journal["next"]}
    assert [r["op"] for r in api.get("/v1/journal", params=rest).json()["operations"]] == ["ADD"]


def test_what_was_believed_and_what_was_so_can_be_searched(api, user):
    moved = add(api, "I live in Beijing.", user, timestamp="2023-05-08")
    then = moved["operations"][0]["at"]
    api.patch(f"/v1/memories/{moved['operations'][0]['entry_id']}", json={"text": "In Shanghai"})
    asked = {"user_id": user, "query": "live", "as_of": then}
    (hit,) = api.post("/v1/search", json=asked).json()["results"]
    assert "Beijing" in hit["entry"]["text"]


def test_a_question_is_answered_with_its_entries(user):
    llm = ScriptedLLM(["Memories: 0\n**Answer:** Lisbon"])
    memory = Memory("ram:")
    memory.add("I moved to Lisbon.", user_id="ann")
    asking = Memory(memory.store, llm=llm, embedder=memory.embedder)
    with serving(asking) as url:
        body = {"user_id": "ann", "question": "Where does Ann live?"}
        answer = httpx.post(f"{url}/v1/ask", json=body).json()
    assert answer["text"] == "Lisbon" and "Lisbon" in answer["used"][0]["text"]
    assert answer["known"] and answer["retrieved"][0]["entry"] == answer["used"][0]


def test_a_model_out_of_reach_is_no_answer(user):
    memory = Memory("ram:", llm="http://127.0.0.1:9/v1#m")
    memory.agents.answer._sleep = lambda seconds: None
    memory.bank("ann").apply([])
    with serving(memory) as url:
        rules = Memory(memory.store, embedder=memory.embedder)
        rules.add("I moved to Lisbon.", user_id="ann")
        reply = httpx.post(f"{url}/v1/ask", json={"user_id": "ann", "question": "Where?"})
    assert reply.status_code == 503 and reply.headers["retry-after"]
    assert reply.headers["content-type"] == "application/problem+json"


def test_pages_go_through_all_entries_once(api, user):
    for n in range(5):
        add(api, f"Fact number {n}", user)
    for newest in (False, True):
        seen, after = [], ""
        while True:
            asked = {"user_id": user, "limit": 2, "after": after, "newest": newest}
            page = api.get("/v1/memories", params=asked).json()
            seen += [entry["text"][-1] for entry in page["entries"]]
            if not (after := page["next"]):
                break
        assert "".join(seen) == ("43210" if newest else "01234")


def test_filters_choose_by_metadata(api, user):
    add(api, "Lisbon is nice", user, metadata={"topic": "travel"})
    add(api, "Work is hard", user, metadata={"topic": "work"})
    asked = {"user_id": user, "filters": '{"topic": "travel"}'}
    (entry,) = api.get("/v1/memories", params=asked).json()["entries"]
    assert "Lisbon" in entry["text"]
    body = {"user_id": user, "query": "is", "filters": {"topic": {"ne": "travel"}}}
    (hit,) = api.post("/v1/search", json=body).json()["results"]
    assert "Work" in hit["entry"]["text"]


def test_an_add_in_the_background_tells_its_state(api, user):
    reply = api.post(
        "/v1/memories", json={"user_id": user, "messages": "I like tea", "wait": False}
    )
    assert reply.status_code == 202 and reply.json()["pending"]
    at = reply.headers["location"]
    assert at == f"/v1/messages/{reply.json()['message_ids'][0]}"
    deadline = time.monotonic() + 10
    while (state := api.get(at, params={"user_id": user}).json())["state"] != "done":
        assert time.monotonic() < deadline
    assert [row["op"] for row in state["operations"]] == ["ADD"]


def test_what_a_model_fails_at_is_deferred_and_retried(user):
    replies = ["not JSON", "nor this", '{"facts": []}']
    with serving(Memory("ram:", llm=ScriptedLLM(replies))) as url:
        added = httpx.post(f"{url}/v1/memories", json={"user_id": "a", "messages": "Hello"}).json()
        assert not added["complete"] and added["facts"][0]["status"] == "deferred"
        waiting = httpx.get(f"{url}/v1/messages", params={"user_id": "a"}).json()["messages"]
        assert [message["text"] for message in waiting] == ["Hello"] and waiting[0]["error"]
        assert httpx.post(f"{url}/v1/retry", json={"user_id": "a"}).json()["complete"]


def test_the_same_key_adds_once(api, user):
    body = {"user_id": user, "messages": "I like tea"}
    again = {"Idempotency-Key": user}
    first = api.post("/v1/memories", json=body, headers=again)
    second = api.post("/v1/memories", json=body, headers=again)
    assert second.json() == first.json() and second.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert api.get("/v1/stats", params={"user_id": user}).json()["messages"] == {"done": 1}
    other = api.post("/v1/memories", json={**body, "messages": "I like coffee"}, headers=again)
    assert other.status_code == 422 and "another request" in other.json()["detail"]


def test_a_refusal_is_kept_under_its_key_too(api, user):
    asked = {"headers": {"Idempotency-Key": user}}
    first = api.delete("/v1/memories/none", **asked)
    assert first.status_code == 404
    entry = add(api, "I like tea", user)["operations"][0]["entry_id"]
    done = [api.delete(f"/v1/memories/{entry}", headers={"Idempotency-Key": "x"}) for _ in "12"]
    assert [reply.status_code for reply in done] == [200, 200]
    assert done[0].json() == done[1].json()


def test_two_at_the_same_time_are_one():
    started, go = threading.Event(), threading.Event()

    def slow(prompt):
        started.set()
        go.wait(10)
        return '{"facts": []}'

    with serving(Memory("ram:", llm=ScriptedLLM(slow))) as url:
        body = {"user_id": "ann", "messages": "Hello"}
        headers = {"Idempotency-Key": "k"}
        replies = []

        def first():
            replies.append(httpx.post(f"{url}/v1/memories", json=body, headers=headers))

        thread = threading.Thread(target=first)
        thread.start()
        started.wait(10)
        meanwhile = httpx.post(f"{url}/v1/memories", json=body, headers=headers)
        go.set()
        thread.join()
        after = httpx.post(f"{url}/v1/memories", json=body, headers=headers)
    assert meanwhile.status_code == 409
    assert replies[0].status_code == 200 and after.json() == replies[0].json()


def test_a_request_whose_process_died_is_done_again_and_adds_once(monkeypatch):
    memory = Memory("ram:")
    body = {"user_id": "ann", "messages": "I like tea"}
    with serving(memory) as url:
        headers = {"Idempotency-Key": "k"}
        first = httpx.post(f"{url}/v1/memories", json=body, headers=headers).json()
        (kept,) = memory.store.records("reply")
        died = {"request": kept.body["request"], "process": "another"}
        memory.store.put_record(kept.__class__("reply", kept.key, kept.at, died, kept.owner))
        again = httpx.post(f"{url}/v1/memories", json=body, headers=headers).json()
        assert again["message_ids"] == first["message_ids"]
        assert again["operations"] == first["operations"]
        assert len(memory.store.messages(memory.bank("ann").owner)) == 1


def test_export_is_what_restore_reads(api, user, tmp_path):
    add(api, "I like tea", user)
    lines = api.get("/v1/export", params={"user_id": user}).text
    from memory_r1 import transfer

    with Memory(tmp_path / "m.db") as twin:
        counts = transfer.restore(twin.store, lines.splitlines(), twin.embedder)
        assert counts["entry"] == 1 and "tea" in twin.list(user_id=user)[0].text


def test_forget_leaves_nothing_and_hands_out_a_receipt(api, user):
    add(api, "I like tea", user)
    api.post(
        "/v1/memories",
        json={"user_id": user, "messages": "I like milk"},
        headers={"Idempotency-Key": f"{user} 2"},
    )
    erased = api.post("/v1/forget", json={"user_id": user}).json()["erased"]
    assert erased["entries"] == 2 and erased["records"] == 2
    assert api.get("/v1/memories", params={"user_id": user}).json()["entries"] == []
    assert user not in str(api.get("/v1/owners", params={"limit": 1000}).json())


def test_proposals_wait_for_a_person():
    with serving(Memory("ram:", policy="confirm_all")) as url, httpx.Client(base_url=url) as api:
        (row,) = add(api, "I like tea", "ann")["operations"]
        assert row["state"] == "proposed"
        assert api.get("/v1/memories", params={"user_id": "ann"}).json()["entries"] == []
        (waiting,) = api.get("/v1/proposals", params={"user_id": "ann"}).json()["operations"]
        done = api.post(f"/v1/proposals/{waiting['id']}/approve", json={"user_id": "ann"})
        assert done.json()["op"] == "ADD"
        again = api.post(f"/v1/proposals/{waiting['id']}/reject", json={"user_id": "ann"})
        assert again.status_code == 409 and "approved" in again.json()["detail"]


def test_feedback_is_kept_for_training(api, user):
    entry = add(api, "I like tea", user)["operations"][0]["entry_id"]
    said = {"user_id": user, "question": "What do I like?", "answer": "milk", "right": False}
    kept = api.post("/v1/feedback", json={**said, "correct": "tea", "used": [entry]})
    assert kept.status_code == 200
    assert api.post("/v1/feedback", json={**said, "used": ["none"]}).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/memories", {"messages": "Hello"}, "whose memory? Expected a user_id"),
        ("/v1/memories", {"user_id": "a", "message": "Hello"}, "body.message: Extra inputs"),
        ("/v1/memories", {"user_id": "a", "messages": [{"role": "boss", "content": ""}]}, "role"),
        ("/v1/memories", {"user_id": "a", "messages": "x", "timestamp": "soon"}, "soon"),
        ("/v1/memories", {"user_id": "a", "messages": "\ud800"}, "no valid Unicode"),
        ("/v1/search", {"user_id": "a", "query": "x", "k": 0}, "body.k"),
        ("/v1/search", {"user_id": "a", "query": "x", "filters": {"a": {"near": 1}}}, "near"),
        ("/v1/undo", {"user_id": "a"}, "what to undo?"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_expected(api, path, body, expected):
    reply = api.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert reply.status_code == 422 and expected in reply.text
    assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "content", [b"{", b"[" * 100_000, b'{"user_id": NaN}', b"\xff\xfe", b"null", b"1e999"]
)
def test_what_is_no_json_is_refused(api, content):
    headers = {"content-type": "application/json"}
    reply = api.post("/v1/search", content=content, headers=headers)
    assert 400 <= reply.status_code < 500
    assert reply.headers["content-type"] == "application/problem+json"


def test_a_body_is_as_large_as_was_settled_and_no_larger():
    with serving(Memory("ram:"), max_body=2000) as url:
        body = {"user_id": "a", "messages": "x" * 3000}
        reply = httpx.post(f"{url}/v1/memories", json=body)
        assert reply.status_code == 413
        size = reply.request.headers["content-length"]
        assert f"may have 2000 bytes here, and this has {size}" in reply.json()["detail"]

        def chunks():
            yield from [b"x" * 1000] * 5

        headers = {"content-type": "application/json"}
        reply = httpx.post(f"{url}/v1/memories", content=chunks(), headers=headers)
        assert reply.status_code == 413
        assert "may have 2000 bytes here, and this has more" in reply.json()["detail"]
        body["messages"] = "x" * 1000
        assert httpx.post(f"{url}/v1/memories", json=body).status_code == 200


def test_a_text_that_has_no_utf8_is_shown_all_the_same():
    memory = Memory("ram:")
    memory.bank("ann").apply([Add("half a smile \ud83d")])
    with serving(memory) as url:
        (entry,) = httpx.get(f"{url}/v1/memories", params={"user_id": "ann"}).json()["entries"]
        assert entry["text"].endswith("\ud83d")


# Who may call


@pytest.fixture(scope="module")
def guarded():
    """A server whose store has keys, and the keys by name."""
    memory = Memory("ram:")
    keys = Keys(memory.store)
    shown = {
        "all": keys.create("everybody")[1],
        "ann": keys.create("ann's", user_id="ann")[1],
        "bot": keys.create("a bot of ann's", user_id="ann", agent_id="bot")[1],
        "eye": keys.create("looks on", read_only=True)[1],
        "gone": keys.create("revoked")[1],
    }
    keys.revoke(shown["gone"].split("_")[1])
    memory.add("Ben's secret is 42", user_id="ben")
    memory.add("Ann likes tea", user_id="ann")
    memory.add("The bot likes oil", user_id="ann", agent_id="bot")
    with serving(memory) as url:
        clients = {
            name: httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"})
            for name, key in shown.items()
        }
        clients["nobody"] = httpx.Client(base_url=url)
        yield clients
        for client in clients.values():
            client.close()


def the_entry(guarded, user, agent=""):
    asked = {"user_id": user, "agent_id": agent}
    (entry,) = guarded["all"].get("/v1/memories", params=asked).json()["entries"]
    return entry


def test_without_a_key_there_is_nothing_but_health(guarded):
    for name in ("nobody", "gone"):
        reply = guarded[name].get("/v1/memories", params={"user_id": "ann"})
        assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
        assert guarded[name].get("/healthz").status_code == 200
        assert guarded[name].get("/metrics").status_code == 401


def test_a_key_of_a_user_opens_that_users_memories_only(guarded):
    ann = guarded["ann"]
    assert len(ann.get("/v1/memories").json()["entries"]) == 1  # need not say who
    assert len(ann.get("/v1/memories", params={"agent_id": "bot"}).json()["entries"]) == 1
    assert ann.get("/v1/memories", params={"user_id": "ben"}).status_code == 403
    assert ann.get("/v1/memories", params={"user_id": "nobody"}).status_code == 403
    for path in ("search", "context"):
        body = {"user_id": "ben", "query": "secret"}
        assert ann.post(f"/v1/{path}", json=body).status_code == 403
    assert {o["user_id"] for o in ann.get("/v1/owners").json()["owners"]} == {"ann"}
    assert ann.get("/v1/export", params={"user_id": "ben"}).status_code == 403
    assert "secret" not in ann.get("/v1/export").text
    assert ann.get("/metrics").status_code == 403


def test_an_id_that_is_not_yours_is_not_there(guarded):
    theirs = f"/v1/memories/{the_entry(guarded, 'ben')['id']}"
    ann = guarded["ann"]
    for reply in (
        ann.get(theirs),
        ann.get(f"{theirs}/history"),
        ann.patch(theirs, json={"text": "mine"}),
        ann.delete(theirs),
        ann.post("/v1/undo", json={"target": the_entry(guarded, "ben")["id"]}),
    ):
        assert reply.status_code == 404, reply.text
        assert "secret" not in reply.text and "ben" not in reply.text
    assert guarded["all"].get(theirs).status_code == 200


def test_a_key_of_an_agent_opens_nothing_else_of_its_user(guarded):
    bot = guarded["bot"]
    (entry,) = bot.get("/v1/memories").json()["entries"]
    assert "oil" in entry["text"]
    assert bot.get(f"/v1/memories/{the_entry(guarded, 'ann')['id']}").status_code == 404
    assert bot.get("/v1/export").status_code == 403


def test_a_key_that_only_reads_changes_nothing(guarded):
    eye, entry = guarded["eye"], the_entry(guarded, "ann")
    assert eye.get(f"/v1/memories/{entry['id']}").status_code == 200
    body = {"user_id": "ann"}
    for reply in (
        eye.post("/v1/memories", json={**body, "messages": "x"}),
        eye.patch(f"/v1/memories/{entry['id']}", json={"text": "x"}),
        eye.delete(f"/v1/memories/{entry['id']}"),
        eye.post("/v1/undo", json={**body, "target": entry["id"]}),
        eye.post("/v1/forget", json=body),
        eye.post("/v1/retry", json=body),
    ):
        assert reply.status_code == 403
    assert the_entry(guarded, "ann") == entry


def test_a_key_says_nothing_of_another_keys_replies(guarded):
    body = {"user_id": "ann", "agent_id": "once", "messages": "x", "dry_run": True}
    headers = {"Idempotency-Key": "same"}
    first = guarded["all"].post("/v1/memories", json=body, headers=headers)
    other = guarded["ann"].post("/v1/memories", json=body, headers=headers)
    assert first.status_code == other.status_code == 200
    assert "idempotent-replayed" not in other.headers


def test_wrong_keys_are_slowed_down():
    memory = Memory("ram:")
    _, key = Keys(memory.store).create("one")
    with serving(memory) as url:
        wrong = [
            httpx.get(f"{url}/v1/owners", headers={"X-API-Key": f"mr1_00000000_{n}"}).status_code
            for n in range(25)
        ]
        assert wrong[0] == 401 and wrong[-1] == 429
        right = httpx.get(f"{url}/v1/owners", headers={"X-API-Key": key})
        assert right.status_code == 200
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_key_is_taken_as_each_client_sends_it():
    memory = Memory("ram:")
    _, key = Keys(memory.store).create("one")
    with serving(memory) as url:
        for headers in (
            {"Authorization": f"Bearer {key}"},
            {"Authorization": f"Token {key}"},
            {"X-API-Key": key},
        ):
            assert httpx.get(f"{url}/v1/owners", headers=headers).status_code == 200


def test_more_requests_than_the_rate_wait():
    with serving(Memory("ram:"), rate="3/minute") as url:
        statuses = [httpx.get(f"{url}/v1/owners").status_code for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        assert httpx.get(f"{url}/healthz").status_code == 200
    with pytest.raises(ConfigError, match="rate is 'fast'"), serving(Memory("ram:"), rate="fast"):
        pass


def test_a_page_of_another_site_changes_nothing_here(url):
    body = {"user_id": "a", "messages": "x"}
    evil = httpx.post(f"{url}/v1/memories", json=body, headers={"Origin": "https://evil.example"})
    assert evil.status_code == 403
    rebound = httpx.get(f"{url}/v1/owners", headers={"Host": "evil.example"})
    assert rebound.status_code == 403 and "localhost" in rebound.json()["detail"]
    assert httpx.post(f"{url}/v1/memories", json=body, headers={"Origin": url}).status_code == 200
    for host in ("[::1", "", "localhost.evil.example", "127.0.0.1.evil.example"):
        assert httpx.get(f"{url}/v1/owners", headers={"Host": host}).status_code in (400, 403)
    with serving(Memory("ram:"), names=("memory.example",)) as known:
        headers = {"Host": "memory.example"}
        assert httpx.get(f"{known}/v1/owners", headers=headers).status_code == 200
    plain = httpx.post(f"{url}/v1/memories", content=json.dumps(body))  # as a form could send it
    assert plain.status_code == 422


def test_an_address_others_can_reach_needs_a_key():
    from memory_r1.serve.server.run import run

    with pytest.raises(ConfigError, match="no API key; make one"):
        run(Memory("ram:"), Serving(host="0.0.0.0", port=0), say=lambda text: None)


def test_a_key_is_kept_as_a_hash_and_gone_once_revoked(tmp_path):
    with Memory(tmp_path / "m.db") as memory:
        keys = Keys(memory.store)
        key, shown = keys.create("one", user_id="ann")
        assert keys.find(shown) == key and keys.all() == [key] and keys.in_use()
        kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert shown.split("_")[2].encode() not in kept
        assert keys.find(shown[:-1]) is None and keys.find("") is None
        assert keys.find(shown.replace("mr1", "mr2")) is None
        keys.revoke(key.id)
        assert keys.find(shown) is None and not keys.in_use()


def test_metrics_name_routes_and_no_ids(api, user):
    entry = add(api, "I like tea", user)["operations"][0]["entry_id"]
    api.get(f"/v1/memories/{entry}")
    text = api.get("/metrics").text
    assert 'memory_r1_operations_total{op="ADD"}' in text
    assert 'route="/v1/memories/{entry_id}"' in text and entry not in text
    assert "memory_r1_waiting_owners 0.0" in text


def test_a_store_that_is_away_for_a_moment_is_looked_after_again():
    memory, tries = Memory("ram:"), []
    again = threading.Event()

    def resume(deferred=False):
        tries.append(deferred)
        if len(tries) == 2:  # the first is the start of the server
            raise StoreError("the store is away")
        if len(tries) > 3:
            again.set()

    memory.resume = resume
    with serving(memory, retry_every=0.01):
        assert again.wait(10)
    assert tries[:3] == [False, True, True]


def test_revoking_the_last_key_does_not_open_the_server():
    memory = Memory("ram:")
    memory.add("Ann likes tea", user_id="ann")
    keys = Keys(memory.store)
    key, _ = keys.create("the only one")
    with serving(memory) as url:
        keys.revoke(key.id)
        assert httpx.get(f"{url}/v1/memories?user_id=ann").status_code == 401


def test_a_key_made_while_it_runs_closes_the_server_for_good():
    memory = Memory("ram:")
    with serving(memory) as url:
        assert httpx.get(f"{url}/v1/memories?user_id=ann").status_code == 200
        keys = Keys(memory.store)
        key, _ = keys.create("the only one")
        assert httpx.get(f"{url}/v1/memories?user_id=ann").status_code == 401
        keys.revoke(key.id)
        assert httpx.get(f"{url}/v1/memories?user_id=ann").status_code == 401


@pytest.mark.parametrize("path", ["/v1/owners", "/metrics", "/mem0/memories?user_id=ann", "/mcp"])
def test_whom_a_proxy_speaks_for_needs_a_key_even_while_there_is_none(url, path):
    method = "POST" if path == "/mcp" else "GET"
    headers = {"X-Forwarded-For": "203.0.113.7"}
    assert httpx.request(method, url + path, headers=headers).status_code == 401
    headers = {"X-Forwarded-For": "127.0.0.1, 203.0.113.7"}  # the first is what a stranger wrote
    assert httpx.request(method, url + path, headers=headers).status_code == 401


def test_what_a_stranger_sends_is_not_even_parsed(guarded):
    headers = {"content-type": "application/json"}
    for path in ("/v1/memories", "/v1/search", "/v1/undo", "/v1/forget"):
        assert guarded["nobody"].post(path, content="[" * 9, headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/memories", {"messages": [0] * 200_000}),
        ("/v1/memories", {"messages": [{"role": "boss"}] * 9_000}),
        ("/v1/feedback", {"question": "", "answer": "", "right": True, "used": [0] * 200_000}),
        ("/v1/search", {"query": "x", **{f"f{n}": 1 for n in range(50_000)}}),
        ("/v1/search", {"query": "x", "y" * 100_000: 1}),
    ],
)
def test_a_request_that_is_wrong_in_many_places_gets_a_short_reply(api, path, body):
    reply = api.post(path, json={"user_id": "ann", **body})
    assert reply.status_code == 422 and len(reply.content) < 20_000


@pytest.mark.parametrize("name", ["x" * 513, "x" * 40_000])
@pytest.mark.parametrize("field", ["user_id", "agent_id", "run_id"])
def test_an_id_has_the_same_bounds_in_a_query_as_in_a_body(api, field, name):
    asked = {"user_id": "ann", field: name}
    assert api.get("/v1/memories", params=asked).status_code == 422
    assert api.post("/v1/search", json={"query": "x", **asked}).status_code == 422


@pytest.mark.parametrize("path", ["search", "context", "ask"])
def test_nobody_waits_for_a_query_of_half_a_million_words(api, user, path):
    add(api, "I like tea", user)
    field = "question" if path == "ask" else "query"
    for length, status in ((20_000, 200), (20_001, 422)):
        body = {"user_id": user, field: ("tea " * length)[:length]}
        assert api.post(f"/v1/{path}", json=body).status_code == status


def test_no_reply_is_taken_for_a_page_or_kept_by_a_browser(api):
    for path in ("/healthz", "/v1/owners", "/openapi.json", "/metrics", "/v1/none", "/mem0/ping"):
        headers = api.get(path).headers
        assert "sandbox" in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


def test_the_process_answers_while_every_thread_waits():
    memory, go_on = Memory("ram:"), threading.Event()
    memory.search = lambda *args, **kwargs: go_on.wait(60) and []
    with serving(memory) as url:
        sent = {"json": {"user_id": "ann", "query": "x"}, "timeout": 120}
        waiting = [
            threading.Thread(target=httpx.post, args=[f"{url}/v1/search"], kwargs=sent)
            for _ in range(45)
        ]
        for thread in waiting:
            thread.start()
        time.sleep(1)
        try:
            assert httpx.get(f"{url}/healthz", timeout=10).status_code == 200
        finally:
            go_on.set()
            for thread in waiting:
                thread.join()


def test_a_path_can_not_write_lines_into_the_log(caplog):
    memory = Memory("ram:")

    def fail(*args, **kwargs):
        raise RuntimeError

    memory.store.holding = fail
    with serving(memory) as url:
        assert httpx.get(f"{url}/v1/memories/a%1b[2Jb%0aERROR: c").status_code == 500
    (record,) = [r for r in caplog.records if r.name == "memory_r1"]
    assert "\x1b" not in record.getMessage() and "\n" not in record.getMessage()


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("memory_r1.serve.server.guard.BODY_SECONDS", 0.3)
    with serving(Memory("ram:"), max_body=1000) as url:
        address = httpx.URL(url)
        for path in ("/v1/search", "/v1/chat/completions", "/signin", "/mcp"):
            with socket.create_connection((address.host, address.port), timeout=20) as line:
                kind = "x-www-form-urlencoded" if path == "/signin" else "json"
                head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
                line.sendall(f"{head}Content-Type: application/{kind}\r\n\r\n{{".encode())
                assert line.recv(12) in (b"HTTP/1.1 408", b"HTTP/1.1 501"), path


def test_a_slow_reply_is_not_a_slow_request(monkeypatch):
    monkeypatch.setattr("memory_r1.serve.server.guard.BODY_SECONDS", 0.1)
    memory = Memory("ram:")
    memory.search = lambda *args, **kwargs: time.sleep(0.6) or []
    with serving(memory, max_body=1000) as url:
        body = {"user_id": "ann", "query": "x"}
        assert httpx.post(f"{url}/v1/search", json=body).status_code == 200
