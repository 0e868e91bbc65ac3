"""What the inspector's forms do, and who may look and send them."""

import re

import httpx
import pytest
from made_pages import ANN, PAGES, Visitor, entry_of, remembered, text_of, visited, wrote_run
from made_server import serving

from memory_r1 import Memory, transfer
from memory_r1.serve.server.keys import Keys
from memory_r1.types import Add, Owner


@pytest.fixture
def changed():
    """A visitor of a server of the test's own."""
    with visited(remembered()) as visitor:
        yield visitor


# What the forms do


def test_correct_undo_redo_delete_restore(changed):
    memory, entry = changed.memory, entry_of(changed.memory, "dogs")
    at = {**ANN, "id": entry.id}
    reply = changed.post("/correct", at, text="Ann has three dogs", version="2")
    assert "Corrected." in text_of(reply) and "/memory?" in str(reply.url)
    assert memory.get(entry.id, **ANN).text == "Ann has three dogs"
    row = memory.recent(**ANN)[0]
    changed.post("/undo", {**ANN, "row": row.id})
    assert memory.get(entry.id, **ANN) == entry
    changed.post("/undo", {**ANN, "row": memory.recent(**ANN)[0].id})
    assert memory.get(entry.id, **ANN).text == "Ann has three dogs"
    reply = changed.post("/delete", at)
    assert "It is out of search" in text_of(reply) and "Restore" in reply.text
    assert "dogs" not in text_of(changed.get("/memories", **ANN))
    assert "three dogs" in text_of(changed.get("/memories", superseded=1, **ANN))
    changed.post("/undo", {**ANN, "row": memory.recent(**ANN)[0].id}, back="journal")
    assert memory.get(entry.id, **ANN).superseded is None


def test_a_memory_that_was_never_there_still_tells_its_life(changed):
    entry = entry_of(changed.memory, "peanuts")
    [row] = changed.memory.journal(entry_id=entry.id, **ANN)[:1]
    reply = changed.post("/undo", {**ANN, "row": row.id})
    assert reply.status_code == 200 and "This memory was taken back" in text_of(reply)
    assert "Redo" in reply.text
    changed.post("/undo", {**ANN, "row": changed.memory.recent(**ANN)[0].id})
    assert changed.memory.get(entry.id, **ANN) == entry


def test_what_was_changed_meanwhile_is_not_overwritten(changed):
    entry = entry_of(changed.memory, "dogs")
    reply = changed.post("/correct", {**ANN, "id": entry.id}, text="No dogs", version="1")
    assert reply.status_code == 409 and "it is at version 2, not 1" in text_of(reply)
    [first, *_] = changed.memory.journal(entry_id=entry.id, **ANN)
    reply = changed.post("/undo", {**ANN, "row": first.id})
    assert reply.status_code == 409 and "has been changed since" in text_of(reply)
    assert changed.post("/undo", {**ANN, "row": entry.id}).status_code == 404
    assert changed.memory.get(entry.id, **ANN) == entry


def test_proposals_are_approved_and_rejected(changed):
    [row] = changed.memory.proposals(**ANN)
    assert "The blue car is sold." in text_of(changed.get("/proposals", **ANN))
    reply = changed.post("/approve", {**ANN, "row": row.id})
    assert "Approved and done." in text_of(reply)
    assert entry_of(changed.memory, "car").superseded
    assert changed.post("/reject", {**ANN, "row": row.id}).status_code == 409
    changed.post("/undo", {**ANN, "row": changed.memory.recent(**ANN)[0].id})
    assert not entry_of(changed.memory, "car").superseded


def test_a_memory_that_is_only_proposed_says_so():
    memory = Memory("ram:", policy="confirm_all")
    with visited(memory) as visitor:
        reply = visitor.post("/add", {"user_id": "a\0b"}, text="I like tea.")
        assert "it is remembered once it is approved" in text_of(reply)
        [row] = memory.proposals(user_id="a\0b")
        life = {"user_id": "a\0b", "id": row.entry_id}
        assert "This memory is only proposed" in text_of(visitor.get("/memory", **life))
        visitor.post("/reject", {"user_id": "a\0b", "row": row.id})
        assert "This memory was taken back" in text_of(visitor.get("/memory", **life))


def test_what_a_model_failed_at_is_shown_and_tried_again(changed):
    shown = text_of(changed.get("/waiting", **ANN))
    assert "1 deferred because a model failed" in shown and "book the dentist" in shown
    assert "and some still wait" in text_of(changed.post("/retry", ANN))
    rules = Memory(changed.memory.store, embedder=changed.memory.embedder)
    changed.memory.agents = rules.agents
    assert "Nothing waits" in text_of(changed.post("/retry", ANN))


def test_an_answer_names_what_it_rests_on_and_can_be_judged(changed):
    reply = changed.post("/ask", ANN, question="How many dogs does Ann have?")
    shown = text_of(reply)
    assert "rests on 1 of 4 memories" in shown and "model a-model-of-8b" in shown
    assert shown.index("kept") < shown.index("peanuts")
    hidden = dict(
        re.findall('type="hidden" name="(question|answer|used)" value="([^"]*)"', reply.text)
    )
    told = changed.post("/feedback", ANN, **hidden, right="no", correct="two")
    assert "Training learns from it." in text_of(told)
    [said] = changed.memory.store.feedback(Owner("ann"))
    assert (said.answer, said.right, said.correct) == ("2", False, "two")
    assert said.used == (entry_of(changed.memory, "dogs").id,)
    assert changed.post("/ask", ANN, question=" ").status_code == 422


def test_a_model_out_of_reach_is_said_on_a_page(changed):
    memory = Memory("ram:", llm="http://127.0.0.1:9/v1#m")
    memory.agents.answer._sleep = lambda seconds: None
    memory.bank("ann").apply([Add("Ann likes tea")])
    with visited(memory) as visitor:
        reply = visitor.post("/ask", ANN, question="What?")
    assert reply.status_code == 503 and "127.0.0.1:9" in text_of(reply)


def test_forgetting_needs_the_name_and_hands_out_a_receipt(changed):
    assert "ann, agent travel-bot: 1 memory" in text_of(changed.get("/forget", **ANN))
    reply = changed.post("/forget", ANN, typed="Anne", all="1")
    assert reply.status_code == 422 and "nothing was erased" in text_of(reply)
    assert changed.memory.list(**ANN)
    reply = changed.post("/forget", ANN, typed="ann", all="1")
    assert "<dt>entries</dt><dd>5</dd>" in reply.text
    assert changed.memory.store.owners("ann") == []
    assert changed.memory.list(user_id="ben")


def test_the_export_is_a_file_that_restore_reads(changed):
    reply = changed.get("/export", **ANN)
    assert "attachment" in reply.headers["content-disposition"]
    assert reply.headers["cache-control"] == "no-store"
    twin = Memory("ram:")
    counts = transfer.restore(twin.store, reply.text.splitlines(), twin.embedder)
    assert counts["owners"] == 2 and entry_of(twin, "dogs")


# Who may


def test_a_form_of_another_site_changes_nothing(changed):
    entry = entry_of(changed.memory, "dogs")
    at = {**ANN, "id": entry.id}
    for data in ({}, {"token": ""}, {"token": "a" * 64}, {"token": "\u20ac"}):
        reply = changed.client.post("/delete", params=at, data=data)
        assert reply.status_code == 403 and "load the page again" in text_of(reply)
    changed.client.headers["Origin"] = "http://evil.example"
    assert changed.post("/delete", at).status_code == 403
    changed.client.headers["Origin"] = str(changed.client.base_url).rstrip("/")
    assert changed.client.get("/delete", params=at).status_code == 405
    assert changed.memory.get(entry.id, **ANN) == entry
    assert changed.post("/delete", at).status_code == 200


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server whose store has keys: visitors by the name of theirs, the keys in `.shown`."""
    runs = tmp_path_factory.mktemp("runs")
    wrote_run(runs / "manager")
    memory = remembered()
    keys = Keys(memory.store)
    shown = {
        "all": keys.create("everybody")[1],
        "ann": keys.create("ann's", user_id="ann")[1],
        "bot": keys.create("a bot", user_id="ann", agent_id="travel-bot")[1],
        "eye": keys.create("looks on", read_only=True)[1],
    }
    with serving(memory, runs=str(runs)) as url:
        visitors = {name: Visitor(url) for name in (*shown, "nobody")}
        for name, key in shown.items():
            visitors[name].post("/signin", key=f" {key} ", next="/")
        yield type("Guarded", (dict,), {"shown": shown, "memory": memory, "url": url})(visitors)
        for visitor in visitors.values():
            visitor.client.close()


def test_without_a_key_there_is_only_the_sign_in_page(guarded):
    nobody = guarded["nobody"]
    for path in ("/", *PAGES, "/runs", "/export", "/memory"):
        reply = nobody.get(path, id="x", **ANN)
        assert "/signin?next=" in str(reply.url) and "API key" in text_of(reply)
        assert "set-cookie" not in reply.history[0].headers
    reply = nobody.post("/delete", {**ANN, "id": entry_of(guarded.memory, "dogs").id})
    assert "/signin" in str(reply.url)
    assert entry_of(guarded.memory, "dogs").superseded is None


def test_signing_in_leads_back_to_where_one_came_from_and_nowhere_else(guarded):
    def led_to(after):
        with httpx.Client(base_url=guarded.url) as client:
            token = re.search('name="token" value="([^"]+)"', client.get("/signin").text)[1]
            data = {"token": token, "key": guarded.shown["all"], "next": after}
            reply = client.post("/signin", data=data)
        assert reply.status_code == 303
        return reply.headers["location"], reply.headers["set-cookie"]

    address, cookie = led_to("/journal?user_id=ann")
    assert address == "/journal?user_id=ann"
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
    assert "secure" not in cookie.lower()
    for elsewhere in ("//evil.example", "https://evil.example", "/\\evil.example", "/\r\nX: y", ""):
        assert led_to(elsewhere)[0] == "/"


def test_the_key_is_only_sent_encrypted_where_the_page_was(guarded):
    encrypted = {"X-Forwarded-Proto": "https"}
    with httpx.Client(base_url=guarded.url, headers=encrypted) as client:
        token = re.search('name="token" value="([^"]+)"', client.get("/signin").text)[1]
        reply = client.post("/signin", data={"token": token, "key": guarded.shown["all"]})
    assert "Secure" in reply.headers["set-cookie"]


def test_a_wrong_key_opens_nothing_and_too_many_close_the_door():
    memory = remembered()
    Keys(memory.store).create("a key")
    with visited(memory) as visitor:
        reply = visitor.post("/signin", key="mr1_00000000_guess")
        assert reply.status_code == 401 and "This key opens nothing" in text_of(reply)
        assert "set-cookie" not in reply.headers
        statuses = [visitor.post("/signin", key="mr1_x_y").status_code for _ in range(25)]
        assert set(statuses) == {401, 429} and statuses[-1] == 429


def test_the_cookie_opens_pages_and_not_rest(guarded):
    client = guarded["all"].client
    assert client.get("/journal", params=ANN).status_code == 200
    assert client.get("/v1/memories", params=ANN).status_code == 401
    header = {"Authorization": f"Bearer {guarded.shown['all']}"}
    with httpx.Client(base_url=guarded.url, headers=header) as program:
        assert program.get("/v1/memories", params=ANN).status_code == 200
        assert program.get("/journal", params=ANN).status_code == 303


def test_a_key_of_a_user_shows_that_user_only(guarded):
    ann = guarded["ann"]
    assert "ben" not in text_of(ann.get("/"))
    assert "Ann drives" in text_of(ann.get("/memories"))  # need not say who
    for path in PAGES:
        reply = ann.get(path, user_id="ben")
        assert reply.status_code == 403 and "jazz" not in reply.text
    theirs = entry_of(guarded.memory, "jazz", "ben").id
    for reply in (
        ann.get("/memory", id=theirs),
        ann.get("/memory", id=theirs, **ANN),
        ann.post("/delete", {**ANN, "id": theirs}),
        ann.post("/correct", {**ANN, "id": theirs}, text="mine", version="1"),
        ann.post("/undo", {**ANN, "row": guarded.memory.recent(user_id="ben")[0].id}),
    ):
        assert reply.status_code == 404 and "jazz" not in reply.text
    for path in ("/delete", "/correct"):
        reply = ann.post(path, {"user_id": "ben", "id": theirs}, text="mine", version="1")
        assert reply.status_code == 403
    assert ann.get("/export", user_id="ben").status_code == 403
    assert ann.get("/runs").status_code == 403 and "Runs" not in text_of(ann.get("/"))
    assert guarded["all"].get("/runs").status_code == 200


def test_a_key_of_an_agent_shows_that_agents_memories_only(guarded):
    bot = guarded["bot"]
    shown = bot.get("/memories")
    assert "window seats" in text_of(shown) and "Export" not in shown.text
    assert bot.get("/memories", **ANN).status_code == 200  # its own agent's, not named
    assert "dogs" not in text_of(bot.get("/memories", **ANN))
    assert "other memory bank" not in text_of(shown)
    assert bot.get("/memories", agent_id="another").status_code == 403
    assert bot.get("/export", **ANN).status_code == 403


def test_a_key_that_only_reads_sees_no_buttons_and_can_not_post(guarded):
    eye, entry = guarded["eye"], entry_of(guarded.memory, "dogs")
    for path in ("/memories", "/journal", "/proposals", "/waiting", "/memory"):
        reply = eye.get(path, id=entry.id, **ANN)
        actions = set(re.findall('method="post" action="([^"?]+)', reply.text))
        assert reply.status_code == 200 and actions == {"/signout"}
    assert "only reads" in text_of(reply)
    [proposal] = guarded.memory.proposals(**ANN)
    row = guarded.memory.recent(**ANN)[0].id
    for path, query in (
        ("/delete", {"id": entry.id}),
        ("/correct", {"id": entry.id}),
        ("/undo", {"row": row}),
        ("/approve", {"row": proposal.id}),
        ("/reject", {"row": proposal.id}),
        ("/retry", {}),
        ("/feedback", {}),
        ("/forget", {}),
        ("/add", {}),
    ):
        assert eye.post(path, {**ANN, **query}, typed="ann", text="x").status_code == 403, path
    assert eye.get("/forget", **ANN).status_code == 403
    asked = eye.post("/ask", ANN, question="How many dogs does Ann have?")
    assert asked.status_code == 200 and "/feedback" not in asked.text


def test_signing_out_and_revoking_end_it():
    memory = remembered()
    keys = Keys(memory.store)
    keys.create("another")
    key, shown = keys.create("mine")
    with visited(memory) as visitor:
        assert "mine" in text_of(visitor.post("/signin", key=shown))
        assert "/signin" in str(visitor.post("/signout", form_of="/").url)
        assert "API key" in text_of(visitor.get("/"))
        visitor.post("/signin", key=shown)
        assert "Users" in text_of(visitor.get("/"))
        keys.revoke(key.id)
        assert "API key" in text_of(visitor.get("/journal", **ANN))
        assert not visitor.client.cookies


def test_two_servers_on_one_machine_do_not_sign_each_other_out():
    first, second = remembered(), remembered()
    shown = [Keys(memory.store).create(name)[1] for memory, name in ((first, "a"), (second, "b"))]
    with visited(first) as one, visited(second) as other:
        one.post("/signin", key=shown[0])
        other.client.cookies = one.client.cookies  # one browser, which knows no ports
        other.post("/signin", key=shown[1])
        for visitor in (one, other):
            assert "/signin" not in str(visitor.get("/journal", **ANN).url)
        other.post("/signout", form_of="/")
        assert "/signin" not in str(one.get("/journal", **ANN).url)


@pytest.mark.parametrize("host", ["localhost:x", "localhost:99999", "[::1", "127.0.0.1:-1"])
def test_an_address_that_is_none_is_refused(guarded, host):
    reply = guarded["all"].client.get("/", headers={"Host": host})
    assert reply.status_code == 403
