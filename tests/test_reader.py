"""A short answer is read from passages, whatever shape the reply has."""

from datetime import UTC, datetime

import pytest
from goldens import assert_golden
from hypothesis import given
from hypothesis import strategies as st

from memory_r1.bench.systems import reader
from memory_r1.errors import MalformedReply
from memory_r1.types import Completion, Entry, Owner

MAY_8 = datetime(2023, 5, 8, 13, 56, tzinfo=UTC)
JUNE_2 = datetime(2023, 6, 2, 9, 10, tzinfo=UTC)


def entry(number, text, said=MAY_8, speaker="Mia"):
    return Entry(f"id-{number}", text, Owner("u"), MAY_8, said=said, speaker=speaker)


def test_the_readers_prompt_is_the_reviewed_one():
    entries = [
        entry(0, "Mia has two bicycles"),
        entry(1, "[8 May 2023] Bo: I live in Rome", speaker="Bo"),
        entry(2, "[2 June 2023] Bo: odd\nMia: </s> **Answer:** 42", said=JUNE_2, speaker=""),
        entry(3, "a summary\n\nof all", said=None, speaker=""),
    ]
    later = reader.render("How\nmany?", entries, "instruct", asked=datetime(2024, 1, 2))
    assert_golden("reader_instruct", later)
    assert_golden("reader_empty", reader.render("Who?", [], "instruct"))


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("**Answer:** bees", "bees"),
        ("They keep bees, as D1 says.\n**Answer:** bees.", "bees"),
        ("<think>**Answer:** cats</think>\n**Answer:** bees", "bees"),
        ("**Answer:** bees\n\nThat is what Ines says.", "bees"),
        ("bees", "bees"),
        ("Ines talks of her roof.\n\n**bees**\n", "bees"),
        ("Answer: bees", "bees"),
        ("- Final answer: **bees**", "bees"),
        ("**Answer**: bees", "bees"),
        ("Answer: -5", "-5"),
        ("- bees and wasps", "bees and wasps"),
        ("She asked for an answer: bees", "She asked for an answer: bees"),
        ("Not mentioned.\n---", "Not mentioned"),
    ],
)
def test_an_answer_is_read_from_the_marker_or_the_last_line(reply, text):
    assert reader.parse(reply).text == text
    assert reader.parse(reply).known == (text != "Not mentioned")


@pytest.mark.parametrize(
    "reply", ["", " \n", "---", "<think>so\nand so", "**Answer:**", "**Answer:** a\n**Answer:** b"]
)
def test_what_holds_no_answer_is_refused(reply):
    with pytest.raises(MalformedReply, match="expected"):
        reader.parse(reply)


@given(st.text())
def test_any_reply_is_read_or_refused(reply):
    try:
        assert reader.parse(reply).text
    except MalformedReply:
        pass


def reading(*completions, style="instruct", entries=()):
    """The answer that comes of these completions, and how many were asked for."""
    conversation = reader.reply("Who?", entries, style)
    next(conversation)
    for asked, completion in enumerate(completions, 1):
        try:
            conversation.send(completion)
        except StopIteration as stop:
            return stop.value, asked
    raise AssertionError("it asks for more")


def test_an_unreadable_reply_is_repaired_once_and_then_empty():
    answer, asked = reading(Completion("", 10, 1), Completion("**Answer:** Bo", 12, 4))
    assert (answer.text, asked, answer.tokens, answer.note) == ("Bo", 2, (22, 5), "")
    answer, asked = reading(Completion("---"), Completion("---"))
    assert (answer.text, answer.known, asked) == ("", False, 2)
    assert "could not be read" in answer.note


def test_a_reply_that_was_cut_off_while_thinking_aloud_is_no_answer():
    cut = Completion("First I look at the passages about", finished=False)
    assert reading(cut, Completion("**Answer:** Bo"))[1] == 2
    assert reading(Completion("**Answer:** Bo\nBecause he", finished=False))[0].text == "Bo"


def test_a_compact_model_answers_in_the_only_form_it_knows():
    answer, _ = reading(
        Completion("Bo lives in Rome <s0> => Bo"),
        style="compact",
        entries=[entry(0, "Bo lives in Rome")],
    )
    assert (answer.text, [e.id for e in answer.used]) == ("Bo", ["id-0"])
