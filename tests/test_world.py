"""The world: the same every time, labelled right, and its test words never seen in training."""

import json
import os
import re
from collections import Counter
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_r1.data import Report, load, scored
from memory_r1.data.story import CATEGORY, NATURES
from memory_r1.data.topics import TOPIC, TOPICS, Item, Told, join, questions, right
from memory_r1.data.words import KINDS, invent, pool
from memory_r1.data.world import WorldConfig, generate, write
from memory_r1.errors import ConfigError, DataError

DATA = Path(os.environ.get("MEMORY_R1_DATA", Path(__file__).parents[1] / "../shared/data"))
# The people and pets of LoCoMo's eight test conversations that the world might use by mistake.
LOCOMO_TEST_NAMES = (
    "Andrew Audrey Calvin Dave Deborah Evan James Joanna John Jolene Maria Nate Sam Tim Buddy Scout"
).split()


def write_world(config, folder):
    path = folder / "world.json"
    write(config, path)
    return path


def turns_of(sample):
    sessions = (s for key, s in sample["conversation"].items() if re.fullmatch(r"session_\d+", key))
    return {turn["dia_id"]: turn for session in sessions for turn in session}


def replayed(events):
    """The memories left when every event's operation is applied, by text alone."""
    bank = []
    for event in events:
        match event["op"]:
            case "ADD":
                bank.append(event["text"])
            case "UPDATE":
                bank[bank.index(event["target"])] = event["text"]
            case "DELETE":
                bank.remove(event["target"])
            case "NOOP":
                assert event["target"] in bank and not event["text"]
            case op:
                raise AssertionError(op)
    return bank


READ = (
    # a question ("X" and "Y": people), and the memory that answers it
    (
        r"What (?:is the name|are the names) of X's (\w+?)s?\?",
        r"X's {0}s? (?:is|are) (?!unnamed)(.+)",
    ),
    (r"How many (\w+)s does X have\?", r"X's {0}s? (?:is|are) (.+)"),
    (r"What does X like\?", r"X's interests? (?:is|are) (.+)"),
    (r"(?:What|How many foods) is X allergic to\?", r"X's allergens? (?:is|are) (.+)"),
    (r"Where do(?:es)? X(?: and Y)? live\?", r"X's home is (\w+)(?: and .+)?"),
    (r"What is X's job\?", r"X's job is (\w+)(?: and .+)?"),
    (r"What are the jobs of X and Y\?", r"X's job is (\w+)(?: and .+)?"),
    (r"What cars? do(?:es)? X(?: and Y)? drive\?", r"X's car is a (\w+)(?: and .+)?"),
    (r"Where did X live before\?", r"X's home is \w+ and was (\w+) before"),
    (r"What was X's job before\?", r"X's job is \w+ and was (\w+) before"),
    (r"What car did X drive before\?", r"X's car is a \w+ and was a (\w+) before"),
    (r"(?:Where|How many trips) does X plan(?: to travel)?\?", r"X's trip to (.+) is planned"),
    (r"(?:What|How many things) does X want to buy\?", r"X's wish for a (.+) is open"),
    (r"When did X visit (\w+)\?", r"X's visit to {0} was on (.+)"),
    (r"When did X finish the book (\w+)\?", r"X's reading of {0} ended on (.+)"),
    (r"What instrument does X play\?", r"X's instrument is the (.+)"),
    (r"What language does X speak\?", r"X's language is (.+)"),
)


def answered(text, bank):
    """The answer that can be read off the memories, without the generator's own machinery."""
    for question, memory in READ:
        people = question.replace("X", r"(?P<X>[A-Z]\w+)").replace("Y", r"(?P<Y>[A-Z]\w+)")
        if not (asked := re.fullmatch(people, text)):
            continue
        named = asked.groupdict()
        rest = [group for group in asked.groups() if group not in named.values()]
        values = []
        for person in filter(None, named.values()):
            wanted = memory.replace("X", person).format(*rest)
            found = [re.fullmatch(wanted, entry) for entry in bank]
            values += [v for match in found if match for v in re.split(", | and ", match[1])]
        if text.startswith("How many"):
            return {str(len(values))}
        return {join(order) for order in permutations(values)} if values else {"not mentioned"}
    raise AssertionError(f"no way to read {text!r}")


def check(sample):
    """Everything a world promises of a dialogue."""
    events, bank, turns = sample["world"]["events"], sample["world"]["bank"], turns_of(sample)
    assert replayed(events) == bank
    assert len(set(bank)) == len(bank)
    assert len({event["dia_id"] for event in events}) == len(events)
    assert {event["dia_id"] for event in events} <= turns.keys()
    assert len({q["id"] for q in sample["qa"]}) == len(sample["qa"])
    for question in sample["qa"]:
        right_answers = {question["answer"], *question.get("accepted", ())}
        assert answered(question["question"], bank) == right_answers
        assert set(question["evidence"]) <= turns.keys()
        assert question["category"] == CATEGORY[question["kind"]]
        assert bool(question["evidence"]) == (question["phenomenon"] != "absent")
        assert question["answer"] not in question.get("accepted", ())


DIALS = st.builds(
    WorldConfig,
    seed=st.integers(0, 10**6),
    dialogues=st.just(1),
    sessions=st.integers(1, 9),
    words=st.sampled_from(["train", "unseen", "mixed"]),
    threads=st.integers(1, len(TOPICS)),
    friends=st.integers(0, 5),
    chat=st.floats(0, 1),
    absent=st.integers(0, 40),
    weights=st.dictionaries(st.sampled_from(list(NATURES)), st.floats(0.1, 9), min_size=1),
)


@settings(max_examples=120)
@given(DIALS)
def test_every_world_is_consistent_whatever_its_dials(config):
    (sample,) = generate(config)
    check(sample)
    assert generate(config) == [sample]


@pytest.mark.parametrize("words", ["train", "unseen", "mixed"])
def test_a_world_is_the_same_byte_for_byte_and_each_seed_another(words, tmp_path):
    config = WorldConfig(seed=7, dialogues=3, words=words)
    first = write_world(config, tmp_path).read_bytes()
    assert write_world(config, tmp_path).read_bytes() == first
    assert write_world(replace(config, seed=8), tmp_path).read_bytes() != first


def test_a_longer_world_begins_like_a_shorter_one():
    assert generate(WorldConfig(dialogues=3))[:2] == generate(WorldConfig(dialogues=2))


def test_one_known_dialogue_is_as_it_was_when_the_bundled_model_was_taught():
    (sample,) = generate(WorldConfig(seed=7, dialogues=1))
    assert sample["conversation"]["session_1"][1]["speaker"] == "Otto"
    assert sample["world"]["bank"][0] == "Otto's dogs are Hunter and Widget"
    asked = {q["question"]: q["answer"] for q in sample["qa"]}
    assert asked["How many dogs does Otto have?"] == "2"
    assert asked["Where does Otto live?"] == "Panama"
    assert asked["Where did Otto live before?"] == "Leeds"
    assert asked["What does Otto want to buy?"] == "not mentioned"


def test_all_phenomena_kinds_and_operations_occur():
    samples = generate(WorldConfig(seed=1))
    asked = [question for sample in samples for question in sample["qa"]]
    events = [event for sample in samples for event in sample["world"]["events"]]
    assert {q["kind"] for q in asked} == set(CATEGORY)
    assert {q["phenomenon"] for q in asked} == {*NATURES, "absent"}
    assert {e["op"] for e in events} == {"ADD", "UPDATE", "DELETE", "NOOP"}
    assert {e["thread"] for e in events} == set(NATURES)
    assert Counter(e["phenomenon"] for e in events).keys() == {
        *("new", "accumulate", "overwrite", "refine", "retract", "repeat")
    }


def test_default_dialogues_leave_at_least_twenty_memories():
    for words in ("train", "unseen"):
        for seed in range(5):
            for sample in generate(WorldConfig(seed=seed, words=words)):
                assert len(sample["world"]["bank"]) >= 20


def test_what_is_told_again_is_not_another_one():
    wordings = {"accumulate": set(), "repeat": set()}
    for sample in generate(WorldConfig(dialogues=40, weights={"accumulate": 1.0, "repeat": 1.0})):
        turns = turns_of(sample)
        for event in sample["world"]["events"]:
            if event["phenomenon"] in wordings:
                said = turns[event["dia_id"]]["text"]
                wordings[event["phenomenon"]].add("another" in said)
    assert wordings == {"accumulate": {False, True}, "repeat": {False}}


def test_two_thirds_of_mixed_words_are_invented():
    known = {word for kind in KINDS for word in pool(kind, "train")}
    config = WorldConfig(words="mixed", dialogues=10)
    people = [e["person"] for s in generate(config) for e in s["world"]["events"]]
    invented = [person not in known for person in dict.fromkeys(people)]
    assert sum(invented) / len(invented) == pytest.approx(2 / 3, abs=0.15)


def test_only_the_wanted_phenomena_are_told():
    config = WorldConfig(friends=0, threads=2, weights={"retract": 1.0})
    threads = {e["thread"] for sample in generate(config) for e in sample["world"]["events"]}
    assert threads == {"retract"}


def test_chat_and_absent_questions_follow_their_dials():
    for chat, absent in ((0.0, 0), (1.0, 5)):
        for sample in generate(WorldConfig(dialogues=3, chat=chat, absent=absent)):
            told = len(sample["world"]["events"])
            assert len(turns_of(sample)) == 4 + told + int(chat) * told
            assert sum(q["phenomenon"] == "absent" for q in sample["qa"]) == absent


def test_counts_are_digits_and_lists_are_accepted_in_any_order():
    asked = [q for sample in generate(WorldConfig(seed=2)) for q in sample["qa"]]
    assert all(q["answer"].isdigit() for q in asked if q["kind"] == "count")
    pair = next(q for q in asked if re.fullmatch(r"\w+ and \w+", q["answer"]))
    assert pair["accepted"] == [" and ".join(reversed(pair["answer"].split(" and ")))]


@pytest.mark.parametrize("words", ["train", "unseen", "mixed"])
def test_the_files_load_without_a_single_irregularity(words, tmp_path):
    report = Report()
    config = WorldConfig(seed=3, dialogues=5, words=words)
    dialogues = load(write_world(config, tmp_path), report=report)
    assert report.irregularities == []
    samples = generate(config)
    assert [len(d.turns) for d in dialogues] == [len(turns_of(s)) for s in samples]
    assert len(scored(dialogues)) == sum(len(s["qa"]) for s in samples)
    for dialogue, sample in zip(dialogues, samples, strict=True):
        assert dialogue.meta["world"] == sample["world"]
        for question, record in zip(dialogue.questions, sample["qa"], strict=True):
            assert question.golds == (record["answer"], *record.get("accepted", ()))
            assert sorted(question.evidence) == sorted(record["evidence"])
        dates = [session.date for session in dialogue.sessions]
        assert None not in dates and dates == sorted(dates)


def test_no_held_out_word_is_said_in_a_training_world():
    held_out = {word.lower() for kind in KINDS for word in pool(kind, "unseen")}
    for kind in KINDS:
        assert held_out.isdisjoint(word.lower() for word in pool(kind, "train"))
        assert len(set(pool(kind, "train"))) == len(pool(kind, "train")) > 25
        assert len(set(pool(kind, "unseen"))) == len(pool(kind, "unseen")) > 12
    for words in ("train", "mixed"):
        said = json.dumps(generate(WorldConfig(seed=5, words=words, dialogues=30)))
        assert held_out.isdisjoint(word.lower() for word in re.findall("[A-Za-z]+", said))


def test_the_names_of_locomos_test_dialogues_are_held_out():
    held_out = {*pool("person", "unseen"), *pool("pet", "unseen")}
    assert set(LOCOMO_TEST_NAMES) <= held_out
    trained = {word for kind in KINDS for word in pool(kind, "train")}
    assert trained.isdisjoint(LOCOMO_TEST_NAMES)


@pytest.mark.data
def test_every_speaker_of_locomos_test_dialogues_is_held_out():
    path = DATA / "locomo10.json"
    if not path.exists():
        pytest.skip("needs locomo10.json in the folder named by MEMORY_R1_DATA")
    speakers = {name for d in load(path) if d.split == "test" for name in d.speakers}
    assert speakers <= set(pool("person", "unseen"))


@given(st.sampled_from(KINDS), st.randoms(use_true_random=False))
def test_invented_words_look_like_the_known_ones_and_are_never_held_out(kind, rng):
    word = invent(kind, rng)
    assert re.fullmatch(r"[A-Za-z]{3,11}", word)
    assert word[0].isupper() == pool(kind, "train")[0][0].isupper()
    assert word.lower() not in {w.lower() for k in KINDS for w in pool(k, "unseen")}


def told(topic, *values, cancelled=False):
    return Told(Item(topic, "Ida", values), cancelled)


TWO_DOGS = "Ida's dogs are Rolo and Pepper"


@pytest.mark.parametrize(
    ("known", "fact", "op", "text"),
    [
        ([], told("dog", "Rolo"), "ADD", "Ida's dog is Rolo"),
        (["dog Rolo"], told("dog", "Pepper"), "UPDATE", TWO_DOGS),
        (["dog Rolo Pepper"], told("dog", "Rolo"), "NOOP", TWO_DOGS),
        (["dog Rolo"], told("cat", "Pepper"), "ADD", "Ida's cat is Pepper"),
        (["car Fiat"], told("car", "Saab"), "UPDATE", "Ida's car is a Saab and was a Fiat before"),
        (
            ["car Saab Fiat"],  # back to the old one: a change, not a repetition
            told("car", "Fiat"),
            "UPDATE",
            "Ida's car is a Fiat and was a Saab before",
        ),
        (
            ["car Saab Fiat"],
            told("car", "Saab"),
            "NOOP",
            "Ida's car is a Saab and was a Fiat before",
        ),
        (["sister"], told("sister", "Vera"), "UPDATE", "Ida's sister is Vera"),
        (["sister Vera"], told("sister"), "NOOP", "Ida's sister is Vera"),
        (["trip Oslo"], told("trip", "Riga"), "ADD", "Ida's trip to Riga is planned"),
        (["trip Oslo", "trip Riga"], told("trip", "Riga", cancelled=True), "DELETE", ""),
        (["trip Oslo"], told("trip", "Riga", cancelled=True), "NOOP", ""),
        # Four values fill a memory: a fifth stands alone.
        (
            ["likes golf polo chess yoga"],
            told("likes", "karate"),
            "ADD",
            "Ida's interest is karate",
        ),
    ],
)
def test_the_right_operation(known, fact, op, text):
    # Somebody else's memory of the same thing is never the one to change.
    items = [Item(fact.item.topic, "Otto", ("Something",))]
    for topic, *values in map(str.split, known):
        items.append(Item(topic, "Ida", tuple(values)))
    best = right(fact, items)
    assert (best.op, best.result.text if best.result else "") == (op, text)
    assert best.target != items[0]


def test_what_is_asked_after_two_dogs():
    asked = questions(TOPIC["dog"], "Ida", [Item("dog", "Ida", ("Rolo", "Pepper"))])
    assert [(a.text, a.kind, a.answers) for a in asked] == [
        ("What are the names of Ida's dogs?", "list", ("Rolo and Pepper", "Pepper and Rolo")),
        ("How many dogs does Ida have?", "count", ("2",)),
    ]
    (unknown,) = questions(TOPIC["dog"], "Otto", [Item("dog", "Ida", ("Rolo",))])
    assert (unknown.kind, unknown.answers) == ("unanswerable", ("not mentioned",))
    assert unknown.subject == "Otto's dog"


@pytest.mark.parametrize(
    ("fact", "text", "subject"),
    [
        (told("dog", "Rolo"), "Ida's dog is Rolo", "Ida's dog"),
        (told("likes", "chess"), "Ida's interest is chess", "Ida's interest"),
        (told("sister"), "Ida's sister is unnamed", "Ida's sister"),
        (told("trip", "Riga"), "Ida's trip to Riga is planned", "Ida's trip to Riga"),
        (
            told("trip", "Riga", cancelled=True),
            "Ida's trip to Riga is cancelled",
            "Ida's trip to Riga",
        ),
        (
            told("wish", "vase", cancelled=True),
            "Ida's wish for a vase is dropped",
            "Ida's wish for a vase",
        ),
        (
            Told(Item("visit", "Ida", ("Riga",), "3 May 2023")),
            "Ida's visit to Riga was on 3 May 2023",
            "Ida's visit to Riga",
        ),
    ],
)
def test_a_fact_is_worded_with_its_subject_first(fact, text, subject):
    assert (fact.text, fact.subject) == (text, subject)


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_everything_one_can_say_on_a_topic_begins_with_the_same_words(topic):
    one = Told(Item(topic.name, "Ida", ("Alpha",), "3 May 2023"))
    said = [one.text]
    if topic.cancel:
        said.append(replace(one, cancelled=True).text)
    if topic.bare:
        said.append(Item(topic.name, "Ida").text)
    assert all(text.startswith(f"{one.subject} ") for text in said)
    if topic.many:
        many = Item(topic.name, "Ida", ("Alpha", "Beta")).text
        assert re.match(f"{one.subject}s? (is|are) ", many)
    # No other topic's memories begin so: they can be told apart by their first words.
    others = [Told(Item(t.name, "Ida", ("Alpha",))).subject for t in TOPICS if t != topic]
    assert not any(f"{other} ".startswith(f"{one.subject} ") for other in others)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"threads": 0}, "world.threads is 0; expected 1 to 20"),
        ({"threads": 21}, "expected 1 to 20"),
        ({"dialogues": "20"}, "world.dialogues is '20'; expected a whole number"),
        ({"seed": True}, "whole number"),
        ({"sessions": 0}, "world.sessions is 0"),
        ({"friends": -1}, "world.friends is -1"),
        ({"absent": -1}, "world.absent is -1"),
        ({"chat": 1.5}, "a share between 0 and 1"),
        ({"chat": float("nan")}, "a share between 0 and 1"),
        ({"words": "known"}, "expected 'train', 'unseen' or 'mixed'"),
        ({"theads": 3}, "did you mean 'threads'?"),
        ({"weights": {"overwirte": 1}}, "did you mean 'overwrite'?"),
        ({"weights": {"refine": -1}}, "world.weights.refine is -1"),
        ({"weights": {"refine": float("inf")}}, "not negative"),
        ({"weights": dict.fromkeys(NATURES, 0)}, "all 0"),
        ({"weights": 3}, "expected a weight per phenomenon"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(table, says):
    with pytest.raises(ConfigError) as refused:
        WorldConfig.of(table)
    assert says in str(refused.value)


def test_a_world_that_would_run_out_of_words_is_refused():
    with pytest.raises(ConfigError, match=r"more words of the kind 'person' than the 58 .*friends"):
        generate(WorldConfig(words="unseen", friends=60))


def test_weights_not_named_keep_their_default():
    assert WorldConfig.of({"weights": {"repeat": 0}}).weights["accumulate"] == 3.0
    assert WorldConfig.of({"weights": {"repeat": 0}}).weights["repeat"] == 0


def test_a_file_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(DataError, match="can't be written"):
        write(WorldConfig(dialogues=1), tmp_path / "missing" / "world.json")
