"""Calls of models in a benchmark: what is timed, counted and kept."""

import threading

import pytest

from memory_r1.bench.calls import Spent, metered, services
from memory_r1.errors import ConfigError, ModelUnavailable
from memory_r1.llm import Agents, Call, ScriptedLLM, drive
from memory_r1.llm.replies import Replies, Watched, key_of, watched
from memory_r1.types import Completion, Prompt


def prompt(text):
    return Prompt((("user", text),))


class Model(ScriptedLLM):
    """Repeats what it is told, in its own name; what it was asked is in `prompts`."""

    def __init__(self, identity="model", fails=()):
        super().__init__(lambda shown: f"{self.identity}: {shown.text}")
        self.identity = identity


@pytest.fixture
def replies(tmp_path):
    kept = Replies(tmp_path / "new" / "replies.db")
    yield kept
    kept.close()


def texts(completions):
    return [completion.text for completion in completions]


def test_a_reply_is_paid_for_once_also_by_another_run(replies, tmp_path):
    first = Watched(model := Model(), replies)
    asked = [prompt("a"), prompt("b"), prompt("a")]
    assert texts(first.complete(asked)) == ["model: a", "model: b", "model: a"]
    assert len(model.prompts) == 2
    other = Replies(tmp_path / "new" / "replies.db")
    again = Watched(later := Model(), other)
    assert texts(again.complete([prompt("b"), prompt("c")])) == ["model: b", "model: c"]
    assert texts(later.prompts) == ["c"]
    other.close()


def test_a_kept_reply_says_how_long_it_took_when_it_was_new(replies):
    model = Watched(Model(), replies)
    [new] = model.complete([prompt("a")])
    [kept] = model.complete([prompt("a")])
    assert kept.seconds == new.seconds > 0


@pytest.mark.parametrize(
    ("change", "how"),
    [
        ({"identity": "other"}, {}),
        ({}, {"max_tokens": 7}),
        ({}, {"schema": {"type": "object"}}),
    ],
)
def test_another_model_limit_or_schema_is_another_reply(replies, change, how):
    Watched(Model(), replies).complete([prompt("a")])
    Watched(model := Model(**change), replies).complete([prompt("a")], **how)
    assert len(model.prompts) == 1


def test_what_is_sampled_or_has_no_identity_is_not_kept(replies):
    sampled = Watched(model := Model(), replies)
    sampled.complete([prompt("a")], temperature=1.0)
    sampled.complete([prompt("a")], temperature=1.0)
    nameless = Watched(scripted := ScriptedLLM(["1", "2"]), replies)
    assert texts(nameless.complete([prompt("a")]) + nameless.complete([prompt("a")])) == ["1", "2"]
    assert (len(model.prompts), len(scripted.prompts)) == (2, 2)


def test_a_failure_is_not_kept(replies):
    down = ScriptedLLM([ModelUnavailable("it is down"), "up"])
    down.identity = "service"
    model = Watched(down, replies)
    with pytest.raises(ModelUnavailable):
        model.complete([prompt("a")])
    assert texts(model.complete([prompt("a")])) == ["up"]


def test_threads_share_a_file(replies):
    models = [Watched(Model(), replies) for _ in range(8)]
    threads = [
        threading.Thread(target=lambda m=m: m.complete([prompt(str(i)) for i in range(50)]))
        for m in models
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (
        len(replies.get(key_of(models[0].llm, prompt(str(i)), 512, None) for i in range(50))) == 50
    )


def test_half_a_character_in_a_reply_can_be_kept(replies):
    model = ScriptedLLM(["half \ud83d"])
    model.identity = "m"
    Watched(model, replies).complete([prompt("a")])
    assert texts(Watched(model, replies).complete([prompt("a")])) == ["half ?"]


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    (tmp_path / "replies.db").write_text("something else entirely, and long enough to be read")
    with pytest.raises(ConfigError, match="--no-cache"):
        Replies(tmp_path / "replies.db")


def talk(times):
    for i in range(times):
        reply = yield Call("answer", prompt(str(i)))
    return reply.text


class Slow(ScriptedLLM):
    """Says that each reply took a second, and 10 and 3 tokens."""

    def complete(self, prompts, **how):
        return [Completion("yes", 10, 3, seconds=1.0) for _ in prompts]


def test_a_conversation_is_charged_for_its_own_calls_and_not_for_waiting():
    spent = [Spent(), Spent()]
    llm = Slow([])
    done = drive([metered(talk(2), spent[0]), metered(talk(5), spent[1])], Agents(answer=llm))
    assert done == ["yes", "yes"]
    assert [s.calls for s in spent] == [2, 5]
    assert (spent[1].prompt_tokens, spent[1].completion_tokens) == (50, 15)
    assert spent[0].model == 2.0
    assert spent[0].seconds < 3  # 5 with the other's


def test_an_absent_model_ends_a_metered_conversation():
    def patient():
        try:
            yield Call("answer", prompt("?"))
        except ModelUnavailable:
            return "kept for later"

    down = ScriptedLLM([ModelUnavailable("it is down")])
    with pytest.raises(ModelUnavailable):
        drive([metered(patient(), Spent())], Agents(answer=down))


def test_one_model_in_two_roles_stays_one():
    model = Model()
    seen = watched(Agents(extract=model, manage=model, answer=Model("other")), None)
    assert seen.extract is seen.manage is not seen.answer
    assert not services(seen)
    model.concurrent = True
    assert services(watched(Agents(extract=model), None))
    assert not services(Agents())
