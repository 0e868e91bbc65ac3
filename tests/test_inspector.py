"""The inspector's pages without a browser: what they show, and what they never do."""

import html
import re
import subprocess
import sys
import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_pages import ANN, PAGES, entry_of, moment, remembered, text_of, visited, wrote_run
from made_server import serving

from memory_r1 import Memory
from memory_r1.llm import ScriptedLLM
from memory_r1.serve.web.seeing import compared
from memory_r1.serve.web.wording import wording
from memory_r1.types import Add, Message, Turn


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A visitor of a server that nobody changes."""
    runs = tmp_path_factory.mktemp("runs")
    wrote_run(runs / "manager")
    wrote_run(runs / "old" / "answer", ended=True)
    with visited(remembered(), runs=str(runs)) as visitor:
        yield visitor


# What is shown


def test_users_are_listed_with_agents_and_counts_and_can_be_looked_for(seen):
    shown = text_of(seen.get("/"))
    assert "3 memory banks" in shown and "ann 4 " in shown and "ann travel-bot 1 " in shown
    found = text_of(seen.get("/", q="BEN"))
    assert "1 memory bank fit" in found and "travel-bot" not in found
    assert "has “zoe” in its name" in text_of(seen.get("/", q="zoe"))


def test_memories_come_newest_first_and_point_to_their_lives(seen):
    reply = seen.get("/memories", **ANN)
    shown = text_of(reply)
    assert shown.index("blue car") < shown.index("peanuts") < shown.index("Shanghai")
    entry = entry_of(seen.memory, "dogs")
    assert f"/memory?user_id=ann&amp;id={entry.id}" in reply.text
    assert "agent travel-bot" in shown


def test_one_memory_tells_how_it_came_to_say_what_it_says(seen):
    entry = entry_of(seen.memory, "dogs")
    reply = seen.get("/memory", id=entry.id)  # whose it is, is found out
    assert str(reply.url).endswith(f"/memory?user_id=ann&id={entry.id}")
    assert "Ann has <del>a dog</del><ins>two dogs</ins>, Rex<ins> and Scout</ins>" in reply.text
    assert "<mark>Rex has company: I adopted another dog, Scout</mark>." in reply.text
    shown = text_of(reply)
    assert "reason: Ann adopted another dog, Scout" in shown and "model a-model-of-8b" in shown
    assert 'title="2023-07-01 10:00:00 UTC"' in reply.text


def test_search_tells_what_each_signal_adds(seen):
    shown = text_of(seen.get("/memories", q="Where does she live?", **ANN))
    assert "the best 4 of 4" in shown
    assert shown.index("Ann lives in Shanghai") < shown.index("Ann drives")
    for signal in ("words", "vectors", "neighbours", "session"):
        assert re.search(rf"{signal} [+-]\d\.\d\d", shown)


def test_the_past_is_compared_with_what_is_believed_now(seen):
    reply = seen.get("/then", at="2023-06-01T00:00:00", **ANN)
    shown = text_of(reply)
    assert "2 memories were believed then; of them 2 have changed and 0 are gone by now" in shown
    assert "2 came since" in shown and "Ann lives in Beijing Shanghai".split()[-1] in shown
    assert "Ann lives in <del>Beijing</del><ins>Shanghai</ins>" in reply.text
    assert "not believed then" in shown
    seconds = moment("2023-08-30T00:00").timestamp()
    assert "Nothing is different now." in text_of(seen.get("/then", t=seconds, differing=1, **ANN))


def test_two_moments_side_by_side():
    memory = Memory("ram:", now=lambda: moment("2023-05-08T09:00"))
    bank = memory.bank("ann")
    kept, lost, mended = (row.after for row in bank.apply([Add("a"), Add("b"), Add("c")]))
    before = bank.entries()
    memory.delete(lost.id, **ANN)
    memory.update(mended.id, "d", **ANN)
    [new] = [row.after for row in bank.apply([Add("e")])]
    found = {belief.entry.id: belief.fate for belief in compared(before, bank.entries())}
    assert found == {kept.id: "same", lost.id: "gone", mended.id: "changed", new.id: "new"}


@pytest.mark.parametrize("query", [{"at": "soon"}, {"t": "nan"}, {"t": "1e300"}, {"t": "x"}])
def test_what_is_no_moment_is_refused_on_a_page(seen, query):
    reply = seen.get("/then", **query, **ANN)
    assert reply.status_code == 422 and "<h1>" in reply.text


def test_the_journal_goes_from_the_last_operation_to_the_first():
    memory = Memory("ram:")
    for n in range(120):
        memory.add(f"Fact number {n}.", **ANN)
    with serving(memory) as url, httpx.Client(base_url=url) as client:
        for path in ("/journal", "/memories"):
            seen, address = [], f"{path}?user_id=ann"
            while address:
                reply = client.get(address).text
                seen += map(int, re.findall(r"Fact number (\d+)\.(?=</ins>|</bdi></a>)", reply))
                found = re.search('class="next" href="([^"]+)"', reply)
                address = found and html.unescape(found[1])
            assert seen == list(reversed(range(120)))


def test_an_empty_memory_says_what_to_do():
    with visited(Memory("ram:")) as visitor:
        assert 'memory-r1 add "I moved to Lisbon."' in text_of(visitor.get("/"))
        for page in PAGES:
            assert visitor.get(page, user_id="nobody").status_code == 200
        visitor.post("/add", form_of="/", text="I like tea.\r\nMilk too.", user=" zoe ")
        assert "I like tea." in text_of(visitor.get("/memories", user_id="zoe"))


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/memories", 422, "whose memory?"),
        ("/memory?user_id=ann&id=none", 404, "no entry 'none'"),
        ("/memory?id=none", 404, "no entry 'none'"),
        ("/memory?user_id=ann", 422, "query.id: Field required"),
        ("/memories?user_id=ann&k=0", 422, "query.k"),
        ("/run?name=none", 404, "no run 'none'"),
        ("/run?name=../runs/manager", 404, "no run"),
    ],
)
def test_errors_are_pages_that_say_what_was_expected(seen, path, status, told):
    reply = seen.get(path)
    assert reply.status_code == status and told in text_of(reply)
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_a_fault_is_a_page_that_tells_nothing(seen, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise RuntimeError("a secret")

    monkeypatch.setattr(seen.memory, "recent", fail)
    reply = seen.get("/journal", **ANN)
    assert reply.status_code == 500 and "secret" not in reply.text
    assert "a fault of the server" in text_of(reply) and "'/journal' failed" in caplog.text


# Nothing from elsewhere, and nothing that a memory says is obeyed


def every_page(visitor):
    memory = visitor.memory
    life = [("/memory", {"id": entry.id}) for entry in memory.list(superseded=True, **ANN)]
    pages = [(path, {}) for path in PAGES] + life + [("/memories", {"q": "ann"})]
    yield from (visitor.get(path, **query, **ANN) for path, query in pages)
    yield from (visitor.get(path) for path in ("/", "/signin", "/runs", "/run?name=manager"))
    yield visitor.post("/ask", ANN, question="How many dogs?")


def test_every_page_is_closed_to_what_comes_from_elsewhere(seen):
    for reply in every_page(seen):
        assert reply.status_code == 200
        policy = reply.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and reply.headers["cache-control"] == "no-store"
        assert reply.headers["x-content-type-options"] == "nosniff"
        # What such a policy refuses isn't there, and nothing that has to be fetched elsewhere.
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", reply.text)
        assert not re.search(r"<script(?![^>]*src)", reply.text)
        assert not re.search(r"(src|href|action)=\"(https?:|//)", reply.text)


HOSTILE = [
    "<script>alert(1)</script>",
    "'\"><img src=x onerror=alert(1)>",
    "</textarea></bdi></title><b>bold",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "\u202eright to left\u202c \u2066 never closed",
    "W" * 5000,
    "100 kB " + "lorem ipsum " * 9000,
    "nul \0 bell \a escape \x1b[2J",
    "half a smile \ud83d",
    "https://example.org/ javascript:alert(1)",
    " \n\t ",
]


@pytest.fixture(scope="module")
def hostile():
    """A visitor of a memory in which each user has said and done one hostile thing."""

    def reply(prompt):
        [n] = re.findall(r"hostile (\d+)", prompt.text)[-1:]
        return f"Memories: 0\n**Answer:** {HOSTILE[int(n)]}"

    with visited(Memory("ram:", llm=ScriptedLLM(reply))) as visitor:
        for n, text in enumerate(HOSTILE):
            bank = visitor.memory.bank(f"user {n}")
            said = Turn(text, text, moment("2023-05-08T09:00"), caption=text)
            known = {"reason": text, "model": text, "quote": text, "metadata": {text: text}}
            [row] = bank.apply([Add(text)], turn=said, message_id=f"m{n}", **known)
            received = moment("2023-05-08T09:00")
            message = Message(f"m{n}", bank.owner, said, received, "deferred", error=text)
            visitor.memory.store.add_message(message)
            visitor.memory.update(row.entry_id, f"{text} indeed", user_id=f"user {n}")
        yield visitor


@pytest.mark.parametrize("n", range(len(HOSTILE)))
def test_what_is_stored_is_shown_and_never_obeyed(hostile, n):
    text, owner = HOSTILE[n], {"user_id": f"user {n}"}
    [entry] = hostile.memory.list(**owner)
    replies = [hostile.get(path, **owner) for path in PAGES]
    replies += [hostile.get("/memory", id=entry.id, **owner)]
    replies += [hostile.get("/memories", q=text[:2000].encode("utf-8", "replace"), **owner)]
    replies += [hostile.post("/ask", owner, question=f"hostile {n}")]
    for reply in replies:
        assert reply.status_code == 200, reply.url
        for live in ("<script>alert", "<img", "</textarea></bdi>", "<b>bold"):
            assert live not in reply.text
        assert not set(reply.content) & {*range(9), 11, 12, *range(14, 32)}
    life = replies[len(PAGES)]
    assert "indeed" in life.text and len(life.content) < 20 * len(text) + 100_000
    hostile.post("/correct", {**owner, "id": entry.id}, text="tame\r\nand quiet", version="2")
    assert hostile.memory.get(entry.id, **owner).text == "tame\nand quiet"


def test_what_looks_like_a_template_stays_what_it_is(hostile):
    n = next(n for n, text in enumerate(HOSTILE) if "7 * 7" in text)
    assert "{{ 7 * 7 }}" in text_of(hostile.get("/journal", user_id=f"user {n}"))


def test_a_user_may_be_called_anything():
    memory = Memory("ram:")
    users = ["a/b", "a&b=c", "<b>", "ann\u202e", "你好", "a\0b", "%2e%2e", "#", " ", "x" * 500]
    for n, user in enumerate(users):
        memory.add(f"I like tea {n}.", user_id=user, agent_id=user, run_id=user)
    with visited(memory) as visitor:
        shown = []
        for address in re.findall('<a href="(/memories[^"]+)"', visitor.get("/").text):
            reply = visitor.get(html.unescape(address))
            assert reply.status_code == 200 and "<b></bdi>" not in reply.text
            shown += re.findall(r"I like tea (\d+)", text_of(reply))
    assert sorted(map(int, shown)) == list(range(len(users)))


def test_what_is_kept_by_browsers_has_an_address_of_its_own(seen):
    page = seen.get("/").text
    for address in re.findall('(?:href|src)="(/static/[^"]+)"', page):
        reply = seen.get(address)
        assert reply.status_code == 200 and "immutable" in reply.headers["cache-control"]
    for path in ("/static/none.css", "/static/..%2fpage.py", "/static/../page.py"):
        assert seen.get(path).status_code == 404


# The difference of two versions


def test_the_words_that_changed_are_told_apart():
    def told(before, after):
        marks = {"same": "{}", "gone": "[-{}-]", "new": "{{+{}+}}"}
        return "".join(marks[piece.fate].format(piece.text) for piece in wording(before, after))

    assert told("Ann has a dog", "Ann has two dogs") == "Ann has [-a dog-]{+two dogs+}"
    assert told("", "new") == "{+new+}" and told("same", "same") == "same"
    assert told("我住在北京。", "我住在上海。") == "我住在[-北京-]{+上海+}。"


@given(st.text("ab \n.你", max_size=40), st.text("ab \n.你", max_size=40))
def test_the_pieces_of_a_difference_give_both_versions(before, after):
    pieces = wording(before, after)
    assert "".join(p.text for p in pieces if p.fate != "new") == before
    assert "".join(p.text for p in pieces if p.fate != "gone") == after


def test_long_texts_are_compared_in_no_time():
    before, after = "old words " * 30_000, "new words " * 30_000
    began = time.perf_counter()
    assert [piece.fate for piece in wording(before, after)] == ["gone", "new"]
    assert time.perf_counter() - began < 10  # a difference of every word takes minutes


# Runs


def test_runs_are_drawn_from_what_of_their_files_can_be_read(seen):
    shown = text_of(seen.get("/runs"))
    assert "manager running 40 reward 0.850" in shown and "old/answer finished 40" in shown
    live = seen.get("/run", name="manager")
    assert "data-refresh" in live.text and live.text.count("<svg viewBox") >= 6
    assert "Reward (mean of 6 steps; dots: held out, greedy)" in live.text
    assert "data-refresh" not in seen.get("/run", name="old/answer").text


@pytest.mark.parametrize(
    "metrics", ["", "{", "[" * 100_000, '{"step": 1e400}', '{"step": 0}\n\xff']
)
def test_a_run_that_has_hardly_begun_is_shown(tmp_path, metrics):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "metrics.jsonl").write_text(metrics, encoding="latin-1")
    (tmp_path / "new" / "run.json").write_text("[]")
    with visited(Memory("ram:"), runs=str(tmp_path)) as visitor:
        assert "new running 0" in text_of(visitor.get("/runs"))
        assert "The curves appear here by themselves." in text_of(visitor.get("/run", name="new"))


def test_without_a_folder_of_runs_the_page_says_how_to_name_one():
    with visited(Memory("ram:")) as visitor:
        reply = visitor.get("/runs")
    assert reply.status_code == 422 and "--runs FOLDER" in text_of(reply)


def test_a_thousand_points_are_enough_and_what_was_held_out_stays():
    from memory_r1.serve.web.training import drawn

    rows = [{"step": n, "reward_mean": 0.5} for n in range(20_000)]
    rows[7] = {"step": 7, "reward_mean": 0.5, "eval_reward_mean": 0.5}
    [chart] = drawn(rows)
    assert chart.count("<circle") == 1 and len(chart) < 60_000


def test_the_pages_need_no_torch():
    code = (
        "import sys, memory_r1.serve.web.inspector; assert 'torch' not in sys.modules;"
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
