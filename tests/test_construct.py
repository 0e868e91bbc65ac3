"""Where episodes start: which bank, which turn, and which questions can be asked about it."""

import json
import os
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

pytest.importorskip("torch")

from memory_r1.config import Settings  # noqa: E402
from memory_r1.data import Dialogue, Observation, Question, Session, load  # noqa: E402
from memory_r1.embed import open_embedder  # noqa: E402
from memory_r1.errors import ConfigError, DataError, ModelUnavailable  # noqa: E402
from memory_r1.llm import Agents, ScriptedLLM  # noqa: E402
from memory_r1.text import normalise  # noqa: E402
from memory_r1.train import cost  # noqa: E402
from memory_r1.train.construct import holds, situations, tasks, whole_dialogues  # noqa: E402
from memory_r1.train.players import kept  # noqa: E402
from memory_r1.train.runfile import Data, Eval, Rollout, Run, Stages, Teacher, World  # noqa: E402
from memory_r1.train.stage import dialogues_of  # noqa: E402
from memory_r1.types import Turn  # noqa: E402

DATA = Path(os.environ.get("MEMORY_R1_DATA", Path(__file__).parents[2] / "shared" / "data"))
LOCOMO = DATA / "locomo10.json"
real = pytest.mark.skipif(not LOCOMO.exists(), reason="needs locomo10.json; set MEMORY_R1_DATA")
SAID = [
    ("Ann", "I moved to Lima."),
    ("Bob", "I adopted a dog, Rex."),
    ("Ann", "I work as a baker."),
    ("Bob", "I adopted another dog, Max."),
    ("Ann", "I moved to Quito."),
]


def turn_of(i):
    speaker, text = SAID[i]
    return Turn(speaker, text, id=f"D1:{i + 1}")


def question(name, answer, *turns):
    return Question(name, "d", f"{name}?", answer, tuple(f"D1:{n}" for n in turns), 4)


DIALOGUE = Dialogue(
    "d",
    ("Ann", "Bob"),
    (Session(1, None, tuple(map(turn_of, range(5)))),),
    (
        question("dogs", "2", 2, 4),
        question("job", "baker", 3),
        question("moves", "Lima, then Quito", 1, 5),
        question("nobody knows", "x"),
    ),
    tuple(
        Observation(speaker, f"observed: {text}", (f"D1:{i}",), 1)
        for i, (speaker, text) in enumerate(SAID, 1)
    )
    + (Observation("Bob", "Bob has two dogs", ("D1:2", "D1:4"), 1),),
)


@pytest.fixture(scope="module")
def embedder():
    return open_embedder()


def made(embedder, agents=None, *, dialogue=DIALOGUE, questions=4, **how):
    return situations(
        [dialogue], agents or Agents(), embedder, Settings(), questions=questions, seed=0, **how
    )


def asked(found):
    return {s.id.removeprefix("d/"): {q.id for q in s.questions} for s in found}


def texts(bank):
    return [entry.text for entry in bank.entries()]


def test_a_question_is_linked_to_the_last_turn_it_rests_on(embedder):
    found = made(embedder)
    assert {turn: "dogs" in names for turn, names in asked(found).items()}["D1:4"]
    assert list(asked(found)) == ["D1:3", "D1:4", "D1:5"]
    before = {s.id: texts(s.bank) for s in found}
    assert before["d/D1:3"] == ["Ann: I moved to Lima.", "Bob: I adopted a dog, Rex."]


def test_a_bank_of_a_window_knows_only_the_turns_in_it(embedder):
    found = {s.id: s for s in made(embedder, window=2)}
    assert texts(found["d/D1:4"].bank) == ["Bob: I adopted a dog, Rex.", "Ann: I work as a baker."]
    # What was said before the window can't be asked about: here the first move.
    assert asked(found.values()) == {"D1:3": {"job"}, "D1:4": {"dogs", "job"}}


def test_a_window_as_long_as_the_dialogue_is_no_window(embedder):
    whole, windowed = made(embedder), made(embedder, window=5)
    assert asked(whole) == asked(windowed)
    assert [texts(s.bank) for s in whole] == [texts(s.bank) for s in windowed]


def test_what_the_manager_destroyed_is_not_asked_about(embedder):
    """It deletes the first dog when it hears of the job: nobody could count to two any more."""

    def manage(prompt):
        shown, new = prompt.messages[-1][1].split("New facts:")
        if "baker" not in new:
            return json.dumps({"operations": [{"op": "ADD", "text": new.strip(' -"\n')}]})
        label = next(line[1] for line in shown.splitlines() if "Rex" in line)
        return json.dumps({"operations": [{"op": "DELETE", "id": int(label)}]})

    found = asked(made(embedder, Agents(manage=ScriptedLLM(manage))))
    assert "D1:4" not in found
    assert found["D1:5"] == {"moves"}


def test_a_turn_that_tells_again_what_is_known_is_held(embedder):
    again = Turn("Ann", "I moved to Lima!", id="D1:6")
    [session] = DIALOGUE.sessions
    turns = (session.turns[0], again, session.turns[4])
    dialogue = replace(
        DIALOGUE,
        sessions=(replace(session, turns=turns),),
        questions=(question("moves", "Lima, then Quito", 1, 6, 5),),
    )
    [situation] = made(embedder, dialogue=dialogue)
    assert len(texts(situation.bank)) == 1 and holds(situation.bank) == {"D1:1", "D1:6"}


def test_observations_make_banks_without_any_model(embedder):
    asleep = Agents(*[ScriptedLLM([])] * 3)
    found = {s.id: s for s in made(embedder, asleep, banks="observations", window=4)}
    last = found["d/D1:4"]
    assert [fact.text for _, facts in last.turns for fact in facts] == [
        "observed: I adopted another dog, Max.",
        "Bob has two dogs",
    ]
    [after] = made(embedder, asleep, banks="observations")[2:]
    both = next(e for e in after.bank.entries() if e.text == "Bob has two dogs")
    assert both.sources == ("D1:2", "D1:4") and both.speaker == "Bob"
    [bank] = {
        id(t.bank): t.bank
        for t in tasks([DIALOGUE], asleep, embedder, Settings(), banks="observations")
    }.values()
    assert len(texts(bank)) == 6


def test_a_dialogue_without_observations_says_what_is_missing(embedder):
    with pytest.raises(DataError, match="dialogue d holds no observations"):
        made(embedder, dialogue=replace(DIALOGUE, observations=()), banks="observations")


def test_imitation_also_wants_turns_that_nobody_asks_about(embedder):
    found = asked(made(embedder, unasked=True))
    assert list(found) == ["D1:1", "D1:2", "D1:3", "D1:4", "D1:5"]
    assert found["D1:1"] == found["D1:2"] == set()


def test_an_episode_that_is_cut_short_asks_only_about_what_it_plays(embedder):
    def ids(turns):
        found = whole_dialogues([DIALOGUE], Agents(), embedder, Settings(), turns=turns)
        return [s.id for s in found]

    assert ids(5) == ["d/dogs", "d/job", "d/moves"]
    assert ids(3) == ["d/dogs", "d/job"]


# --- what was paid for is kept


class Service:
    """An extractor and manager that can be counted, and that goes away after some replies."""

    name, style, identity = "service", "instruct", "http://127.0.0.1#service"

    def __init__(self, replies=10**9):
        self.left, self.calls = replies, 0

    def complete(self, prompts, *, max_tokens=512, temperature=0.0, schema=None):
        made = []
        for prompt in prompts:
            if not self.left:
                raise ModelUnavailable("gone")
            self.left -= 1
            self.calls += 1
            made.append(self._reply(prompt.messages[-1][1]))
        return ScriptedLLM(made).complete(prompts)

    def _reply(self, text):
        if "New facts:" in text:
            new = text.split("New facts:\n- ")[1]
            return f'{{"operations": [{{"op": "ADD", "text": {new}}}]}}'
        said = json.dumps(json.loads(text[text.rindex(': "') + 2 :]))
        return f'{{"facts": [{{"text": {said}, "quote": "", "when": ""}}]}}'


def test_a_construction_that_was_stopped_pays_for_nothing_again(embedder):
    def build(service):
        return made(embedder, kept(Agents(extract=service, manage=service)))

    whole = Service()
    wanted = build(whole)
    assert whole.calls == 10  # five turns, read once and decided once
    again = Service()
    assert asked(build(again)) == asked(wanted) and again.calls == 0
    assert [texts(s.bank) for s in build(again)] == [texts(s.bank) for s in wanted]


def test_a_stop_in_the_middle_loses_what_was_under_way_and_no_more(embedder):
    first = Service(replies=7)  # all five facts, two decisions
    with pytest.raises(ModelUnavailable):
        made(embedder, kept(Agents(extract=first, manage=first)))
    rest = Service()
    made(embedder, kept(Agents(extract=rest, manage=rest)))
    assert rest.calls == 3


def run_on(path, **changes):
    return Run(
        **{"kind": "manager", "model": "http://127.0.0.1:9/v1#m", "data": Data(path)} | changes
    )


@pytest.fixture
def file(tmp_path):
    """Two dialogues of LoCoMo's form, one to train on and one held out."""

    def record(name, mark):
        turns = [
            {"speaker": s, "dia_id": f"D1:{i}", "text": f"{t} {mark}"}
            for i, (s, t) in enumerate(SAID, 1)
        ]
        qa = [
            {"question": q.text, "answer": q.answer, "evidence": list(q.evidence), "category": 4}
            for q in DIALOGUE.questions[:3]
        ]
        conversation = {
            "speaker_a": "Ann",
            "speaker_b": "Bob",
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": turns,
        }
        return {"sample_id": name, "conversation": conversation, "qa": qa}

    def write(other_mark="Truly."):
        path = tmp_path / "locomo.json"
        path.write_text(json.dumps([record("conv-26", ""), record("conv-30", other_mark)]))
        return str(path)

    return write


def test_the_cost_is_told_before_anything_is_asked(file):
    told = cost.cost(run_on(file()))
    building = told["building"]
    assert building["extract"]["calls"] == building["manage"]["calls"] == 10
    assert building["extract"]["known"] == 0 and building["manage"]["prompt_tokens"] > 1000
    assert told["training"]["answer"]["calls"] > 200 * 16 * 8  # a question per rollout, at least
    assert told["players"] == dict.fromkeys(("extract", "manage", "answer"), "m")
    assert told["episodes"] == 3


def test_what_is_known_costs_nothing(file, embedder):
    run = run_on(file())
    practised, held_out = dialogues_of(run)
    service = Service()
    agents = kept(Agents(extract=service, manage=service))
    before, _ = cost.plan(run, agents, embedder, Settings(), practised)
    made(embedder, agents, dialogue=practised[0])
    after, _ = cost.plan(run, agents, embedder, Settings(), practised)
    assert {role: need.calls for role, need in before.items()} == {"extract": 5, "manage": 5}
    assert {role: (need.calls, need.known) for role, need in after.items()} == {
        "extract": (0, 5),
        "manage": (0, 5),
    }


def test_banks_of_observations_cost_nothing(file):
    path = file()
    records = json.loads(Path(path).read_text())
    for record in records:
        record["observation"] = {"session_1_observation": {"Ann": [["Ann is a baker", "D1:3"]]}}
    Path(path).write_text(json.dumps(records))
    assert cost.cost(run_on(path, data=Data(path, banks="observations")))["building"] == {}


# --- nothing held out is trained on


def test_a_dialogue_under_two_names_is_refused(file):
    dialogues_of(run_on(file()))
    with pytest.raises(DataError, match="conv-30 is held out and says what conv-26 says"):
        dialogues_of(run_on(file(other_mark="")))


def test_a_run_cannot_hold_out_what_it_trains_on():
    with pytest.raises(ConfigError, match="data.split and eval.split are both 'validation'"):
        run_on("x", data=Data("x", split="validation"), eval=Eval(split="validation"))


@real
@pytest.mark.data
def test_no_conversation_of_locomo_is_in_two_parts():
    parts = {"train": [], "validation": [], "test": []}
    for dialogue in load(LOCOMO):
        parts[dialogue.split].append(dialogue)
    assert [len(of) for of in parts.values()] == [1, 1, 8]
    for one, other in combinations(parts, 2):
        ids = [{d.id for d in parts[name]} for name in (one, other)]
        assert not ids[0] & ids[1]
        # Greetings are said everywhere; a sentence of some length is said once.
        said = [{normalise(t.text) for d in parts[n] for t in d.turns} for n in (one, other)]
        assert not {text for text in said[0] & said[1] if len(text.split()) > 8}
        known = [{q.text for d in parts[n] for q in d.questions} for n in (one, other)]
        assert not known[0] & known[1]


@real
@pytest.mark.data
@pytest.mark.parametrize("window", [None, 50])
def test_every_question_of_a_situation_can_be_answered_there(embedder, window):
    [dialogue] = [d for d in load(LOCOMO) if d.id == "conv-26"]
    found = made(
        embedder, Agents(), dialogue=dialogue, questions=4, window=window, banks="observations"
    )
    assert len(found) > 60
    for situation in found:
        [(turn, facts)] = situation.turns
        held = {*holds(situation.bank), turn.id}
        assert facts and situation.questions
        assert all(held.issuperset(question.evidence) for question in situation.questions)
        if window:
            place = {t.id: i for i, t in enumerate(dialogue.turns)}
            now = place[turn.id]
            assert all(now - window <= place[source] < now for source in holds(situation.bank))


# --- run files


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"rollout": Rollout(window=50, turns=3)}, "rollout.window is 50 and rollout.turns is 3"),
        ({"stages": Stages(("answer",))}, "kind is 'manager', but stages.order is answer"),
        ({"stages": Stages(())}, "stages.order is empty"),
        ({"teacher": Teacher("openai:m")}, r"\[teacher\] is for kind 'sft'"),
        ({"kind": "sft"}, "or name a .teacher. to imitate"),
        ({"data": None, "kind": "sft", "teacher": Teacher("m")}, "expected .world. or .data."),
        ({"algorithm": "ppo", "rollout": Rollout(resample=2)}, "rollout.resample is 2"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        run_on("x", **settings)
    with pytest.raises(ConfigError, match="teacher.roles is empty"):
        Teacher("m", roles=())


def test_worlds_to_train_on_and_to_be_tested_on_are_told_apart():
    practised, held_out = dialogues_of(
        Run(kind="manager", model="tiny-base", world=World(dialogues=4), eval=Eval(questions=80))
    )
    assert not {d.id for d in practised} & {d.id for d in held_out}
    lines = [{tuple(t.text for t in d.turns) for d in of} for of in (practised, held_out)]
    assert not lines[0] & lines[1]
