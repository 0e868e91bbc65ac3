"""What the tests of the engine for clusters are played on: two dialogues, a model to tokenize."""

import json
import re

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = ["<|im_start|>", "<|im_end|>", "<|pad|>"]


def chat_model(folder):
    """A chat model's folder without its weights: what tokenizing and configuring need."""
    folder.mkdir(parents=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(MARKS)
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "pad_token": "<|pad|>",
                "chat_template": TEMPLATE,
                "model_max_length": 100_000,
            }
        )
    )
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "qwen2",
                "architectures": ["Qwen2ForCausalLM"],
                "vocab_size": len(letters) + len(MARKS),
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "max_position_embeddings": 100_000,
                "eos_token_id": len(letters) + 1,
                "pad_token_id": len(letters) + 2,
            }
        )
    )
    return folder


def conversation(sample_id):
    said = [
        "I moved to Lima.",
        "I have a cat, Felix.",
        "I got a job as a baker.",
        f"Hello from {sample_id}.",
    ]
    asked = {"Where did Ann move?": ("I moved to Lima.", "D1:1"), "Felix?": ("Felix", "D1:2")}
    return {
        "sample_id": sample_id,
        "conversation": {
            "speaker_a": "Ann",
            "speaker_b": "Bob",
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": [
                {"speaker": ("Ann", "Bob")[i % 2], "dia_id": f"D1:{i + 1}", "text": text}
                for i, text in enumerate(said)
            ],
        },
        "qa": [
            {"question": q, "answer": gold, "evidence": [turn], "category": 4}
            for q, (gold, turn) in asked.items()
        ],
    }


def locomo(path):
    """A file in LoCoMo's form: one dialogue to train on and one held out."""
    path.write_text(json.dumps([conversation("conv-26"), conversation("conv-30")]))
    return path


class Client:
    """Plays the server of the policy for verl: a reply that the prompt decides, as token ids.

    A fact about Felix gets no JSON at first, so that a repair is asked for.
    """

    def __init__(self, folder):
        self.folder = str(folder)

    async def generate(self, request_id, *, prompt_ids, sampling_params, **_):
        from transformers import AutoTokenizer
        from verl.workers.rollout.replica import TokenOutput

        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        prompt = tokenizer.decode(prompt_ids)
        fact = re.search(r'New facts:\n- "(.*)"', prompt)
        if "cannot be used" in prompt:
            text = json.dumps({"operations": [{"op": "NOOP"}]})
        elif fact and "Felix" in fact[1]:
            text = "hm, no JSON"
        else:
            text = json.dumps({"operations": [{"op": "ADD", "text": fact[1]}]})
        ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids))
