"""What the tiny model is taught: exactly the agents' prompts, replies they read, right or vicious.

Prompts are taken apart here by their text alone, so that a lesson is judged by the rows it shows.
"""

import re
from datetime import datetime

import pytest
from test_world import answered

from memory_r1 import answer, extract, manage
from memory_r1.data.story import CHAT
from memory_r1.data.topics import TOPICS, Item, Told, right
from memory_r1.llm.prompting import resolve_days
from memory_r1.train.lessons import Teacher, Vice, entries_of
from memory_r1.types import Add, Delete, Entry, Fact, Noop, Owner, Turn, Update

NO_VICE = Vice(0, 0, 0, 0)


def lessons(vice=NO_VICE, seed=0, dialogues=25, progress=1.0, role=None, words="mixed"):
    teacher = Teacher(seed, vice, words)
    every = [lesson for _ in range(dialogues) for lesson in teacher.lessons(progress)]
    return [lesson for lesson in every if role in (None, lesson.role)]


def rows(prefix):
    """The entries a prompt shows, by their text."""
    texts = re.findall(r"(?:^\w+|<s\d+>) (.+?)(?= <s\d+>)", prefix)
    moment = datetime(2020, 1, 1)
    return [Entry(str(n), text, Owner("u"), moment) for n, text in enumerate(texts)]


def told(text):
    """The fact a canonical sentence states."""
    for topic in TOPICS:
        for pattern, cancelled in (
            (topic.many, False),
            (topic.one, False),
            (topic.bare, False),
            (topic.cancel, True),
        ):
            names = {"p": "(?P<p>\\w+)", "v": "(?P<v>\\w+)", "b": "(?P<b>\\w+)"}
            form = pattern.format(**names, d="(?P<d>.+)", n="\\w+", vs="(?P<vs>.+)")
            if pattern and (found := re.fullmatch(form, text)):
                groups = found.groupdict()
                values = [groups[name] for name in ("v", "b") if groups.get(name)]
                values += re.split(", | and ", groups["vs"]) if groups.get("vs") else []
                item = Item(topic.name, groups["p"], tuple(values), groups.get("d") or "")
                return Told(item, cancelled)
    raise AssertionError(f"no topic says {text!r}")


def managed(lesson):
    """(entries shown, fact, right operation, operations taught) of every branch."""
    for rest, reply in lesson.branches:
        fact, listed = re.fullmatch(r"fact (.+?) : (.+) =>", rest).groups()
        shown = rows(f"{lesson.prefix} {listed}")
        best = right(told(fact), [told(entry.text).item for entry in shown])
        yield shown, fact, best, manage.parse(reply, shown, "compact")


def test_the_same_seed_teaches_the_same_and_another_something_else():
    assert lessons(dialogues=2) == lessons(dialogues=2)
    assert lessons(dialogues=2) != lessons(dialogues=2, seed=1)


def test_a_dialogue_gives_lessons_for_all_three_roles():
    roles = [lesson.role for lesson in lessons(dialogues=1)]
    assert (roles.count("manage"), roles.count("answer"), roles.count("extract")) == (
        roles.count("manage"),
        4,
        1,
    )
    assert 4 <= roles.count("manage") <= 24


def test_extract_prompts_are_the_extractors_own():
    for lesson in lessons(role="extract"):
        for rest, reply in lesson.branches:
            prompt = f"{lesson.prefix} {rest}"
            date, speaker, text = re.fullmatch(
                r"extract (\d+ \w+ \d{4}) (\w+) : (.+) =>", prompt
            ).groups()
            said = datetime.strptime(date, "%d %B %Y")
            turn = Turn(speaker, text, said)
            assert extract.render(turn, "compact").text == prompt
            facts = extract.parse(reply, turn, "compact")
            if not facts:
                spoken = (resolve_days(chat, said).replace("?", r"\?") for chat in CHAT)
                assert any(re.fullmatch(chat.format(q=r"\w+"), text) for chat in spoken)
                continue
            (fact,) = facts
            item = told(fact.text).item
            assert item.person == speaker or text.startswith("My friend")
            assert all(word in text for word in (*item.values, item.date))


def test_manage_prompts_are_the_managers_own():
    for lesson in lessons(role="manage"):
        for shown, fact, _, _ in managed(lesson):
            assert 1 <= len(shown) <= 8
            prompt = manage.render([Fact(fact)], shown, "compact").text
            assert prompt == f"{lesson.prefix} {lesson.branches[0][0]}"


def test_without_vice_the_manager_is_taught_the_right_operation():
    seen = set()
    for lesson in lessons(role="manage"):
        for listed, fact, best, ops in managed(lesson):
            shown = {entry.text: entry for entry in listed}
            match best.op:
                case "ADD":
                    expected = Add(fact)
                case "UPDATE":
                    expected = Update(shown[best.target.text].id, best.result.text)
                case "DELETE":
                    expected = Delete(shown[best.target.text].id)
                case "NOOP":
                    expected = Noop()
            assert ops == [expected]
            seen.add(best.phenomenon)
    assert seen == {"new", "accumulate", "overwrite", "refine", "retract", "repeat"}


def vicious(best, fact, ops):
    """Whether a reply is the untrained manager's."""
    if best.phenomenon == "accumulate":
        return len(ops) == 2 and isinstance(ops[0], Delete) and ops[1] == Add(fact)
    return ops == [Add(fact)]


def shares(vice):
    counted = {}
    for lesson in lessons(vice, role="manage", dialogues=40):
        for _, fact, best, ops in managed(lesson):
            if best.target:
                counted.setdefault(best.phenomenon, []).append(vicious(best, fact, ops))
    return {name: sum(of) / len(of) for name, of in counted.items()}


def test_the_vice_is_taught_as_often_as_configured():
    measured = shares(Vice())
    for name, share in (("accumulate", 0.75), ("repeat", 0.5), ("retract", 0.5)):
        assert measured[name] == pytest.approx(share, abs=0.1)
    assert measured["overwrite"] == pytest.approx(0.15, abs=0.1)
    assert measured["refine"] == 0


def test_a_vice_of_one_is_taught_always_and_of_none_never():
    always = shares(Vice(1, 1, 1, 1))
    assert {always[n] for n in ("accumulate", "repeat", "retract", "overwrite")} == {1.0}
    assert set(shares(NO_VICE).values()) == {0.0}


def test_answer_prompts_are_the_answer_agents_own():
    for lesson in lessons(role="answer"):
        shown = rows(lesson.prefix)
        for rest, _ in lesson.branches:
            question = re.fullmatch(r"question (.+) =>", rest)[1]
            prompt = answer.render(question, shown, "compact").text
            assert prompt == f"{lesson.prefix} {rest}"


def test_answers_are_right_and_rest_on_the_entries_named():
    kinds = set()
    for lesson in lessons(role="answer"):
        shown = rows(lesson.prefix)
        for rest, reply in lesson.branches:
            question = re.fullmatch(r"question (.+) =>", rest)[1]
            said = answer.parse(reply, shown, "compact")
            assert said.text in answered(question, [entry.text for entry in shown])
            assert said.text in answered(question, [entry.text for entry in said.used])
            for left_out in said.used:
                fewer = [entry.text for entry in said.used if entry != left_out]
                assert said.text not in answered(question, fewer)
            assert said.known == bool(said.used)
            kinds.add(min(len(said.used), 2))
    assert kinds == {0, 1, 2}


def test_banks_are_short_at_first_and_long_later():
    first = [len(rows(x.prefix)) for x in lessons(progress=0.0, role="answer")]
    later = [len(rows(x.prefix)) for x in lessons(progress=1.0, role="answer")]
    assert max(first) <= 4 < max(later) <= 24


@pytest.mark.parametrize("words", ["train", "unseen"])
def test_worlds_of_other_words_teach_the_same_forms(words):
    for lesson in lessons(words=words, dialogues=3, role="manage"):
        assert list(managed(lesson))


def test_items_become_entries_in_their_order():
    items = [Item("dog", "Ida", ("Rolo",)), Item("sister", "Ida")]
    assert [e.text for e in entries_of(items)] == ["Ida has a dog named Rolo", "Ida has a sister"]
    assert len({e.id for e in entries_of(items)}) == 2
