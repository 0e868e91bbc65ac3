"""What a model's folder and name say about it."""

import json

import pytest

from memory_r1.bench.provenance import size_of, trained

RUN = 'kind = "{kind}"\nmodel = "Qwen/Qwen2.5-3B-Instruct"\nseed = 4\nalgorithm = "ppo"\n'


@pytest.fixture
def pair(tmp_path):
    """The folders of two stages, as `memory-r1 train` leaves them."""
    for name, kind in (("first", "manager"), ("second", "answer")):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "config.toml").write_text(RUN.format(kind=kind))
    roles = {"extract": "Qwen/Qwen2.5-3B-Instruct", "manage": "../first/model", "answer": "model"}
    (tmp_path / "second" / "agents.json").write_text(json.dumps(roles))
    return tmp_path / "second"


def test_each_agent_of_a_pair_says_how_it_was_trained(pair):
    told = {"algorithm": "ppo", "reward": "em", "model": "Qwen/Qwen2.5-3B-Instruct", "seed": 4}
    assert trained(str(pair), "manage") == told
    assert trained(str(pair), "answer") == told
    assert trained(str(pair), "extract") is None


def test_an_untrained_partner_is_not_said_to_be_trained(pair):
    (pair / "agents.json").write_text(json.dumps({"manage": "tiny-base", "answer": "model"}))
    assert trained(str(pair), "manage") is None
    assert trained(str(pair), "answer") is not None


def test_the_bundled_pair_was_trained_and_its_base_was_not():
    assert trained("tiny", "manage")["algorithm"] == "grpo"
    assert trained("tiny", "answer")["algorithm"] == "grpo"
    assert trained("tiny-base", "manage") is None


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", 7.0),
        ("http://127.0.0.1:8000/v1#meta-llama/Llama-3.1-8B-Instruct", 8.0),
        ("openai:gpt-oss-120b", 120.0),
        ("Qwen3-0.6B", 0.6),
        ("smol-135M", 0.135),
        ("gpt-4o-mini", None),
        ("rules", None),
        ("tiny", 0.002),
    ],
)
def test_the_size_of_a_model(name, billions):
    assert size_of(name) == billions
