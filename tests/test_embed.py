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
from memory_r1.errors import ConfigError, ModelUnavailable


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


@settings(max_examples=50, deadline=None)
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
        client = httpx.Client(transport=httpx.MockTransport(self))
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
    ],
)
def test_a_server_that_fails_is_an_unavailable_model(server, says):
    with pytest.raises(ModelUnavailable, match=says):
        server.embedder().embed(["x"])


def test_a_server_that_is_not_there_is_an_unavailable_model():
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    client = httpx.Client(transport=httpx.MockTransport(refuse))
    with pytest.raises(ModelUnavailable, match="is it running"):
        HttpEmbedder("http://host/v1#m", client=client).embed(["x"])


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
    for name in ("gpt", "http://localhost:1/v1"):
        with pytest.raises(ConfigError, match="expected"):
            open_embedder(name)
