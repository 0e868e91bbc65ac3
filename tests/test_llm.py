"""Language models: a real HTTP server on this machine, scripts, and names."""

import json
import threading
import time

import pytest
from model_server import Server, chunk, chunks, completion, event

from memory_r1.errors import ConfigError, DataError, MalformedReply, ModelUnavailable
from memory_r1.llm import LLM, Agents, Call, ScriptedLLM, Streams, drive
from memory_r1.llm import open as opening
from memory_r1.llm.open import open_agents
from memory_r1.llm.openai import OpenAILLM
from memory_r1.llm.rate import RateLimit
from memory_r1.llm.usage import Tally, usage_of
from memory_r1.types import Completion, Prompt

HELLO = Prompt(
    (
        ("system", "Be brief."),
        ("user", "Hello"),
    )
)
KEY = "sk-very-secret"
SCHEMA = {"type": "object"}


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def waits():
    return []


@pytest.fixture
def llm(server, waits):
    llm = OpenAILLM("m", base_url=server.url + "/", api_key=KEY, sleep=waits.append, timeout=5)
    yield llm
    llm.close()


def test_a_prompt_is_sent_and_the_reply_read(server, llm):
    (said,) = llm.complete([HELLO], max_tokens=7)
    assert said == Completion("Hi", 11, 3)
    (body,) = server.bodies
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
        ],
        "max_tokens": 7,
        "temperature": 0.0,
    }
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert isinstance(llm, LLM)


def test_a_reply_that_was_cut_off_says_so(server, llm):
    server.respond = lambda body: (200, completion("Hi the", "length"))
    assert not llm.complete([HELLO])[0].finished


def test_prompts_are_sent_together_and_replies_keep_their_order(server, llm):
    all_sent = threading.Barrier(8, timeout=60)

    def respond(body):
        number = int(body["messages"][0]["content"])
        all_sent.wait()
        time.sleep(0.005 * (8 - number))
        return 200, completion(str(number))

    server.respond = respond
    said = llm.complete([Prompt((("user", str(n)),)) for n in range(8)])
    assert [completion.text for completion in said] == list("01234567")


def test_a_busy_server_is_asked_again_with_growing_pauses(server, llm, waits):
    statuses = iter([429, 503, 500, 200])
    server.respond = lambda body: (next(statuses), completion("Hi"))
    assert llm.complete([HELLO])[0].text == "Hi"
    assert waits == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(("wish", "wait"), [("7", 7), ("0.25", 0.25), ("9999", 60), ("Wed", 0.5)])
def test_the_servers_wish_to_wait_is_granted_within_reason(server, llm, waits, wish, wait):
    statuses = iter([429, 200])
    server.extra = {"retry-after": wish}
    server.respond = lambda body: (next(statuses), completion("Hi"))
    llm.complete([HELLO])
    assert waits == [wait]


def test_a_server_that_stays_broken_is_unavailable_and_the_key_is_not_told(server, llm):
    server.respond = lambda body: (500, {"error": f"bad key {KEY}"})
    with pytest.raises(ModelUnavailable) as caught:
        llm.complete([HELLO])
    assert server.url in str(caught.value) and "500" in str(caught.value)
    assert "5 attempts" in str(caught.value) and "OPENAI_BASE_URL" in str(caught.value)
    assert KEY not in str(caught.value) + repr(llm)


def test_a_wrong_key_is_not_tried_again(server, llm):
    server.respond = lambda body: (401, {"error": "who are you"})
    with pytest.raises(ModelUnavailable, match="who are you"):
        llm.complete([HELLO])
    assert len(server.bodies) == 1


def test_nobody_listening_is_unavailable(server, waits):
    server.http.server_close()
    llm = OpenAILLM("m", base_url=server.url, retries=1, sleep=waits.append)
    with pytest.raises(ModelUnavailable, match="2 attempts"):
        llm.complete([HELLO])
    with pytest.raises(ModelUnavailable, match="not valid|UnsupportedProtocol"):
        OpenAILLM("m", base_url="nonsense", retries=0).complete([HELLO])


@pytest.mark.parametrize(
    "reply",
    [
        *(b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": null}]}'),
        *(b'{"choices": [{"message": {"content": 5}}]}', b"[" * 5000, b"\xff\xfe"),
        b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "many"}}',
        b'{"choices": [{"message": {"content": "x"}}], "usage": 7}',
    ],
)
def test_what_is_no_chat_completion_is_unavailable(server, llm, reply):
    server.respond = lambda body: (200, reply)
    with pytest.raises(ModelUnavailable):
        llm.complete([HELLO])


def test_an_empty_content_is_an_empty_reply(server, llm):
    server.respond = lambda body: (200, {"choices": [{"message": {"content": None}}]})
    assert llm.complete([HELLO]) == [Completion("")]


def test_a_schema_is_sent_once_and_left_out_for_good_when_refused(server, llm):
    server.respond = lambda body: (
        (400, {"error": "no schemas"}) if "response_format" in body else (200, completion("Hi"))
    )
    llm.complete([HELLO], schema=SCHEMA)
    llm.complete([HELLO], schema=SCHEMA)
    assert ["response_format" in body for body in server.bodies] == [True, False, False]
    form = server.bodies[0]["response_format"]
    assert form["type"] == "json_schema" and form["json_schema"]["schema"] == SCHEMA


def test_a_schema_is_kept_when_it_was_not_to_blame(server, llm):
    server.respond = lambda body: (404, {"error": "no such model"})
    with pytest.raises(ModelUnavailable, match="no such model"):
        llm.complete([HELLO], schema=SCHEMA)
    server.respond = lambda body: (200, completion("Hi"))
    llm.complete([HELLO], schema=SCHEMA)
    assert "response_format" in server.bodies[-1]


def test_a_model_that_takes_neither_temperature_nor_max_tokens_is_served(server, llm):
    def respond(body):
        if "max_tokens" in body:
            return 400, {"error": "use 'max_completion_tokens' instead of 'max_tokens'"}
        if "temperature" in body:
            return 400, {"error": "'temperature' must be 1"}
        return 200, completion("Hi")

    server.respond = respond
    llm.complete([HELLO], max_tokens=7)
    llm.complete([HELLO], max_tokens=7)
    assert len(server.bodies) == 4
    assert server.bodies[-1]["max_completion_tokens"] == 7


def test_what_the_server_refuses_is_told(server, llm):
    server.respond = lambda body: (
        (400, {"error": "no schemas"}) if "response_format" in body else (200, completion("Hi"))
    )
    assert llm.refused == frozenset()
    llm.complete([HELLO], schema=SCHEMA)
    assert llm.refused == {"response_format"}


def test_half_a_surrogate_pair_can_be_said(server, llm):
    llm.complete([Prompt((("user", "a \ud83d dog"),))])
    assert server.bodies[0]["messages"][0]["content"] == "a ? dog"


def test_replies_and_their_tokens_are_counted_by_many_threads(server, llm):
    statuses = iter([503, 401, *[200] * 40])
    server.respond = lambda body: (next(statuses), completion("Hi"))
    with pytest.raises(ModelUnavailable):
        llm.complete([HELLO])
    assert llm.usage.tally == Tally()
    llm.complete([HELLO] * 40)
    assert llm.usage.tally == Tally(40, 440, 120)
    other = OpenAILLM("n", base_url=server.url)
    agents = Agents(extract=llm, manage=llm, answer=other)
    assert usage_of(agents) == Tally(40, 440, 120)
    assert usage_of(Agents(answer=ScriptedLLM([]))) == usage_of(Agents()) == Tally()
    assert Tally(3, 30, 9) - Tally(1, 10, 3) == Tally(2, 20, 6)


USED = event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}})


def test_a_reply_can_be_read_while_it_is_written(server, llm):
    heard, pieces = threading.Event(), []
    first, *rest = chunks("I am ", "Ann")[1:]
    odd = {"choices": [{"delta": None}, {"index": 1}], "error": None, "usage": None}
    rest[-1:] = [USED, event(odd), rest[-1]]
    server.respond = lambda body: (200, [b": hello\n\n", first, heard, *rest])

    def tell(text):
        pieces.append(text)
        heard.set()

    said = llm.stream(HELLO, tell, max_tokens=7)
    assert isinstance(llm, Streams) and pieces == ["I am ", "Ann"]
    assert (
        said == Completion("I am Ann", 9, 2) and usage_of(Agents(answer=llm)).completion_tokens == 2
    )
    (body,) = server.bodies
    assert body["stream"] is True and body["stream_options"] == {"include_usage": True}
    assert (body["max_tokens"], body["temperature"]) == (7, 0.0)


def test_a_server_that_does_not_stream_is_read_as_a_whole(server, llm):
    pieces = []
    assert llm.stream(HELLO, pieces.append) == Completion("Hi", 11, 3) and pieces == ["Hi"]


def test_a_server_that_counts_no_stream_or_is_busy_is_asked_again(server, llm, waits):
    faults = [(503, {}), (400, {"error": "unknown field stream_options"})]

    def respond(body):
        return faults.pop(0) if faults else (200, chunks("Hi"))

    server.respond, pieces = respond, []
    assert llm.stream(HELLO, pieces.append).text == "Hi" and pieces == ["Hi"]
    assert len(waits) == 1 and llm.refused == {"stream_options"}
    assert ["stream_options" in body for body in server.bodies] == [True, True, False]


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        ([None], "broke off"),
        ([], "broke off"),
        ([event({"error": {"message": f"no memory for {KEY}"}})], r"no memory for \[key\]"),
        ([b"data: {half\n\n"], "not a streamed chat completion: 'data: {half'"),
        ([b"data: [1]\n\n"], "not a streamed"),
        ([event({"choices": [{"delta": 7}]})], "not a streamed"),
        ([event({"choices": 7})], "not a streamed"),
        ([b"data: " + b"[" * 100_000 + b"\n\n"], "not a streamed"),
    ],
)
def test_a_stream_that_goes_wrong_is_no_reply_and_is_not_repeated(server, llm, rest, told):
    server.respond, pieces = lambda body: (200, [chunk({"content": "I am"}), *rest]), []
    with pytest.raises(ModelUnavailable, match=told):
        llm.stream(HELLO, pieces.append)
    assert pieces == ["I am"] and len(server.bodies) == 1


def test_the_servers_models_are_listed(server, llm, waits):
    assert llm.models() == ["m", "n"]
    for unknown in ((404, {"error": "?"}), (200, b"<html>"), (200, []), (200, {"data": [3]})):
        server.models = unknown
        assert llm.models() == []
    for refusal, says in ((401, f"bad key {KEY}"), (500, "HTTP 500")):
        server.models = (refusal, {"error": says})
        with pytest.raises(ModelUnavailable) as caught:
            llm.models()
        assert str(refusal) in str(caught.value) and KEY not in str(caught.value)
    with pytest.raises(ModelUnavailable, match="Connect"):
        OpenAILLM("m", base_url="http://127.0.0.1:1/v1").models()
    assert waits == []


class Clock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds

    def limit(self, requests=None, tokens=None):
        return RateLimit(requests, tokens, clock=lambda: self.now, sleep=self.sleep)


def test_no_minute_sees_more_requests_than_the_limit():
    clock = Clock()
    limit = clock.limit(requests=3)
    starts = []
    for number in range(10):
        clock.now += number % 3  # some come later than they might
        starts.append(limit.enter(0).at)
    assert starts[:3] == [1000, 1001, 1003]  # the first few don't wait
    assert all(later - start >= 60 for start, later in zip(starts, starts[3:], strict=False))
    assert starts[3] == 1060  # nor does anyone longer than needed


def test_no_minute_sees_more_tokens_than_the_limit():
    clock = Clock()
    limit = clock.limit(tokens=100)
    starts = [limit.enter(tokens).at - 1000 for tokens in (60, 40, 30, 40, 90)]
    assert starts == [0, 0, 60, 60, 120]
    assert limit.enter(500).at - 1000 == 180  # alone, since it could never fit


def test_tokens_that_were_not_needed_are_free_for_others():
    clock = Clock()
    limit = clock.limit(tokens=100)
    limit.enter(90).tokens = 10
    limit.enter(90)
    assert clock.waits == []


def test_threads_share_a_limit():
    limit = RateLimit(requests=5, sleep=lambda seconds: pytest.fail("nobody should wait"))
    threads = [threading.Thread(target=limit.enter, args=(1,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waited = []

    class Stop(Exception):
        pass

    def sleep(seconds):
        waited.append(seconds)
        raise Stop

    limit._sleep = sleep
    with pytest.raises(Stop):
        limit.enter(1)
    assert 55 < waited[0] <= 60


@pytest.mark.parametrize("numbers", [(0, None), (None, 0), (-1, 5)])
def test_a_limit_below_one_is_refused(numbers):
    with pytest.raises(ConfigError, match="at least 1"):
        RateLimit(*numbers)


def test_every_attempt_counts_against_the_limit_and_tokens_are_corrected(server, waits):
    clock = Clock()
    limit = clock.limit(requests=2, tokens=10_000)
    llm = OpenAILLM("m", base_url=server.url, limit=limit, sleep=waits.append)
    statuses = iter([503, 200, 200])
    server.respond = lambda body: (next(statuses), completion("Hi"))
    llm.complete([HELLO], max_tokens=4000)
    assert clock.waits == []
    assert [sent.tokens for sent in limit._recent] == [len(HELLO.text) // 4 + 4000, 14]
    llm.complete([HELLO])
    assert clock.waits == [60]


def test_a_script_replays_replies_and_is_loud_when_it_runs_out():
    llm = ScriptedLLM(["a", "b"])
    assert [c.text for c in llm.complete([HELLO, HELLO])] == ["a", "b"]
    with pytest.raises(AssertionError, match="ran out at call 3"):
        llm.complete([HELLO])
    assert len(llm.prompts) == 3 and isinstance(llm, LLM)
    assert ScriptedLLM(lambda prompt: prompt.text.upper()).complete([HELLO])[0].text[-5:] == "HELLO"


def test_conversations_are_batched_by_role_and_round():
    calls = []

    class Counting(ScriptedLLM):
        def complete(self, prompts, **options):
            calls.append(len(prompts))
            return super().complete(prompts, **options)

    def talk(rounds):
        said = []
        for _ in range(rounds):
            said.append((yield Call("answer", HELLO)).text)
        return said

    llm = Counting(lambda prompt: "x")
    assert drive([talk(2), talk(0), talk(3)], Agents(answer=llm)) == [["x"] * 2, [], ["x"] * 3]
    assert calls == [2, 2, 1]
    with pytest.raises(ConfigError, match="answer"):
        drive([talk(1)], Agents())


def test_an_unreachable_model_reaches_only_those_who_asked_it():
    def talk(role):
        try:
            return (yield Call(role, HELLO)).text
        except ModelUnavailable:
            return "gone"

    agents = Agents(extract=ScriptedLLM([ModelUnavailable("down")]), answer=ScriptedLLM(["x"]))
    assert drive([talk("extract"), talk("answer")], agents) == ["gone", "x"]


def test_no_name_and_rules_are_no_model():
    assert open_agents(None) == open_agents("rules") == Agents()


def test_services_are_opened_by_name_or_url(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    agents = open_agents("openai:gpt")
    assert agents.extract is agents.manage is agents.answer
    assert (agents.answer.name, agents.answer.base_url) == ("gpt", "http://localhost:1/v1")
    other = open_agents("http://localhost:2/v1/#org/model").answer
    assert (other.name, other.base_url) == ("org/model", "http://localhost:2/v1")
    for nameless in ("openai:", "http://localhost:2/v1"):
        with pytest.raises(ConfigError, match="which model"):
            open_agents(nameless)
    for missing in ("", "./nowhere", "/nowhere"):
        with pytest.raises(ConfigError, match="no model is called"):
            open_agents(missing)


def test_the_limit_of_a_service_comes_from_its_url_or_the_environment(monkeypatch):
    for variable in ("MEMORY_R1_RPM", "MEMORY_R1_TPM"):
        monkeypatch.delenv(variable, raising=False)

    def limit(name):
        return open_agents(name).answer._limit

    assert limit("http://localhost:3/v1#m") is None
    one = limit("http://localhost:3/v1?rpm=60&tpm=1000#m")
    assert (one.requests, one.tokens) == (60, 1000)
    assert open_agents("http://localhost:3/v1?rpm=60#m").answer.base_url == "http://localhost:3/v1"
    assert limit("http://localhost:3/v1/?rpm=60&tpm=1000#another") is one, "one service, one limit"
    assert limit("http://localhost:4/v1?rpm=60&tpm=1000#m") is not one
    monkeypatch.setenv("MEMORY_R1_RPM", "30")
    assert limit("http://localhost:3/v1#m").requests == 30
    assert limit("http://localhost:3/v1?rpm=7#m").requests == 7
    assert limit("openai:gpt").requests == 30
    for wrong in ("?rpm=0#m", "?rpm=#m", "?tpm=many#m", "?rmp=3#m"):
        with pytest.raises(ConfigError, match="expected"):
            limit(f"http://localhost:3/v1{wrong}")
    monkeypatch.setenv("MEMORY_R1_RPM", "fast")
    with pytest.raises(ConfigError, match="MEMORY_R1_RPM.*'fast'"):
        limit("openai:gpt")


def test_a_training_run_names_who_plays_which_role(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "open_llm", lambda name: ScriptedLLM([], name=name))
    (tmp_path / "manager").mkdir()
    roles = {"extract": "tiny-base", "manage": "manager", "answer": "tiny-base"}
    (tmp_path / "agents.json").write_text(json.dumps(roles))
    agents = open_agents(str(tmp_path))
    assert agents.extract is agents.answer and agents.extract.name == "tiny-base"
    assert agents.manage.name == str(tmp_path / "manager")
    (tmp_path / "agents.json").write_text('{"manage": "manager"}')
    assert open_agents(str(tmp_path)).answer is None


@pytest.mark.parametrize("text", ["", "[]", '{"boss": "x"}', '{"manage": 3}', "[" * 5000])
def test_an_unusable_agents_file_is_refused(tmp_path, text):
    (tmp_path / "agents.json").write_text(text)
    with pytest.raises(DataError, match=r"agents\.json"):
        open_agents(str(tmp_path))


def test_a_malformed_reply_is_not_an_absent_model():
    assert not issubclass(MalformedReply, ModelUnavailable)
