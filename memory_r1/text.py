"""answers compared with gold answers (EM, F1, BLEU-1, ROUGE-L), and texts cut into index terms."""

from __future__ import annotations

import math
import re
import string
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Final

import snowballstemmer  # type: ignore[import-untyped]

from memory_r1.caches import forgettable
from memory_r1.errors import MissingExtra

Gold = str | int
"""LoCoMo's and LongMemEval's gold answers are sometimes numbers."""

_NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)
_ASCII_WORD: Final = re.compile(r"[a-z0-9]+")


def normalise(text: Gold) -> str:
    """SQuAD's normal form: lower case, no ASCII punctuation, no articles, single spaces."""
    bare = str(text).lower().translate(_NO_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def em(prediction: str, gold: Gold) -> float:
    """1.0 when both have the same SQuAD normal form, else 0.0. The reward of training.

    Departs from SQuAD where a gold answer has no normal form, as the grade "A" has none: saying
    nothing must not be right, so the texts themselves are compared.
    """
    wanted = normalise(gold)
    if not wanted:
        said = prediction.strip().lower()
        return float(bool(said) and said == str(gold).strip().lower())
    return float(normalise(prediction) == wanted)


def f1(prediction: str, gold: Gold) -> float:
    """Harmonic mean of precision and recall over the sets of words, 0..1.

    The variant of Mem0's and A-Mem's evaluations: lower case, `. , ! ?` read as spaces, nothing
    else taken away. An empty prediction or gold scores 0.
    """
    said, wanted = (
        set(re.sub(r"[.,!?]", " ", str(text).lower()).split()) for text in (prediction, gold)
    )
    return _harmonic(len(said & wanted), len(said), len(wanted))


def f1_official(prediction: str, gold: Gold, category: int) -> float:
    """LoCoMo's own score of a question of this category, 0..1.

    F1 over multisets of Porter stems; category 1: each comma-separated part of the gold answer
    against the best part of the prediction, averaged; category 3: only what stands before the
    gold's first ";" counts; category 5: 1 for saying that it isn't known.
    Raises MissingExtra without nltk.
    """
    gold = str(gold)
    match category:
        case 1:
            said = [_stems(part) for part in prediction.split(",")]
            wanted = [_stems(part) for part in gold.split(",")]
            return sum(max(_f1_of(s, w) for s in said) for w in wanted) / len(wanted)
        case 3:
            return _f1_of(_stems(prediction), _stems(gold.split(";")[0]))
        case 5:
            low = prediction.lower()
            return float("no information available" in low or "not mentioned" in low)
        case _:
            return _f1_of(_stems(prediction), _stems(gold))


def bleu1(prediction: str, gold: Gold) -> float:
    """Sentence BLEU with unigrams alone and the brevity penalty, 0..1.

    Words are nltk's `word_tokenize(text.lower(), preserve_line=True)`, which needs no data file.
    With one n-gram order the smoothing method never comes into play: no match scores 0.
    Raises MissingExtra without nltk.
    """
    tokenize = _word_tokenizer()
    said, wanted = tokenize(prediction.lower()), tokenize(str(gold).lower())
    matched = (Counter(said) & Counter(wanted)).total()
    if not matched:
        return 0.0
    brevity = min(1.0, math.exp(1 - len(wanted) / len(said)))
    return brevity * matched / len(said)


def rouge_l_recall(prediction: str, gold: Gold) -> float:
    """Share (0..1) of the gold's words that the prediction says in the same order.

    The longest common subsequence of words over the number of words of the gold. Words are those
    of the reference implementation, rouge-score without its stemmer: lower case, runs of
    [a-z0-9], so that other letters only separate words. An empty prediction or gold scores 0.
    """
    said, wanted = (_ASCII_WORD.findall(str(text).lower()) for text in (prediction, gold))
    return _common_subsequence(said, wanted) / len(wanted) if wanted else 0.0


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """How many words the longest common subsequence has.

    A row of the usual table is kept as the bits of one number, 0 where it steps up (Hyyrö 2004):
    an answer of two thousand words costs two thousand additions, not a million comparisons.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(b):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(b)) - 1
    row = full
    for word in a:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & full
    return len(b) - row.bit_count()


def _stems(text: str) -> Counter[str]:
    stem = _porter()
    bare = text.replace(",", "").lower().translate(_NO_PUNCTUATION)
    return Counter(stem(word) for word in re.sub(r"\b(a|an|the|and)\b", " ", bare).split())


def _f1_of(said: Counter[str], wanted: Counter[str]) -> float:
    return _harmonic((said & wanted).total(), said.total(), wanted.total())


def _harmonic(matched: int, said: int, wanted: int) -> float:
    return 2 * matched / (said + wanted) if matched else 0.0


@cache
def _porter() -> Callable[[str], str]:
    try:
        from nltk.stem.porter import PorterStemmer
    except ImportError as error:
        raise MissingExtra("LoCoMo's official F1", "nltk", "bench") from error
    return lru_cache(maxsize=1 << 16)(PorterStemmer().stem)


@cache
def _word_tokenizer() -> Callable[[str], Sequence[str]]:
    try:
        from nltk.tokenize.destructive import NLTKWordTokenizer
    except ImportError as error:
        raise MissingExtra("BLEU-1", "nltk", "bench") from error
    tokenize: Callable[[str], Sequence[str]] = NLTKWordTokenizer().tokenize
    return tokenize


STOP_WORDS: Final = frozenset(
    """
    a about after again all also am an and any are as at be because been before being both but by
    can could d did do does doing don for from had has have having he her here hers him his how i
    if in into is it its itself just ll m me more most much my no nor not of off on once only or
    other our ours out over own re s same she should so some such t than that the their theirs
    them then there these they this those through to too until up us ve very was we were what when
    where which while who whom whose why will with would you your yours
    """.split()
)
"""Words too common to be looked up. "may" is a month, "against" and "under" carry meaning."""

# Scripts written without spaces between words: Thai to Burmese, kana, Chinese characters.
# Hangul has spaces, but its particles stick to the words, so it is cut up like Chinese.
_UNSPACED: Final = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005\u3040-\u30ff\u3130-\u318f"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]+)"
)

_HAN: Final = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def terms(text: str) -> tuple[str, ...]:
    """The index terms of a text, in order: lower-cased stems of all but the stop words.

    Scripts without spaces yield overlapping pairs of characters, since what is a word there is
    a question for a dictionary, and each Chinese character, which often is one. Stems are
    Snowball's English ones. Stores keep what it yields: see `store.columns.PACKING`.
    """
    if text.isascii():
        return tuple(_stem(w) for w in _ASCII_WORD.findall(text.lower()) if w not in STOP_WORDS)
    found: list[str] = []
    for i, run in enumerate(_UNSPACED.split(_letters(text))):
        if i % 2:
            found += [run[j : j + 2] for j in range(len(run) - 1)]
            found += run if len(run) == 1 else _HAN.findall(run)
        else:
            found += [_stem(word) for word in run.split() if word not in STOP_WORDS]
    return tuple(found)


def _letters(text: str) -> str:
    """Case and width folded, and all but letters, digits and their marks made spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in folded)


_stemmer: Final = snowballstemmer.stemmer("english")
_stemmer_lock: Final = threading.Lock()


@lru_cache(maxsize=1 << 17)
def _stem(word: str) -> str:
    if len(word) > 64:  # no word: a key, a hash, a degenerate model's output
        return word
    with _stemmer_lock:  # it works on its own fields
        stem: str = _stemmer.stemWord(word)
    return stem


forgettable(_stem, lambda stem: stem.cache_clear())
