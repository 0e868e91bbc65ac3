"""Embedders: the one from the wheel, and a server spoken to through a fake transport."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_r1 import embed
from memory_r1.embed import Embedder, HttpEmbedder, LocalEmbedder, open_embedder
from memory_r1.errors import ConfigError, MissingExtra, ModelUnavailable


@pytest.fixture(scope="module")
def local() -> LocalEmbedder:
    return LocalEmbedder()


def test_what_means_the_same_is_nearer_than_what_does_not(local):
    dog, puppy, tax = local.embed(["She adopted a dog", "A puppy joined her", "The tax is due"])
    assert dog @ puppy > 0.3 > dog @ tax


def test_the_vectors_are_wordllamas_own(local):
    level, handlers = logging.root.level, logging.root.handlers[:]
    import wordllama

    logging.root.setLevel(level)  # importing it turns the root logger on
    logging.root.handlers[:] = handlers
    theirs = wordllama.WordLlama.load(
        cache_dir=Path(wordllama.__file__).parent, disable_download=True
    )
    texts = ["We went camping in June.", "I ♥ pottery", "东京", "no"]
    np.testing.assert_allclose(local.embed(texts), theirs.embed(texts, norm=True), atol=1e-6)


@settings(max_examples=50)
@given(texts=st.lists(st.text(max_size=30), max_size=5))
def test_any_text_has_a_unit_vector_or_none(local, texts):
    vectors = local.embed(texts)
    assert vectors.shape == (len(texts), 256) and vectors.dtype == np.float32
    for length in np.linalg.norm(vectors, axis=1):
        assert length == 0 or length == pytest.approx(1, abs=1e-5)


def test_half_a_surrogate_pair_and_nothing_at_all_are_texts_too(local):
    assert not local.embed([""]).any()
    assert local.embed(["\ud83d dog"]).shape == (1, 256)


def test_a_single_text_is_refused_rather_than_read_letter_by_letter(local):
    with pytest.raises(TypeError, match="list of texts"):
        local.embed("dog")


def test_neither_torch_nor_wordllamas_package_is_imported():
    code = (
        "import sys, memory_r1.embed as e; e.open_embedder().embed(['a dog']);"
        "assert not {'torch', 'wordllama', 'requests'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Server:
    """Answers /embeddings with a vector of each text's length, and keeps what it was sent."""

    def __init__(self, status: int = 200, body: object = None) -> None:
        self.requests: list[httpx.Request] = []
        self._status, self._body = status, body

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self._body is not None:
            return httpx.Response(self._status, json=self._body)
        texts = json.loads(request.content)["input"]
        rows = [{"index": i, "embedding": [len(text), 0.5, 0]} for i, text in enumerate(texts)]
        return httpx.Response(self._status, json={"data": rows[::-1]})

    def embedder(self, url: str = "http://host/v1#m", **options) -> HttpEmbedder:
        return behind(self, url, **options)


def behind(respond, url: str = "http://host/v1#m", **options) -> HttpEmbedder:
    client = httpx.Client(transport=httpx.MockTransport(respond))
    return HttpEmbedder(url, client=client, **options)


def test_a_server_is_asked_once_per_text_and_its_answers_are_put_in_order():
    server = Server()
    embedder = server.embedder()
    first, second = embedder.embed(["aaaa", "b"])
    assert first[0] > second[0]
    assert np.linalg.norm(first) == pytest.approx(1)
    asked = len(server.requests)
    np.testing.assert_array_equal(embedder.embed(["b", "b"]), [second, second])
    assert len(server.requests) == asked
    assert str(server.requests[-1].url) == "http://host/v1/embeddings"


def test_many_texts_go_in_batches():
    server = Server()
    assert server.embedder().embed([f"{i}" for i in range(300)]).shape == (300, 3)
    sizes = [len(json.loads(request.content)["input"]) for request in server.requests]
    assert max(sizes) <= 128 and sum(sizes) >= 300


@pytest.mark.parametrize(
    ("server", "says"),
    [
        (Server(401, {"error": "no key"}), "answered 401 for model 'm'"),
        (Server(200, {"oops": 1}), "not answer in OpenAI's form"),
        (Server(200, {"data": []}), "was sent 1 texts"),
        (Server(200, {"data": [{"index": 0, "embedding": [1e39]}]}), "finite"),
        (Server(200, {"data": [{"index": 0, "embedding": "AAAA"}]}), "not answer in OpenAI's form"),
    ],
)
def test_a_server_that_fails_is_an_unavailable_model(server, says):
    with pytest.raises(ModelUnavailable, match=says):
        server.embedder().embed(["x"])


def test_a_server_that_is_not_there_is_an_unavailable_model():
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    waits = []
    with pytest.raises(ModelUnavailable, match="is it running"):
        behind(refuse, sleep=waits.append).embed(["x"])
    assert waits == [0.5, 1.0, 2.0]


def test_a_busy_server_is_asked_again():
    server, waits = Server(), []
    troubles = [503, 429, httpx.ReadTimeout("slow")]

    def respond(request):
        if troubles:
            trouble = troubles.pop()
            if isinstance(trouble, Exception):
                raise trouble
            return httpx.Response(trouble, text="busy")
        return server(request)

    assert behind(respond, sleep=waits.append).embed(["x"]).shape == (1, 3)
    assert waits == [0.5, 1.0, 2.0]
    troubles += [503] * 4
    with pytest.raises(ModelUnavailable, match="answered 503 for model 'm': busy"):
        behind(respond, sleep=waits.append).embed(["x"])


def test_what_is_too_much_for_a_server_goes_in_halves_and_too_long_a_text_by_its_beginning():
    server = Server()

    def respond(request):
        texts = json.loads(request.content)["input"]
        if len(texts) > 5 or sum(map(len, texts)) > 1500:
            return httpx.Response(400, json={"error": "too long"})
        return server(request)

    texts = ["x" * length for length in (40, 10, 5000, 700, 900, 20, 30)]
    vectors = behind(respond).embed(texts)
    sent = vectors[:, 0] / vectors[:, 1] * 0.5  # how long the text was that reached the server
    np.testing.assert_allclose(sent, [40, 10, 1250, 700, 900, 20, 30], rtol=1e-4)


def test_a_server_that_refuses_whatever_it_is_sent_is_unavailable_soon():
    server = Server(400, {"error": "no such model"})
    with pytest.raises(ModelUnavailable, match="no such model"):
        server.embedder().embed(["x" * 1000] * 100)
    assert len(server.requests) < 20


def test_long_texts_travel_in_smaller_batches():
    server = Server()
    server.embedder().embed([f"{i}" * 50_000 for i in range(9)])
    sizes = [sum(map(len, json.loads(r.content)["input"])) for r in server.requests]
    assert max(sizes) <= 200_000 and sum(sizes) > 450_000


def test_a_server_that_changes_its_model_is_found_out():
    length = 3

    def respond(request):
        texts = json.loads(request.content)["input"]
        rows = [{"index": i, "embedding": [1.0] * length} for i in range(len(texts))]
        return httpx.Response(200, json={"data": rows})

    embedder = behind(respond)
    embedder.embed(["a"])
    length = 4
    with pytest.raises(ModelUnavailable, match="of 4 numbers, and of 3 before.*reindex"):
        embedder.embed(["b"])


def test_a_blank_text_is_all_zeros_and_half_a_surrogate_pair_is_sent():
    server = Server()
    blank, broken = server.embedder().embed([" ", "\ud83d dog"])
    assert not blank.any() and broken.any()
    assert "-" in json.loads(server.requests[-1].content)["input"]


def test_a_servers_key_is_not_told():
    server = Server(401, {"error": "bad key sk-mine"})
    with pytest.raises(ModelUnavailable) as caught:
        server.embedder(api_key="sk-mine").embed(["x"])
    assert "sk-mine" not in str(caught.value) and "[key]" in str(caught.value)


def test_openais_key_goes_to_openai_alone(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    elsewhere, openai, named = Server(), Server(), Server()
    elsewhere.embedder().embed(["x"])
    openai.embedder("https://api.openai.com/v1#m").embed(["x"])
    named.embedder(api_key="mine").embed(["x"])
    sent = [
        server.requests[0].headers.get("Authorization") for server in (elsewhere, openai, named)
    ]
    assert sent == [None, "Bearer secret", "Bearer mine"]


def test_the_cache_forgets_what_was_used_longest_ago(monkeypatch):
    monkeypatch.setattr(embed, "CACHED_TEXTS", 2)
    server = Server()
    embedder = server.embedder()
    embedder.embed(["a", "b"])
    embedder.embed(["a"])
    embedder.embed(["c"])
    before = len(server.requests)
    embedder.embed(["a", "c"])
    assert len(server.requests) == before
    embedder.embed(["b"])
    assert len(server.requests) == before + 1


def test_embedders_are_opened_by_name():
    assert isinstance(open_embedder(), LocalEmbedder)
    assert isinstance(open_embedder("wordllama"), Embedder)
    assert open_embedder("http://localhost:1/v1#nomic").name == "http://localhost:1/v1#nomic"
    for name in ("gpt", "http://localhost:1/v1", "sentence-transformers:"):
        with pytest.raises(ConfigError, match="expected"):
            open_embedder(name)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A sentence-transformers model of random weights, with mean pooling."""
    reason = "needs the extra [sentence-transformers]"
    library = pytest.importorskip("sentence_transformers", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    library.SentenceTransformer(str(folder)).save(str(folder / "saved"))
    return folder / "saved"


def test_a_model_of_sentence_transformers_is_run_from_its_folder(bert):
    import sentence_transformers

    embedder = open_embedder(f"sentence-transformers:{bert}")
    assert isinstance(embedder, Embedder) and embedder.dim == 24
    texts = ["a dog", "a cat", "a dog", "x" * 1000, "\ud83d dog"]
    vectors = embedder.embed(texts)
    assert vectors.shape == (5, 24) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    theirs = sentence_transformers.SentenceTransformer(str(bert)).encode(
        ["a cat"], normalize_embeddings=True
    )
    np.testing.assert_allclose(vectors[1], theirs[0], atol=1e-6)
    assert embedder.embed([]).shape == (0, 24)
    assert not embedder.embed([" "]).any()


def test_a_model_that_cannot_be_loaded_is_unavailable(bert, tmp_path, monkeypatch):
    import huggingface_hub.constants

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "modules.json").write_text("{nonsense")
    for name in (broken, tmp_path / "nowhere"):
        with pytest.raises(ModelUnavailable, match=f"{name.name}.*can't be loaded"):
            open_embedder(f"sentence-transformers:{name}").embed(["x"])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable, match="no-one/nothing.*can't be loaded"):
        open_embedder("sentence-transformers:no-one/nothing").embed(["x"])


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtra, match=r"memory-r1\[sentence-transformers\]"):
        open_embedder("sentence-transformers:all-MiniLM-L6-v2")


def test_opening_a_name_imports_no_library():
    code = (
        "import sys, memory_r1.embed as e; e.open_embedder('sentence-transformers:x');"
        "assert not {'torch', 'sentence_transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
