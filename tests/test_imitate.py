"""Memory-SFT: a policy comes to say what its teacher said, and only what was worth saying."""

import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from made_models import random_tiny  # noqa: E402

from memory_r1.bank import Bank  # noqa: E402
from memory_r1.config import Settings  # noqa: E402
from memory_r1.data import Question  # noqa: E402
from memory_r1.embed import open_embedder  # noqa: E402
from memory_r1.errors import ConfigError, DataError, ModelUnavailable  # noqa: E402
from memory_r1.llm import Agents, ScriptedLLM  # noqa: E402
from memory_r1.llm.local import LocalLLM  # noqa: E402
from memory_r1.llm.open import open_agents, open_llm  # noqa: E402
from memory_r1.store.ram import RamStore  # noqa: E402
from memory_r1.train import learn as learning  # noqa: E402
from memory_r1.train.episodes import Situation, Task  # noqa: E402
from memory_r1.train.imitate import FILE, Imitation, collect, read, rows_from  # noqa: E402
from memory_r1.train.learn import learn  # noqa: E402
from memory_r1.train.players import teacher_of  # noqa: E402
from memory_r1.train.policy import Policy  # noqa: E402
from memory_r1.train.rewards import open_reward  # noqa: E402
from memory_r1.train.runfile import Optimizer, Rollout, Run, Steps, Teacher, World  # noqa: E402
from memory_r1.train.stage import Stage  # noqa: E402
from memory_r1.types import Add, Fact, Owner, Turn  # noqa: E402

WHERE = Question("q1", "d", "Where does Ann live?", "Lima", ("D1:1",), 4)
PET = Question("q2", "d", "What is Ann's pet?", "a cat", ("D1:1",), 4)
ANSWERS = {
    "Where does Ann live?": "Ann's home is Lima <s0> => Lima",
    "What is Ann's pet?": "Ann's pet nothing => not mentioned",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def bank():
    bank = Bank(RamStore(), open_embedder(), Owner("d"))
    bank.apply([Add("Ann's home is Lima")], turn=Turn("Ann", "I live in Lima", id="D1:1"))
    return bank


def say(prompt):
    """A compact teacher: right about the home, wrong about the pet, and it adds every fact."""
    if prompt.text.endswith("fact Ann has a dog =>"):
        return "Ann's dog nothing => ADD"
    return next(reply for asked, reply in ANSWERS.items() if asked in prompt.text)


def run_of(**changes):
    settings = {
        "kind": "sft",
        "model": "x",
        "world": World(),
        "teacher": Teacher("y", keep="right"),
        "rollout": Rollout(prompts=4, max_tokens=24),
        "optimizer": Optimizer(lr=1e-2),
        "steps": Steps(total=4, checkpoint_every=2),
    }
    return Run(**{**settings, **changes})


def stage_of(folder, bank, run=None, teacher=None, starts=None, reward="em"):
    run = run or run_of()
    policy = Policy(LocalLLM(str(folder)).copy(), temperature=1.0, max_tokens=24)
    player = teacher or ScriptedLLM(say, style="compact", name="teacher")
    if starts is None:
        starts = [Task("d/q1", bank, WHERE), Task("d/q2", bank, PET)]
    return Stage(
        run,
        policy,
        Agents(answer=player),
        Settings(),
        starts,
        [],
        {},
        reward=open_reward(reward),
        teacher=Agents(manage=player, answer=player, judge=player),
    )


def quiet(text):
    pass


def told(bank, *questions, name="d/D1:2"):
    turn = Turn("Ann", "I have a dog.", id="D1:2")
    return Situation(name, bank.fork(), ((turn, (Fact("Ann has a dog"),)),), questions)


def test_the_policy_comes_to_say_what_the_teacher_said(folder, bank, tmp_path):
    stage = stage_of(folder, bank, run_of(teacher=Teacher("y", keep="all")))
    played = collect(stage, tmp_path / FILE, quiet)
    algorithm = Imitation(stage, rows_from(played, stage.policy.llm, keep="all"))
    losses = [algorithm.step(n)[0]["loss"] for n in range(60)]
    assert losses[-1] < losses[0] / 20
    prompts = [one.steps[0][0] for one in played]
    assert [reply.text for reply in stage.policy.complete(prompts)] == list(ANSWERS.values())


def test_only_what_came_out_right_is_kept_when_that_is_asked(folder, bank, tmp_path):
    stage = stage_of(folder, bank)
    played = collect(stage, tmp_path / FILE, quiet)
    assert [one.right for one in played] == [True, False]
    assert [len(rows_from(played, stage.policy.llm, keep=k)) for k in ("right", "all")] == [1, 2]
    with pytest.raises(ConfigError, match="nothing to imitate"):
        Imitation(stage, rows_from(played[1:], stage.policy.llm, keep="right"))


def test_a_decision_is_right_when_its_questions_are_answered(folder, bank, tmp_path):
    starts = [told(bank, WHERE), told(bank, PET, name="d/pet"), told(bank, name="d/unasked")]
    stage = stage_of(folder, bank, starts=starts)
    played = collect(stage, tmp_path / FILE, quiet)
    assert [one.right for one in played] == [True, False, None]
    assert {one.role for one in played} == {"manage"}
    assert all(one.steps[0][1] == "Ann's dog nothing => ADD" for one in played)
    assert len(rows_from(played, stage.policy.llm, keep="right")) == 1


def test_what_is_learned_are_the_tokens_that_a_model_would_have_sampled(folder, bank, tmp_path):
    """The bundled model as teacher of itself: its own tokens, end token included."""
    tiny = open_llm("tiny-base")
    policy = Policy(tiny.copy(dtype="float32"), temperature=1.0, max_tokens=48)
    stage = replace(
        stage_of(folder, bank, teacher=tiny), policy=policy, settings=Settings(), teacher=None
    )
    stage.teacher = Agents(manage=tiny, answer=tiny)
    played = collect(stage, tmp_path / FILE, quiet)
    rows = rows_from(played, policy.llm, keep="all")
    sampled = policy.generate([one.steps[0][0] for one in played], seed=None)
    assert [(r.step.prompt_ids, r.step.ids) for r in rows] == [
        (s.prompt_ids, s.ids) for s in sampled
    ]


def test_the_file_holds_what_was_shown_and_said(folder, bank, tmp_path):
    collect(stage_of(folder, bank), tmp_path / FILE, quiet)
    first = json.loads((tmp_path / FILE).read_text().splitlines()[0])
    [step] = first.pop("steps")
    assert first == {"about": "d/q1", "role": "answer", "reward": 1.0, "right": True}
    assert step["completion"] == ANSWERS[WHERE.text]
    [[role, text]] = step["messages"]
    assert role == "user" and "Ann's home is Lima <s0>" in text and WHERE.text in text


def test_a_teacher_that_goes_away_is_asked_only_for_the_rest(folder, bank, tmp_path, monkeypatch):
    monkeypatch.setattr("memory_r1.train.imitate.AT_ONCE", 1)
    replies = [ANSWERS[WHERE.text], ModelUnavailable("gone")]
    with pytest.raises(ModelUnavailable):
        collect(
            stage_of(folder, bank, teacher=ScriptedLLM(replies, style="compact")),
            tmp_path / FILE,
            quiet,
        )
    rest = ScriptedLLM([ANSWERS[PET.text]], style="compact")
    played = collect(stage_of(folder, bank, teacher=rest), tmp_path / FILE, quiet)
    assert [one.right for one in played] == [True, False] and len(rest.prompts) == 1
    nobody = ScriptedLLM([], style="compact")
    assert collect(stage_of(folder, bank, teacher=nobody), tmp_path / FILE, quiet) == played


def test_a_line_that_a_crash_cut_off_is_played_again(folder, bank, tmp_path):
    path = tmp_path / FILE
    played = collect(stage_of(folder, bank), path, quiet)
    path.write_text(path.read_text()[:-30])
    assert read(path) == played[:1]
    assert collect(stage_of(folder, bank), path, quiet) == played
    path.write_text("not JSON\n" + path.read_text())
    with pytest.raises(DataError, match="line 1 is no trajectory"):
        read(path)


def instruct(replies, bank, folder, starts, reward="em"):
    teacher = ScriptedLLM(replies, name="chat")
    stage = stage_of(folder, bank, teacher=teacher, starts=starts, reward=reward)
    return stage, teacher


def test_a_repaired_reply_is_learned_as_the_reply_to_the_first_prompt(folder, bank, tmp_path):
    good = '{"operations": [{"op": "NOOP"}]}'
    stage, teacher = instruct(["hm", good], bank, folder, [told(bank)])
    [one] = collect(stage, tmp_path / FILE, quiet)
    [(prompt, completion)] = one.steps
    assert completion == good and prompt == teacher.prompts[0] and len(teacher.prompts) == 2


def test_what_can_not_be_read_is_not_imitated(folder, bank, tmp_path):
    stage, _ = instruct(["hm", "hm"], bank, folder, [told(bank)])
    [one] = collect(stage, tmp_path / FILE, quiet)
    assert one.steps == ()


def test_thinking_aloud_is_not_imitated(folder, bank, tmp_path):
    said = "<think>Lima, I think</think>\n**Answer:** Lima"
    stage, _ = instruct([said], bank, folder, [Task("d/q1", bank, WHERE)])
    [one] = collect(stage, tmp_path / FILE, quiet)
    assert one.steps[0][1] == "**Answer:** Lima" and one.right


def test_without_a_verdict_nobody_knows_whether_it_was_right(folder, bank, tmp_path):
    replies = ["**Answer:** Lima", "no idea"]
    stage, _ = instruct(replies, bank, folder, [Task("d/q1", bank, WHERE)], reward="judge")
    [one] = collect(stage, tmp_path / FILE, quiet)
    assert one.right is None and len(one.steps) == 1


def test_a_teacher_must_be_prompted_as_its_pupil_is():
    pupil = open_llm("tiny-base")
    run = run_of(teacher=Teacher("openai:gpt-x"))
    with pytest.raises(ConfigError, match="can't teach 'x': expected a model that is prompted in"):
        teacher_of(run, pupil, Agents())


def test_a_resumed_imitation_ends_with_the_same_weights_bit_for_bit(
    folder, bank, tmp_path, monkeypatch
):
    run = run_of(teacher=Teacher("y", keep="all"))
    monkeypatch.setattr(learning, "prepare", lambda run, say: stage_of(folder, bank, run))
    learn(run, tmp_path / "whole")
    learn(replace(run, steps=replace(run.steps, total=2)), tmp_path / "parts")
    learn(run, tmp_path / "parts", resume=True)
    one, other = (
        LocalLLM(str(tmp_path / name / "model")).model.state_dict() for name in ("whole", "parts")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    pair = open_agents(str(tmp_path / "whole"))
    assert pair.manage is pair.answer and pair.manage.path.endswith("whole/model")
