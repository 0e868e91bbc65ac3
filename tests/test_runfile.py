import ast
import dataclasses
import inspect
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_r1.errors import ConfigError
from memory_r1.train import runfile
from memory_r1.train.configfile import Section, dump_config, flat, load_config, read_toml
from memory_r1.train.runfile import Data, Grpo, Optimizer, Rollout, Run, World, dump, load_run

FILE = """
kind = "manager"
model = "tiny-base"
seed = 3

[world]
dialogues = 40
dials = {two_dogs = 0.5}

[grpo]
clip = 0.1

[optimizer]
lr = 1
betas = [0.9, 0.95]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run.toml"
    file.write_text(FILE)
    return file


def test_a_run_file_says_what_differs_from_the_defaults(path):
    run = load_run(path)
    assert run == Run(
        kind="manager",
        model="tiny-base",
        seed=3,
        world=World(dialogues=40, dials={"two_dogs": 0.5}),
        grpo=Grpo(clip=0.1),
        optimizer=Optimizer(lr=1.0, betas=(0.9, 0.95)),
    )
    assert isinstance(run.optimizer.lr, float)


def test_overrides_are_toml_or_bare_text(path):
    run = load_run(
        path,
        [
            "grpo.clip=0.3",
            "model = runs/out/best",
            'answer="tiny"',
            "grpo.scale_by_std=false",
            "optimizer.betas=[0.5, 0.6]",
            "world.dials.retract=2",
            "grpo.dual_clip=none",
        ],
    )
    assert (run.grpo.clip, run.model, run.answer) == (0.3, "runs/out/best", "tiny")
    assert run.grpo.scale_by_std is False and run.optimizer.betas == (0.5, 0.6)
    assert run.world and run.world.dials == {"two_dogs": 0.5, "retract": 2}
    assert run.grpo.dual_clip is None


def test_a_file_that_was_dumped_reads_back_equal(path, tmp_path):
    run = load_run(path, ["grpo.dual_clip=none", "rollout.group_size=4"])
    again = tmp_path / "config.toml"
    again.write_text(dump(run))
    assert load_run(again) == run


keys = st.text(min_size=1, max_size=6)
plain = (
    st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
)
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=4), values, max_size=4
    ),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.floats(1e-300, 1e300),
    st.none() | st.floats(1.001, 1e9),
)
def test_any_run_survives_the_round_trip(dials, model, lr, dual_clip):
    run = Run(
        kind="answer",
        model=model,
        world=World(dials=dials),
        optimizer=Optimizer(lr=lr),
        grpo=Grpo(dual_clip=dual_clip),
    )
    assert load_config(Run, tomllib.loads(dump(run))) == run


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        (
            "rollout.groupsize=4",
            "unknown setting 'groupsize' in [rollout]; did you mean 'group_size'?",
        ),
        ("grpo.groupsize=4", "in [grpo]; did you mean 'group_size' in [rollout]?"),
        ("optimiser.lr=1", "unknown setting 'optimiser'; did you mean 'optimizer'?"),
        ("ppo.xyz=1", "unknown setting 'xyz' in [ppo]; known are clip, "),
        ("rollout.group_size=0", "rollout.group_size is 0; expected a whole number from 1"),
        ("rollout.group_size=1", "rollout.group_size is 1; GRPO compares"),
        ("rollout.group_size=2.5", "rollout.group_size is 2.5; expected a whole number from 1"),
        ("rollout.group_size=true", "rollout.group_size is True; expected a whole number"),
        ("optimizer.lr=0", "optimizer.lr is 0; expected a number above 0"),
        ("optimizer.lr=nan", "optimizer.lr is nan; expected a number above 0"),
        ("optimizer.lr=inf", "optimizer.lr is inf; expected"),
        ("optimizer.lr=1e-6x", "optimizer.lr is '1e-6x'; expected a number above 0"),
        ("optimizer.betas=[0.9]", "optimizer.betas is [0.9]; expected a list of 2 numbers"),
        ("ppo.lam=1.1", "ppo.lam is 1.1; expected a number from 0 to 1"),
        ("grpo.clip_high=-1", "expected a number above 0, or 'none'"),
        ("grpo.scale_by_std=1", "grpo.scale_by_std is 1; expected true or false"),
        ("algorithm=dpo", "run.algorithm is 'dpo'; expected one of 'grpo', 'ppo'"),
        ("sft.vice_repeat=2", "sft.vice_repeat is 2; expected a number from 0 to 1"),
        ("kind=sft", "kind 'sft' writes lessons of its own; leave out [world] and [data]"),
        ("grpo=0.3", "run.grpo is 0.3; expected a table"),
        ("seed.x=1", "cannot set 'seed.x': 'seed' is not a section"),
        ("grpo.clip", "expected name=value, e.g. grpo.clip=0.3"),
        ("grpo..clip=1", "expected name=value"),
        ("manager=tiny", "'manager' names a frozen manager"),
        ("data.path=locomo10.json", "expected [world] or [data], one of them; both is given"),
    ],
)
def test_a_mistake_is_named_with_the_file_and_the_remedy(path, override, complaint):
    with pytest.raises(ConfigError) as caught:
        load_run(path, [override])
    assert complaint in str(caught.value)
    assert str(caught.value).startswith(f"{path} with {override}: ")


def test_a_run_needs_to_say_what_it_is(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('model = "tiny-base"')
    with pytest.raises(ConfigError, match=r"'kind' is missing; expected one of 'sft', 'manager'"):
        load_run(file)
    file.write_text("kind = ")
    with pytest.raises(ConfigError, match="run.toml: not TOML: "):
        load_run(file)
    with pytest.raises(ConfigError, match="cannot read the run file nowhere.toml"):
        load_run("nowhere.toml")
    with pytest.raises(ConfigError, match="'path' in \\[data\\] is missing; expected a text"):
        load_config(Run, {"kind": "sft", "model": "x", "data": {}})


def test_sections_made_in_code_are_checked_as_well():
    with pytest.raises(ConfigError, match=r"rollout.max_tokens is 0; expected"):
        Rollout(max_tokens=0)
    with pytest.raises(ConfigError, match="needs at least 2"):
        Run(kind="answer", model="tiny", data=Data("x.json"), rollout=Rollout(group_size=1))
    Run(kind="answer", model="tiny", data=Data("x"), rollout=Rollout(group_size=1), algorithm="ppo")


def test_what_toml_cannot_hold_is_refused_when_written():
    with pytest.raises(ConfigError, match="'when' is .*, which a TOML file cannot hold"):
        dump_config(World(dials={"when": object()}))


@given(st.text())
def test_any_override_is_read_or_refused(text):
    try:
        read_toml(FILE, [text])
    except ConfigError:
        pass


def test_settings_have_one_flat_name_each(path):
    names = flat(load_run(path))
    assert names["grpo.clip"] == 0.1 and names["world.dials.two_dogs"] == 0.5
    assert names["seed"] == 3 and "data" not in names


def test_every_setting_has_its_documentation_under_it():
    tree = ast.parse(inspect.getsource(runfile))
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        assert ast.get_docstring(node)
        for field, following in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign):
                name = field.target.id
                section = getattr(getattr(runfile, name.title(), None), "__doc__", None)
                documented = isinstance(following, ast.Expr) or section
                assert documented, f"{node.name}.{name} has no docstring"


def test_the_averages_of_run_files_are_those_of_the_losses():
    algorithms = pytest.importorskip("memory_r1.train.algorithms")
    assert runfile.Averaging == algorithms.Aggregate


def test_every_section_is_a_frozen_dataclass_whose_fields_have_one_default():
    for field in dataclasses.fields(Run):
        if isinstance(field.default, Section):
            assert field.default == type(field.default)()
