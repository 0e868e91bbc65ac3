"""Adapters that we trained, served over HTTP by `transformers serve`, asked by name."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

torch = pytest.importorskip("torch", reason="adapters need the extra [train]")
transformers = pytest.importorskip("transformers", reason="adapters need the extra [train]")
pytest.importorskip("peft", reason="adapters need the extra [train]")

from transformers.utils.import_utils import is_serve_available  # noqa: E402

from memory_r1.llm.local import LocalLLM  # noqa: E402
from memory_r1.llm.open import open_agents, open_llm  # noqa: E402
from memory_r1.train.adapters import adapt  # noqa: E402
from memory_r1.train.runfile import Lora  # noqa: E402
from memory_r1.types import Prompt  # noqa: E402

SERVER = Path(sys.executable).with_name("transformers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_serve_available(), reason="needs transformers[serving]"),
]
START, END = "<|im_start|>", "<|im_end|>"
# The server finds the reply by Qwen's own marks; jinja would swallow a plain newline at the end.
TEMPLATE = (
    f"{{% for m in messages %}}{START}{{{{ m.role }}}}\n{{{{ m.content }}}}{END}\n{{% endfor %}}"
    f"{START}assistant{{{{ '\\n' }}}}"
)
ASKED = [
    Prompt((("system", "You keep memories."), ("user", "Ann moved to Lima."))),
    Prompt((("user", "Where does Ann live?"),)),
]
TOKENS = 24


def write_base(folder):
    """A Qwen2 with random weights, with letters for tokens."""
    letters = ["Ġ", "Ċ", *map(chr, range(33, 127))]
    vocab = {token: i for i, token in enumerate([*letters, START, END])}
    words = transformers.Qwen2Tokenizer(
        vocab=vocab, merges=[], unk_token=None, eos_token=END, pad_token=END,
        additional_special_tokens=[START],
    )  # fmt: skip
    words.chat_template = TEMPLATE
    config = transformers.Qwen2Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def write_adapter(base, folder, seed):
    """What a training leaves in `model/`, after updates that moved it far."""
    llm = adapt(LocalLLM(base), Lora(rank=4, alpha=8), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in llm.weights.parameters(llm.adapter).values():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    llm.save(folder)
    return folder


def beside_its_base(adapter, base, folder):
    """The folder that docs/adapters.md says to make: the adapter, and links to the base."""
    shutil.copytree(adapter, folder)
    for file in (base / "config.json", base / "generation_config.json", *base.glob("model*")):
        (folder / file.name).symlink_to(file)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders by name: the base, and two adapters on it."""
    here = tmp_path_factory.mktemp("models")
    base = write_base(here / "base")
    trained = {
        name: write_adapter(base, here / "out" / name, seed)
        for seed, name in enumerate(("manager", "answerer"))
    }
    return {"base": base, **trained}


@pytest.fixture(scope="module")
def served(models, tmp_path_factory):
    """(URL of a running server, what each model is called there)."""
    here = tmp_path_factory.mktemp("served")
    names = {"base": models["base"]} | {
        name: beside_its_base(models[name], models["base"], here / name)
        for name in ("manager", "answerer")
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(here / "hub")}
    with (here / "log").open("w") as log:
        server = subprocess.Popen(
            [SERVER, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            env=environment,
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/health", server, here / "log")
        yield f"{url}/v1", names
    finally:
        server.terminate()
        server.wait(30)


def wait_for(url, server, log):
    for _ in range(600):
        try:
            httpx.get(url).raise_for_status()
            return
        except httpx.HTTPError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.2)
    raise AssertionError(f"{url} was not up after two minutes: {log.read_text()}")


def texts(llm):
    return [reply.text.strip() for reply in llm.complete(ASKED, max_tokens=TOKENS)]


def streamed(llm):
    told = [[] for _ in ASKED]
    for prompt, pieces in zip(ASKED, told, strict=True):
        assert llm.stream(prompt, pieces.append, max_tokens=TOKENS).text == "".join(pieces)
    assert any(len(pieces) > 1 for pieces in told)
    return ["".join(pieces).strip() for pieces in told]


def test_a_served_adapter_says_what_it_says_here(models, served):
    url, names = served
    here = {name: texts(LocalLLM(folder)) for name, folder in models.items()}
    there = {}
    for name, folder in names.items():
        with closing(open_llm(f"{url}#{folder}")) as llm:
            there[name] = texts(llm)
            assert streamed(llm) == there[name]
    assert there == here
    assert len({tuple(said) for said in here.values()}) == 3


def test_agents_may_be_adapters_of_one_server(models, served, tmp_path):
    url, names = served
    players = {"extract": "base", "manage": "manager", "answer": "answerer"}
    agents = {role: f"{url}#{names[name]}" for role, name in players.items()}
    (tmp_path / "agents.json").write_text(json.dumps(agents))
    opened = open_agents(str(tmp_path))
    for role, name in players.items():
        with closing(getattr(opened, role)) as llm:
            assert texts(llm) == texts(LocalLLM(models[name]))
