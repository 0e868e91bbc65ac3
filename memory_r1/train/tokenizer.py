"""The tiny model's tokenizer: whole words for the world's sentences, syllables for names.

A word is cut greedily into the longest known pieces, so a name is cut the same way in the prompt
and in the reply, and every piece is frequent: that is what lets a small model copy names it has
never seen. Markers (`=>`, `<s0>`, ...) are plain added tokens, not special ones, so that no decoder
drops them.
"""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from memory_r1.data import story, topics
from memory_r1.data.words import ONSETS, VOWELS
from memory_r1.llm.prompting import ARROW, KNOWN, MONTHS, NOTHING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LABELS = 64
"""Labels <s0> .. <s63>: as many memories as a prompt of the compact style may show."""
PAD, UNKNOWN, END = "<pad>", "<unk>", "<end>"

_ASCII = "abcdefghijklmnopqrstuvwxyz"
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def _sentences() -> list[str]:
    """Every sentence pattern a world can contain."""
    patterns: list[str] = [*story.LEADS, *story.TAILS, *story.CHAT, "Hi", "My friend", "no date"]
    for topic in topics.TOPICS:
        for value in vars(topic).values():
            patterns += [value] if isinstance(value, str) else value
    patterns += [*MONTHS, "on", "not mentioned", NOTHING, KNOWN]
    patterns += "extract memory question fact UPDATE DELETE ADD NOOP".split()
    return patterns


def vocabulary() -> list[str]:
    """All tokens but the markers, in the order of their ids."""
    words: dict[str, None] = {}
    for pattern in _sentences():
        for word in re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}", " ", pattern)):
            words.setdefault(word)
    # "dogs" becomes "dog" and "##s": a memory of several dogs then begins like one of a single dog.
    plurals = [word for word in words if word.endswith("s") and word[:-1] in words]
    for word in plurals:
        del words[word]
    pieces = [onset + vowel for onset, vowel in product(ONSETS, VOWELS)]
    pieces += list(_ASCII)
    numbers = [str(n) for n in range(32)] + [str(year) for year in range(2015, 2036)]
    known = [PAD, UNKNOWN, END, *_PUNCTUATION, "'s", *words, *numbers]
    known += pieces + [p.capitalize() for p in pieces] + [f"##{p}" for p in pieces]
    known += [f"##{digit}" for digit in range(10)]
    known += [f"##{letter}" for letter in _ASCII.upper()]
    return list(dict.fromkeys(known))


def build() -> PreTrainedTokenizerFast:
    """The tokenizer; the same on every machine."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as pre
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=UNKNOWN, max_input_chars_per_word=60))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre.Sequence(
        [pre.WhitespaceSplit(), pre.Split(Regex(r"'s\b|[^A-Za-z0-9]"), "isolated")]
    )
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    markers = [ARROW, *(f"<s{i}>" for i in range(LABELS))]
    tokenizer.add_tokens([AddedToken(m, normalized=False, special=False) for m in markers])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def save(folder: Path) -> None:
    """Write the tokenizer in Hugging Face form."""
    build().save_pretrained(folder)
