"""Rerankers order texts, here and behind a URL; the system keeps the best for the reader."""

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from model_server import Server

from memory_r1.bank import Bank
from memory_r1.bench.systems.rerank import (
    KEY,
    CrossEncoderReranker,
    HttpReranker,
    Rerank,
    open_reranker,
)
from memory_r1.config import Settings
from memory_r1.data import Question
from memory_r1.embed import open_embedder
from memory_r1.errors import ConfigError, MissingExtra, ModelUnavailable
from memory_r1.llm import Agents, ScriptedLLM, drive
from memory_r1.store.ram import RamStore
from memory_r1.types import Add, Owner, Turn

MAY_8 = datetime(2023, 5, 8, tzinfo=UTC)
QUESTION = Question("q", "talk", "What does Ines keep?", "bees", (), 4)


def results(*scores):
    rows = [{"index": i, "relevance_score": score} for i, score in enumerate(scores)]
    return 200, {"results": sorted(rows, key=lambda row: -row["relevance_score"])}


@pytest.fixture
def server():
    server = Server()
    server.respond = lambda body: results(*(len(text) for text in body["documents"]))
    yield server
    server.close()


@pytest.fixture
def reranker(server):
    client = HttpReranker(f"{server.url}/rerank#small", sleep=lambda seconds: None)
    yield client
    client.close()


def test_a_service_is_asked_in_the_usual_form_and_its_order_undone(server, reranker):
    assert reranker.scores("Who?", ["a dog", "", "a dog and\na cat"]) == [5.0, 0.0, 15.0]
    [body] = server.bodies
    assert body == {
        "model": "small",
        "query": "Who?",
        "documents": ["a dog", "", "a dog and a cat"],
    }
    assert reranker.scores("Who?", []) == [] and len(server.bodies) == 1


def test_a_busy_service_is_asked_again(server, reranker):
    replies = [(503, {}), (429, {}), results(1.0)]
    server.respond = lambda body: replies.pop(0)
    assert reranker.scores("Who?", ["x"]) == [1.0]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, {"error": "bad key sk-123"}), r"HTTP 401.*\[key\].*Check that the server runs"),
        ((500, b"boom"), "HTTP 500: boom .4 attempts."),
        ((200, b"<html>"), "not a list of results: <html>"),
        ((200, {"data": []}), "not a list of results"),
        ((200, {"results": [{"index": 0}]}), "not a list of results"),
        ((200, []), "not a list of results"),
        (results(1.0), "scored 1 texts of 2"),
        (results(1.0, 1.0, 1.0), "scored 3 texts of 2"),
        (results(1.0, float("nan")), "no finite numbers"),
    ],
)
def test_a_service_that_does_not_score_is_unavailable(server, monkeypatch, reply, message):
    monkeypatch.setenv(KEY, "sk-123")
    client = HttpReranker(f"{server.url}/rerank#small", sleep=lambda seconds: None)
    server.respond = lambda body: reply
    with pytest.raises(ModelUnavailable, match=message):
        client.scores("Who?", ["x", "y"])
    assert server.headers[0]["authorization"] == "Bearer sk-123"
    client.close()


def test_a_service_that_is_away_is_unavailable():
    for url in ("http://127.0.0.1:9/rerank#m", "http://127.0.0.1:99999/rerank#m"):
        client = HttpReranker(url, retries=1, sleep=lambda seconds: None)
        with pytest.raises(ModelUnavailable, match="'m' at http"):
            client.scores("Who?", ["x"])
        client.close()


@pytest.mark.parametrize("name", ["", " ", "./nowhere", "http://localhost/v1/rerank"])
def test_a_name_that_cannot_be_meant_says_what_can(name):
    with pytest.raises(ConfigError, match="expected"):
        open_reranker(name)


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    """A folder with a cross-encoder of random weights, giving as many numbers as asked."""
    reason = "needs the extra [sentence-transformers]"
    pytest.importorskip("sentence_transformers", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    folder = tmp_path_factory.mktemp("cross")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")

    def make(labels):
        transformers.set_seed(0)
        config = transformers.BertConfig(
            vocab_size=len(words),
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=40,
            num_labels=labels,
        )
        saved = folder / f"labels-{labels}"
        transformers.BertForSequenceClassification(config).save_pretrained(saved)
        tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=40)
        tokenizer.save_pretrained(saved)
        return saved

    return make


def test_a_cross_encoder_is_run_from_its_folder(cross_encoder):
    import sentence_transformers

    folder = cross_encoder(1)
    reranker = open_reranker(str(folder))
    texts = ["a dog", "a cat", "a dog", "x" * 1000, "\ud83d dog"]
    scores = reranker.scores("who barks", texts)
    assert len(scores) == 5 and scores[0] == pytest.approx(scores[2]) != scores[1]
    theirs = sentence_transformers.CrossEncoder(str(folder)).predict([("who barks", "a cat")])
    assert scores[1] == pytest.approx(float(theirs[0]), abs=1e-5)
    assert reranker.scores("who", []) == [] and reranker.name == "labels-1"


def test_a_model_that_gives_no_single_score_is_refused(cross_encoder):
    with pytest.raises(ModelUnavailable, match=r"shape \(2, 3\) for 2 texts; expected one each"):
        CrossEncoderReranker(str(cross_encoder(3))).scores("who", ["a", "b"])


def test_a_cross_encoder_that_cannot_be_loaded_is_unavailable(tmp_path, monkeypatch):
    pytest.importorskip("sentence_transformers")
    import huggingface_hub.constants

    (tmp_path / "config.json").write_text("{nonsense")
    with pytest.raises(ModelUnavailable, match="can't be loaded.*CrossEncoder.save"):
        open_reranker(str(tmp_path)).scores("who", ["a"])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable, match="no-one/nothing.*can't be loaded"):
        open_reranker("no-one/nothing").scores("who", ["a"])


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtra, match=r"memory-r1\[sentence-transformers\]"):
        open_reranker("some/model")


def test_opening_a_name_imports_no_library():
    code = (
        "import sys, memory_r1.bench.systems.rerank as r; r.open_reranker('x/y');"
        "assert not {'torch', 'sentence_transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


FACTS = ("Ines keeps bees.", "Olaf paints ships and boats.", "Ines has honey.", "Bye.")


@pytest.fixture
def bank():
    bank = Bank(RamStore(), open_embedder(), Owner("talk"))
    for i, fact in enumerate(FACTS, 1):
        bank.apply([Add(fact)], turn=Turn("Ines", fact, MAY_8, f"D1:{i}"))
    return bank


def test_the_best_by_the_reranker_are_read_in_the_order_of_time(server, reranker, bank):
    llm = ScriptedLLM(lambda prompt: "**Answer:** bees")
    system = Rerank("rerank", Agents(answer=llm), reranker=reranker, keep=2)
    answer = drive([system.answer(bank, QUESTION)], system.agents)[0]
    assert [entry.text for entry in answer.retrieved] == [FACTS[0], FACTS[1]]
    assert answer.scores == (29.0, 41.0)  # the lengths, with the date before each
    assert set(answer.latency) == {"search", "rerank", "answer"}
    assert set(server.bodies[0]["documents"]) == {f"[8 May 2023] {fact}" for fact in FACTS}
    assert "honey" not in llm.prompts[0].text
    assert system.shown == 2 and system.players["rerank"] == "small"


def test_k_says_how_many_are_compared(server, reranker, bank):
    system = Rerank("rerank", Agents(answer=ScriptedLLM(["bees"])), reranker=reranker)
    few = replace(system, settings=Settings(k=3))
    answer = drive([few.answer(bank, QUESTION)], few.agents)[0]
    assert len(server.bodies[0]["documents"]) == len(answer.retrieved) == 3


def test_an_empty_bank_asks_no_reranker(server, reranker):
    bank = Bank(RamStore(), open_embedder(), Owner("talk"))
    system = Rerank("rerank", Agents(answer=ScriptedLLM(["not mentioned"])), reranker=reranker)
    answer = drive([system.answer(bank, QUESTION)], system.agents)[0]
    assert not answer.known and not server.bodies
