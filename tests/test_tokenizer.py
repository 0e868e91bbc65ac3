"""The tiny model's tokenizer: what it cuts it puts together again, and nothing makes it fail."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_r1.data.words import KINDS, invent, pool
from memory_r1.data.world import WorldConfig, generate
from memory_r1.train.lessons import Teacher, Vice

pytest.importorskip("transformers")
from memory_r1.train import tokenizer as module  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer():
    return module.build()


def pieces(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


def round_trip(tokenizer, text):
    return tokenizer.decode(tokenizer(text)["input_ids"])


@pytest.mark.parametrize("words", ["train", "unseen", "mixed"])
def test_every_memory_comes_back_letter_for_letter(tokenizer, words):
    for sample in generate(WorldConfig(seed=1, dialogues=10, words=words)):
        for memory in sample["world"]["bank"]:
            assert round_trip(tokenizer, memory) == memory
        for question in sample["qa"]:
            for answer in (question["answer"], *question.get("accepted", ())):
                assert round_trip(tokenizer, answer) == answer


def test_every_word_comes_back_and_never_as_unknown(tokenizer):
    for kind in KINDS:
        for word in (*pool(kind, "train"), *pool(kind, "unseen")):
            assert round_trip(tokenizer, word) == word
            assert tokenizer.unk_token not in pieces(tokenizer, word)


@given(st.sampled_from(KINDS), st.randoms(use_true_random=False))
def test_invented_words_come_back(tokenizer, kind, rng):
    word = invent(kind, rng)
    assert round_trip(tokenizer, word) == word


def test_nothing_a_lesson_says_is_unknown(tokenizer):
    for lesson in Teacher(3, Vice()).lessons(1.0):
        for text in (lesson.prefix, *(part for e in lesson.endings for part in (e.given, e.reply))):
            assert tokenizer.unk_token not in pieces(tokenizer, text), text


def test_a_name_is_cut_the_same_way_wherever_it_stands(tokenizer):
    alone = pieces(tokenizer, "Deborah")
    assert len(alone) > 1
    for text in ("extract Deborah : I live in Oslo", "Where does Deborah live?", "(Deborah)",
                 "Deborah's cat", "Deborah's dog nothing => ADD"):  # fmt: skip
        cut = pieces(tokenizer, text)
        assert any(cut[i : i + len(alone)] == alone for i in range(len(cut))), cut


def test_labels_and_the_arrow_are_one_token_each_and_survive_decoding(tokenizer):
    text = "Ann's dog is Rex <s0> , Bob's home is Oslo <s63> => NOOP"
    cut = pieces(tokenizer, text)
    assert {"<s0>", "<s63>", "=>"} <= set(cut)
    ids = tokenizer(text)["input_ids"]
    back = tokenizer.decode(ids, skip_special_tokens=True)
    assert re.findall(r"<s\d+>|=>", back) == ["<s0>", "<s63>", "=>"]
    assert len({tokenizer.convert_tokens_to_ids(f"<s{i}>") for i in range(module.LABELS)}) == 64


def test_a_memory_of_one_and_of_several_begin_alike(tokenizer):
    """What a memory is about is found by its first tokens."""
    for noun in ("dog", "cat", "interest", "allergen"):
        subject = pieces(tokenizer, f"Otto's {noun}")
        assert subject[-2:] == ["'s", noun]
        assert pieces(tokenizer, f"Otto's {noun}s are Rex and Max")[: len(subject) + 2] == [
            *subject,
            "##s",
            "are",
        ]


@pytest.mark.parametrize(
    "text",
    [
        *("Otto's dogs are Hunter and Widget", "James's boss is Chris", "Is it Otto's?"),
        *("Otto's wish for a glass is open", "Otto's visit to Paris was on 3 May 2023"),
        *("Gus's sister is unnamed", "the 1990's"),
    ],
)
def test_possessives_and_plurals_come_back(tokenizer, text):
    assert round_trip(tokenizer, text) == text
    assert tokenizer.unk_token not in pieces(tokenizer, text)


def test_dates_are_day_month_and_year(tokenizer):
    cut = pieces(tokenizer, "7 May 2023")
    assert cut == ["7", "May", "2023"]
    for text in ("31 December 2035", "1 January 2015", "12 March 1987"):
        assert round_trip(tokenizer, text) == text


def test_the_special_tokens_are_what_training_relies_on(tokenizer):
    assert (tokenizer.pad_token, tokenizer.eos_token) == (module.PAD, module.END)
    assert tokenizer.pad_token_id == 0
    vocabulary = module.vocabulary()
    assert len(set(vocabulary)) == len(vocabulary)
    assert len(tokenizer) == len(vocabulary) + 1 + module.LABELS


def test_it_is_the_same_every_time_and_after_saving(tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    module.save(tmp_path)
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    again = module.build()
    for sample in generate(WorldConfig(seed=2, dialogues=2, words="unseen")):
        for memory in sample["world"]["bank"]:
            ids = tokenizer(f"memory {memory} <s3> fact {memory} =>")["input_ids"]
            for other in (saved, again):
                assert other(f"memory {memory} <s3> fact {memory} =>")["input_ids"] == ids
                assert other.decode(ids) == tokenizer.decode(ids)
    first = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    assert first["model"]["vocab"] == json.loads(again.backend_tokenizer.to_str())["model"]["vocab"]


@given(st.text(max_size=80))
@settings(max_examples=200)
def test_no_text_makes_it_fail(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert all(0 <= token < len(tokenizer) for token in ids)
    assert isinstance(tokenizer.decode(ids), str)


@given(st.lists(st.integers(0, 1000), max_size=30))
def test_whatever_a_model_samples_can_be_decoded(tokenizer, ids):
    assert isinstance(tokenizer.decode(ids), str)


@given(st.text("abcxyzABCXYZ", min_size=1, max_size=12))
def test_any_latin_word_comes_back(tokenizer, word):
    assert round_trip(tokenizer, word) == word
