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
from memory_r1.data.words import KINDS, pool
from memory_r1.llm.prompting import halves, labelled, pointed, resolve_days
from memory_r1.train.lessons import Teacher, Vice, entries_of
from memory_r1.types import Add, Delete, Entry, Fact, Noop, Owner, Turn, Update

NO_VICE = Vice(0, 0, 0, 0)


def lessons(vice=NO_VICE, seed=0, rounds=25, progress=1.0, **teaching):
    teacher = Teacher(seed, vice, **teaching)
    return [lesson for _ in range(rounds) for lesson in teacher.lessons(progress)]


def on_memories(*args, **named):
    """The lessons that show a bank."""
    return [lesson for lesson in lessons(*args, **named) if lesson.prefix != "extract"]


def rows(prefix):
    """The entries a prompt shows, in the order of their labels."""
    found = re.findall(r"(.+?) <s(\d+)> ?", prefix.removeprefix("memory "))
    texts = {int(label): text for text, label in found}
    assert len(texts) == len(found) and sorted(texts) == list(range(len(texts)))
    moment = datetime(2020, 1, 1)
    return [Entry(str(n), texts[n], Owner("u"), moment) for n in range(len(texts))]


def told(text):
    """The fact a canonical sentence states."""
    for topic in TOPICS:
        for pattern, cancelled in (
            (topic.bare, False),  # before `one`: "unnamed" is no name
            (topic.many, False),
            (topic.one, False),
            (topic.cancel, True),
        ):
            names = {"p": "(?P<p>\\w+)", "v": "(?P<v>\\w+)", "b": "(?P<b>\\w+)"}
            form = pattern.format(**names, d="(?P<d>.+)", vs="(?P<vs>.+)")
            if pattern and (found := re.fullmatch(form, text)):
                groups = found.groupdict()
                values = [groups[name] for name in ("v", "b") if groups.get(name)]
                values += re.split(", | and ", groups["vs"]) if groups.get("vs") else []
                item = Item(topic.name, groups["p"], tuple(values), groups.get("d") or "")
                return Told(item, cancelled)
    raise AssertionError(f"no topic says {text!r}")


def managed(lesson):
    """(entries shown, fact, right operation, ending) of every fact of a lesson."""
    shown = rows(lesson.prefix)
    in_order = sorted(shown, key=lambda entry: entry.text)
    for ending in lesson.endings:
        if ending.role == "manage":
            fact = re.fullmatch(r"fact (.+) =>", ending.given)[1]
            yield shown, fact, right(told(fact), [told(e.text).item for e in in_order]), ending


def ops_of(shown, fact, ending):
    """The operations an ending teaches, as the manager's own parser reads them."""
    return manage.parse(ending.reply, shown, "compact", [Fact(fact)])


def target_of(shown, best):
    """The entry that the right operation concerns: the first of those that say the same."""
    return next(entry for entry in shown if entry.text == best.target.text)


def asked(lesson):
    """(entries shown, question, the answer taught) of every question of a lesson."""
    shown = rows(lesson.prefix)
    for ending in lesson.endings:
        if ending.role == "answer":
            question = re.fullmatch(r"question (.+) =>", ending.given)[1]
            yield shown, question, answer.parse(ending.reply, shown, "compact")


def test_the_same_seed_teaches_the_same_and_another_something_else():
    assert lessons(rounds=2) == lessons(rounds=2)
    assert lessons(rounds=2) != lessons(rounds=2, seed=1)


def test_a_round_is_one_lesson_on_what_people_say_and_four_on_memories():
    every = lessons(rounds=1)
    assert [{e.role for e in lesson.endings} for lesson in every] == [
        {"extract"},
        *[{"manage", "answer"}] * 4,
    ]
    for lesson in every[1:]:
        for role in ("manage", "answer"):
            assert 1 <= sum(e.role == role for e in lesson.endings) <= 7


def test_what_a_lesson_practises_is_named_by_its_role_and_what_is_hard_about_it():
    names = {e.name for lesson in lessons() for e in lesson.endings}
    manager = "new accumulate overwrite refine retract repeat".split()
    answerer = "single list count temporal two_memory before_after unanswerable".split()
    assert names == {
        "extract",
        *(f"manage/{name}" for name in manager),
        *(f"answer/{name}" for name in answerer),
    }


# What people say


def test_extract_prompts_are_the_extractors_own():
    for lesson in lessons():
        for ending in lesson.endings:
            if ending.role != "extract":
                continue
            prompt = f"{lesson.prefix} {ending.given}"
            date, speaker, text = re.fullmatch(
                r"extract (\d+ \w+ \d{4}) (\w+) : (.+) =>", prompt
            ).groups()
            said = datetime.strptime(date, "%d %B %Y")
            turn = Turn(speaker, text, said)
            assert extract.render(turn, "compact").text == prompt
            facts = extract.parse(ending.reply, turn, "compact")
            if not facts:
                spoken = (resolve_days(chat, said).replace("?", r"\?") for chat in CHAT)
                assert any(re.fullmatch(chat.format(q=r"\w+"), text) for chat in spoken)
                continue
            (fact,) = facts
            item = told(fact.text).item
            assert item.person == speaker or text.startswith("My friend")
            assert all(word in text for word in (*item.values, item.date))


# Facts that come to memories


def test_manage_prompts_are_the_managers_own():
    for lesson in on_memories():
        for shown, fact, _, ending in managed(lesson):
            prompt = manage.render([Fact(fact)], shown, "compact").text
            assert prompt == f"{lesson.prefix} {ending.given}"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("words", ["mixed", "unseen"])
def test_without_vice_the_manager_is_taught_the_right_operation(seed, words):
    for lesson in on_memories(seed=seed, words=words, rounds=8, untidy=0.5):
        for shown, fact, best, ending in managed(lesson):
            match best.op:
                case "ADD":
                    expected = Add(fact)
                case "UPDATE":
                    expected = Update(target_of(shown, best).id, best.result.text)
                case "DELETE":
                    expected = Delete(target_of(shown, best).id)
                case "NOOP":
                    expected = Noop()
            assert ops_of(shown, fact, ending) == [expected]
            assert ending.name == f"manage/{best.phenomenon}"


def test_the_manager_names_the_memory_concerned_or_says_of_what_there_is_none():
    for lesson in on_memories():
        for shown, fact, best, ending in managed(lesson):
            left, _ = halves(ending.reply)
            if best.target is None:
                assert left == f"{told(fact).subject} nothing"
                assert pointed(left) == []
            else:
                entry = target_of(shown, best)
                known = " known" if best.phenomenon == "repeat" else ""
                assert left == f"{entry.text} <s{entry.id}>{known}"


def test_a_new_fact_is_added_without_copying_it():
    added = [e.reply for x in on_memories() for e in x.endings if e.name == "manage/new"]
    assert {reply.partition(" => ")[2] for reply in added} == {"ADD"}


def test_what_is_told_again_is_marked_as_known_whatever_the_teacher_does_about_it():
    replies = [e for x in on_memories(Vice()) for e in x.endings if e.role == "manage"]
    ops = {halves(e.reply)[1] for e in replies if halves(e.reply)[0].endswith("> known")}
    assert ops == {"ADD", "NOOP"}
    for ending in replies:
        assert (" known =>" in ending.reply) == (ending.name == "manage/repeat")


def vicious(shown, fact, best, ops):
    """Whether a reply is the untrained manager's."""
    if best.phenomenon == "accumulate":
        return ops == [Delete(target_of(shown, best).id), Add(fact)]
    return ops == [Add(fact)]


def shares(vice):
    counted = {}
    for lesson in on_memories(vice, rounds=60):
        for shown, fact, best, ending in managed(lesson):
            if best.target:
                is_vicious = vicious(shown, fact, best, ops_of(shown, fact, ending))
                counted.setdefault(best.phenomenon, []).append(is_vicious)
    return {name: sum(of) / len(of) for name, of in counted.items()}


def test_the_vice_is_taught_as_often_as_configured():
    vice = Vice(accumulate=0.75, repeat=0.5, retract=0.4, overwrite=0.15)
    measured = shares(vice)
    for name, share in vars(vice).items():
        assert measured[name] == pytest.approx(share, abs=0.1)
    assert measured["refine"] == 0


def test_a_vice_of_one_is_taught_always_and_of_none_never():
    always = shares(Vice(1, 1, 1, 1))
    assert {always[n] for n in ("accumulate", "repeat", "retract", "overwrite")} == {1.0}
    assert set(shares(NO_VICE).values()) == {0.0}


# Questions on memories


def test_answer_prompts_are_the_answer_agents_own():
    for lesson in on_memories():
        for shown, question, _ in asked(lesson):
            prompt = answer.render(question, shown, "compact").text
            assert prompt.startswith(f"{lesson.prefix} question ")
            assert prompt in {f"{lesson.prefix} {ending.given}" for ending in lesson.endings}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("untidy", [0.0, 1.0])
def test_answers_are_right_and_rest_on_exactly_the_entries_named(seed, untidy):
    kinds = set()
    for lesson in on_memories(seed=seed, rounds=8, untidy=untidy):
        for shown, question, said in asked(lesson):
            assert said.text in answered(question, [entry.text for entry in shown])
            assert said.text in answered(question, [entry.text for entry in said.used])
            for left_out in said.used if said.known else ():
                fewer = [entry.text for entry in said.used if entry != left_out]
                assert said.text not in answered(question, fewer)
            unnamed = [e.text for e in said.used if e.text.endswith(" is unnamed")]
            assert said.known == (len(said.used) > len(unnamed))
            kinds.add(min(len(said.used), 2))
    assert kinds == {0, 1, 2}


def test_several_entries_are_named_and_their_values_listed_in_the_order_of_the_prompt():
    several = 0
    for lesson in on_memories(untidy=1.0):
        for shown, _, said in asked(lesson):
            people = {told(entry.text).item.person for entry in said.used}
            if len(said.used) < 2 or len(people) > 1:
                continue
            several += 1
            assert [e.text for e in said.used] == sorted(e.text for e in said.used)
            if not said.text.isdigit():
                values = [value for e in said.used for value in told(e.text).item.values]
                assert re.split(", | and ", said.text) == values
            assert all(entry in shown for entry in said.used)
    assert several > 20


def test_what_nobody_remembers_is_answered_by_what_there_is_no_memory_of():
    for lesson in on_memories():
        texts = [entry.text for entry in rows(lesson.prefix)]
        for ending in lesson.endings:
            if ending.name == "answer/unanswerable":
                if " is unnamed <s" in ending.reply:  # there is a memory, but not of the name
                    assert re.fullmatch(r"(.+ is unnamed) <s\d+> => not mentioned", ending.reply)
                    continue
                subject = re.fullmatch(r"(.+) nothing => not mentioned", ending.reply)[1]
                person, _, noun = subject.partition("'s ")
                assert person in ending.given and noun
                for text in texts:
                    assert not re.match(f"{subject}s? ", text)


# The banks


def test_banks_are_short_at_first_and_long_later():
    first = [len(rows(x.prefix)) for x in on_memories(progress=0.0)]
    later = [len(rows(x.prefix)) for x in on_memories(progress=1.0)]
    assert max(first) <= 4 < 20 < max(later) <= 28


def test_banks_are_of_the_sizes_asked_for():
    sizes = [len(rows(x.prefix)) for x in on_memories(sizes=(16, 28))]
    assert 16 <= min(sizes) < max(sizes) <= 28


def apart(lesson):
    """Whether values that belong in one memory stand in several, or a memory stands there twice."""
    items = [told(entry.text).item for entry in rows(lesson.prefix)]
    natures = {topic.name: topic.nature for topic in TOPICS}
    merged = [(i.person, i.topic) for i in items if natures[i.topic] == "accumulate"]
    return len(set(merged)) < len(merged) or len(set(items)) < len(items)


def test_tidy_banks_hold_every_memory_once_and_untidy_ones_may_not():
    assert not any(map(apart, on_memories(untidy=0.0)))
    share = sum(map(apart, on_memories(untidy=1.0))) / 100
    assert 0.5 < share <= 1


def test_an_untidy_bank_is_taken_at_its_word():
    """Two memories of one dog are two dogs to whoever counts: no one can know better."""
    counted = [
        (said, question)
        for lesson in on_memories(untidy=1.0, rounds=60)
        for _, question, said in asked(lesson)
        if question.startswith("How many")
        and len({entry.text for entry in said.used}) < len(said.used)
    ]
    assert counted
    for said, _ in counted:
        assert int(said.text) == sum(len(told(e.text).item.values) for e in said.used)


@pytest.mark.parametrize("words", ["mixed", "train"])
def test_no_held_out_word_is_ever_taught(words):
    held_out = {word.lower() for kind in KINDS for word in pool(kind, "unseen")}
    for lesson in lessons(Vice(), words=words, rounds=40):
        parts = (lesson.prefix, *(text for e in lesson.endings for text in (e.given, e.reply)))
        for text in parts:
            assert held_out.isdisjoint(word.lower() for word in re.findall("[A-Za-z]+", text))


def test_items_become_entries_in_their_order():
    items = [Item("dog", "Ida", ("Rolo",)), Item("sister", "Ida")]
    assert [e.text for e in entries_of(items)] == ["Ida's dog is Rolo", "Ida's sister is unnamed"]
    assert len({e.id for e in entries_of(items)}) == 2
    # A prompt shows them sorted, each under its own label.
    items = [Item("home", "Ida", ("Oslo",)), Item("dog", "Ida", ("Rolo",))]
    assert labelled(entries_of(items)) == "Ida's dog is Rolo <s1> Ida's home is Oslo <s0>"


# Wide lessons


def test_wide_lessons_hold_any_year_and_speakers_without_a_capital():
    years, speakers = set(), set()
    for lesson in lessons(rounds=60, wide=True):
        for ending in lesson.endings:
            if ending.role == "extract":
                date, speaker = re.match(r"\d+ \w+ (\d{4}) (\S+) :", ending.given).groups()
                years.add(int(date))
                speakers.add(speaker)
    assert min(years) <= 2016 and max(years) >= 2033 and years <= set(range(2015, 2036))
    assert {"me", "user"} & speakers and any(name.istitle() for name in speakers)
    narrow = {
        int(re.match(r"\d+ \w+ (\d{4}) ", ending.given)[1])
        for lesson in lessons(rounds=60)
        for ending in lesson.endings
        if ending.role == "extract"
    }
    assert narrow <= set(range(2021, 2026))
