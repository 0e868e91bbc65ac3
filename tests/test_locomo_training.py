"""The same commands train any Hugging Face model on LoCoMo: a proof of plumbing, no result.

The models are random; what is checked is that dialogues, prompts, replies, rewards, checkpoints
and the pair of trained agents go through.
"""

import json
import os
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from model_server import Server, completion
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from memory_r1.llm.local import LocalLLM  # noqa: E402
from memory_r1.llm.open import open_agents  # noqa: E402
from memory_r1.serve.cli import app  # noqa: E402
from memory_r1.train import tokenizer  # noqa: E402
from memory_r1.train.learn import learn  # noqa: E402
from memory_r1.train.runfile import load_run  # noqa: E402

DATA = Path(os.environ.get("MEMORY_R1_DATA", Path(__file__).parents[2] / "shared" / "data"))
LOCOMO = DATA / "locomo10.json"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def conversation(sample_id):
    def turn(n, speaker, text):
        return {"speaker": speaker, "dia_id": f"D1:{n}", "text": text}

    return {
        "sample_id": sample_id,
        "conversation": {
            "speaker_a": "Ann",
            "speaker_b": "Bob",
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": [
                turn(1, "Ann", f"I moved to Lima, said {sample_id}."),
                turn(2, "Bob", "I have a cat, Felix."),
                turn(3, "Ann", "I got a job as a baker."),
            ],
        },
        "observation": {
            "session_1_observation": {
                "Ann": [["Ann lives in Lima", "D1:1"], ["Ann is a baker", "D1:3"]],
                "Bob": [["Bob's cat is Felix", "D1:2"]],
            }
        },
        "qa": [
            {
                "question": "Where does Ann live?",
                "answer": "Lima",
                "evidence": ["D1:1"],
                "category": 4,
            },
            {
                "question": "What is Bob's cat called?",
                "answer": "Felix",
                "evidence": ["D1:2"],
                "category": 4,
            },
            {
                "question": "What is Ann's job?",
                "answer": "baker",
                "evidence": ["D1:3"],
                "category": 4,
            },
        ],
    }


@pytest.fixture(params=["llama", "qwen2"])
def model(request, tmp_path):
    words = tokenizer.build()
    words.chat_template = TEMPLATE
    words.model_max_length = 32_768
    shape = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 16,
        "max_position_embeddings": 32_768,
        "pad_token_id": words.pad_token_id,
        "bos_token_id": None,
        # Every second token ends a reply: a random model would ramble on.
        "eos_token_id": list(range(0, len(words), 2)),
    }
    torch.manual_seed(0)
    name = {"llama": "Llama", "qwen2": "Qwen2"}[request.param]
    config = getattr(transformers, f"{name}Config")(**shape)
    folder = tmp_path / request.param
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def test_both_stages_run_on_a_locomo_file_with_any_model(model, tmp_path):
    data = tmp_path / "locomo.json"
    data.write_text(json.dumps([conversation("conv-26"), conversation("conv-30")]))
    small = [
        f"model={model}",
        f"data.path={data}",
        "extract=rules",
        "rollout.prompts=2",
        "rollout.group_size=2",
        "rollout.max_tokens=8",
        "steps.total=2",
        "eval.every=0",
        "eval.questions=2",
    ]
    first, second = tmp_path / "manager", tmp_path / "answer"
    learn(load_run("runs/locomo_manager_grpo.toml", small), first)
    # A random manager keeps nothing, which would leave nothing to answer from.
    learn(load_run("runs/locomo_answer_grpo.toml", [*small, "manager=rules"]), second)
    rows = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[-1]["reward_mean"] is not None and rows[-1]["frac_zero_std"] is not None
    trained, pair = open_agents(str(first)), open_agents(str(second))
    assert trained.extract is None and pair.extract is None and pair.manage is None
    assert isinstance(trained.manage, LocalLLM) and isinstance(pair.answer, LocalLLM)
    assert trained.manage.path == str(first / "model") and trained.manage.style == "instruct"
    assert pair.answer.path == str(second / "model")


def command(runfile, out, *settings, code=0):
    result = CliRunner().invoke(
        app, ["train", f"runs/{runfile}.toml", "--out", str(out), *settings]
    )
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.data
@pytest.mark.skipif(not LOCOMO.exists(), reason="needs locomo10.json; set MEMORY_R1_DATA")
def test_both_stages_run_on_the_real_dialogue_by_the_command_and_can_be_stopped(model, tmp_path):
    """conv-26 with the file's own observations as memories: no model makes the banks."""
    small = [
        f"model={model}",
        f"data.path={LOCOMO}",
        "data.banks=observations",
        "rollout.per_speaker=30",
        "rollout.prompts=2",
        "rollout.group_size=2",
        "rollout.max_tokens=8",
        "rollout.questions=2",
        "eval.every=0",
        "eval.questions=2",
        "grpo.kl=0",
    ]
    first, second = tmp_path / "manager", tmp_path / "answer"
    stage = ("locomo_manager_grpo", first, *small, "rollout.window=50")
    command(*stage, "steps.total=1")
    refused = command(*stage, "steps.total=2", code=1)
    assert "continue the run in it with --resume" in refused.output
    command(*stage, "steps.total=2", "--resume")
    assert [row["step"] for row in rows(first)] == [0, 1, 2]
    command("locomo_answer_grpo", second, *small, f"manager={first}", "steps.total=1")
    assert rows(second)[-1]["response_length_mean"] > 0
    samples = (second / "samples.md").read_text()
    assert "conv-26/conv-26#" in samples and "support group" in samples.lower()
    pair = open_agents(str(second))
    assert Path(pair.manage.path).resolve() == (first / "model").resolve()
    assert pair.answer.path == str(second / "model")


def test_a_service_teaches_by_example(model, tmp_path):
    """Memory-SFT, from a teacher behind a URL to a run folder that can be played."""

    def reply(body):
        asked = body["messages"][-1]["content"]
        if "New facts:" in asked:
            new = asked.split("New facts:\n- ")[1]
            return 200, completion(f'{{"operations": [{{"op": "ADD", "text": {new}}}]}}')
        known = {"live": "Lima", "cat": "Felix", "job": "baker"}
        said = next(answer for word, answer in known.items() if word in asked.split("uestion")[-1])
        return 200, completion(f"[0] **Answer:** {said}")

    data = tmp_path / "locomo.json"
    data.write_text(json.dumps([conversation("conv-26"), conversation("conv-30")]))
    settings = [
        f"model={model}",
        f"data.path={data}",
        "extract=rules",
        "rollout.prompts=2",
        "rollout.max_tokens=8",
        "steps.total=6",
        "optimizer.lr=0.02",
        "optimizer.warmup_steps=0",
        "eval.every=0",
        "eval.questions=2",
    ]
    out = tmp_path / "out"
    with closing(Server()) as server:
        server.respond = reply
        command("locomo_sft", out, *settings, f"teacher.model={server.url}#teacher")
    played = [json.loads(line) for line in (out / "trajectories.jsonl").read_text().splitlines()]
    assert {row["role"] for row in played} == {"manage", "answer"}
    assert all(row["right"] for row in played if row["role"] == "answer")
    assert rows(out)[-1]["loss"] < rows(out)[1]["loss"] - 0.5
    pair = open_agents(str(out))
    assert pair.manage.path == pair.answer.path == str(out / "model") and pair.extract is None


@pytest.mark.parametrize("model", ["qwen2"], indirect=True)
def test_stages_alternate_in_one_command(model, tmp_path):
    data = tmp_path / "locomo.json"
    data.write_text(json.dumps([conversation("conv-26"), conversation("conv-30")]))
    settings = [
        f"model={model}",
        f"data.path={data}",
        "data.banks=observations",
        'stages.order=["manager", "answer", "manager"]',
        "rollout.prompts=2",
        "rollout.group_size=2",
        "rollout.max_tokens=8",
        "steps.total=1",
        "eval.every=0",
        "eval.questions=2",
    ]
    out = tmp_path / "out"
    shown = command("locomo_manager_grpo", out, *settings).output
    assert f"stage 2 of 3: answer, in {out}/2-answer" in shown
    third = load_run(out / "3-manager" / "config.toml")
    assert (third.model, third.answer) == (str(out / "1-manager"), str(out / "2-answer"))
    pair = open_agents(str(out))
    assert Path(pair.manage.path).resolve() == (out / "3-manager" / "model").resolve()
    assert Path(pair.answer.path).resolve() == (out / "2-answer" / "model").resolve()
    again = command("locomo_manager_grpo", out, *settings, "--resume").output
    assert again.count("finished before") == 3


@pytest.mark.parametrize("model", ["qwen2"], indirect=True)
def test_a_judge_pays_and_a_judge_that_is_away_stops_the_run_without_a_zero(model, tmp_path):
    def reply(body):
        if body["model"] == "judge":
            return judged
        return 200, completion("**Answer:** the town of Lima")

    data = tmp_path / "locomo.json"
    data.write_text(json.dumps([conversation("conv-26"), conversation("conv-30")]))
    out = tmp_path / "out"
    with closing(Server()) as server:
        server.respond = reply
        settings = [
            f"model={model}",
            f"data.path={data}",
            "data.banks=observations",
            f"answer={server.url}#answerer",
            "reward.name=judge",
            f"reward.judge={server.url}#judge",
            "rollout.prompts=2",
            "rollout.group_size=2",
            "rollout.max_tokens=8",
            "steps.checkpoint_every=1",
            "eval.every=0",
            "eval.questions=1",
        ]
        judged = 200, completion('{"reason": "the same town", "verdict": "CORRECT"}')
        command("locomo_manager_grpo", out, *settings, "steps.total=1")
        assert (rows(out)[-1]["reward_mean"], rows(out)[-1]["em"]) == (1, 0)
        judged = 401, {"error": "who are you?"}
        shutil.rmtree(os.environ["MEMORY_R1_CACHE"])  # its verdicts were kept
        refused = command(
            "locomo_manager_grpo", out, *settings, "steps.total=2", "--resume", code=1
        )
        assert "no rollout of step 2 could be paid for" in refused.output
        assert [row["step"] for row in rows(out)] == [0, 1]
        judged = 200, completion('{"reason": "another town", "verdict": "WRONG"}')
        command("locomo_manager_grpo", out, *settings, "steps.total=2", "--resume")
        assert rows(out)[-1]["reward_mean"] == 0 and rows(out)[-1]["infra_failures"] == 0
