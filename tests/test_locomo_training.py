"""The same commands train any Hugging Face model on LoCoMo: a proof of plumbing, no result.

The models are random; what is checked is that dialogues, prompts, replies, rewards, checkpoints
and the pair of trained agents go through.
"""

import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from memory_r1.llm.local import LocalLLM  # noqa: E402
from memory_r1.llm.open import open_agents  # noqa: E402
from memory_r1.train import tokenizer  # noqa: E402
from memory_r1.train.learn import learn  # noqa: E402
from memory_r1.train.runfile import load_run  # noqa: E402

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
                turn(1, "Ann", "I moved to Lima."),
                turn(2, "Bob", "I have a cat, Felix."),
                turn(3, "Ann", "I got a job as a baker."),
            ],
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
    shape = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 16,
        "max_position_embeddings": 8192,
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
