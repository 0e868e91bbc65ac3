"""prompts -> completions by a model that runs here: a Hugging Face id, a folder, an adapter."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import os
import random
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import finalize

from memory_r1.caches import forgettable
from memory_r1.errors import ConfigError, MissingExtra, ModelUnavailable
from memory_r1.llm.folders import (
    STYLE_FILE,
    TOKENIZER_FILES,
    base_of,
    check_name,
    find_on_hub,
    is_path,
    style_of,
    version_of,
)
from memory_r1.llm.shared import LOADED, Weights
from memory_r1.llm.template import sound, templated
from memory_r1.llm.usage import Usage
from memory_r1.types import Completion, Prompt, Style

if TYPE_CHECKING:
    from memory_r1.llm.guide import Grammar

LONGEST_COMPACT_REPLY = 160
"""Tokens; no reply of the compact style needs as many, and a rambling tiny model stays cheap."""
_REMEMBERED = 20_000
_LOADING = threading.Lock()
"""transformers sets process-wide switches while it loads: two models at once lose weights."""
T = TypeVar("T")


class _Loaded(NamedTuple):
    weights: Weights
    adapter: str | None  # by its name on these weights
    tokenizer: Any


class _Asked(NamedTuple):
    """What a greedy reply depends on, the weights apart."""

    prompt: bytes
    max_tokens: int
    schema: str


class LocalLLM:
    """A causal language model of transformers on this machine, loaded at its first use.

    Models of one base, adapters among them, share its weights: they are in memory once.

    path_or_id:  a folder (full model or peft adapter) or a Hugging Face id
    style:       how its prompts are written; None: what its folder's `memory_r1.json` says, else
                 "instruct"
    device:      None: a GPU where there is one, else the CPU
    dtype:       of the weights, e.g. "bfloat16"; None: float32 on a CPU, else as they were saved
    name:        what it is called in journals and reports; None: the folder's name or the id
    seed:        of the draws at temperatures above 0; every call goes on where the last ended

    Raises MissingExtra without torch, and ModelUnavailable with the reason for a model that can't
    be loaded: a folder is looked at when this is made, the rest at the first use.
    """

    def __init__(
        self,
        path_or_id: str | Path,
        *,
        style: Style | None = None,
        device: str | None = None,
        dtype: str | None = None,
        name: str | None = None,
        seed: int = 0,
    ) -> None:
        for package in ("torch", "transformers", "llguidance"):
            if importlib.util.find_spec(package) is None:
                raise MissingExtra(f"running the model {path_or_id} here", package, "train")
        self.path = str(Path(path_or_id).expanduser() if is_path(path_or_id) else path_or_id)
        self.name = name or (Path(self.path).name if is_path(self.path) else self.path)
        self._base = base_of(self.path)
        check_name(self._base)
        self.style: Style = style or style_of(self.path) or style_of(self._base) or "instruct"
        self.cache_hits = 0
        """Replies at temperature 0 that were known already."""
        self.usage = Usage()
        self._device, self._dtype = device, dtype
        self._seed, self._seeds = seed, random.Random(seed)
        self._own = False
        self._held: _Loaded | None = None
        self.identity = ""
        """What its replies may be kept under; "" where the weights may change."""
        self._known: OrderedDict[_Asked, Completion] = OrderedDict()
        self._lock = threading.RLock()
        forgettable(self, LocalLLM.forget_replies)

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order; equal greedy ones are computed once per instance.

        An instruct model can't leave the schema, where `obeys_schemas`; compact replies are no
        JSON. Raises ModelUnavailable when a prompt and its reply don't fit the model's context;
        nothing is cut.
        """
        if self.style == "compact":
            max_tokens, schema = min(max_tokens, LONGEST_COMPACT_REPLY), None
        with self._lock:
            if temperature > 0:
                return self._write(prompts, max_tokens, temperature, schema)
            form = json.dumps(schema, sort_keys=True)
            keys = [_Asked(_digest(prompt), max_tokens, form) for prompt in prompts]
            fresh = {key: prompt for key, prompt in zip(keys, prompts, strict=True)}
            known = {key: self._known[key] for key in fresh if key in self._known}
            new = [key for key in fresh if key not in known]
            replies = self._write([fresh[key] for key in new], max_tokens, 0.0, schema)
            known |= zip(new, replies, strict=True)
            self.cache_hits += len(prompts) - len(new)
            self._remember(known)
        return [known[key] for key in keys]

    def stream(
        self, prompt: Prompt, tell: Callable[[str], None], *, max_tokens: int = 512
    ) -> Completion:
        """The completion, at temperature 0; `tell` is given its text piece by piece as it comes."""
        if self.style == "compact":
            max_tokens = min(max_tokens, LONGEST_COMPACT_REPLY)
        told = 0

        def go_on(text: str) -> None:
            nonlocal told
            if len(text) > told:
                tell(text[told:])
                told = len(text)

        def watch(ids: Sequence[int]) -> None:
            text = self.decode(ids)
            # A character of several tokens is a question mark until the last of them is there.
            if not text.endswith("\ufffd"):
                go_on(text)

        with self._lock:
            (completion,) = self._write([prompt], max_tokens, 0.0, None, watch)
        go_on(completion.text)
        return completion

    def copy(self, *, dtype: str | None = None) -> LocalLLM:
        """The same model with weights of its own, read anew: one to train, one that stays."""
        twin = LocalLLM(
            self.path,
            style=self.style,
            device=self._device,
            dtype=dtype or self._dtype,
            name=self.name,
            seed=self._seed,
        )
        twin._own = True
        return twin

    def on(self, adapter: str) -> LocalLLM:
        """The same base with another adapter, by the name it goes by on its weights."""
        twin = self.copy()
        twin._own = self._own
        twin._held = _Loaded(self.weights, adapter, self.tokenizer)
        finalize(twin, self.weights.take_off, adapter)
        return twin

    def read_as(self, dtype: str | None) -> None:
        """Read the weights in this precision; ConfigError once they are in memory."""
        if self._held is not None and dtype != self._dtype:
            raise ConfigError(f"model {self.name!r} is in memory already; say its dtype before")
        self._dtype = dtype

    @contextmanager
    def active(self) -> Iterator[Any]:
        """The model with this one's adapter, and no other on its weights, in effect."""
        weights, adapter, _ = self._loaded
        with weights.using(adapter) as model:
            yield model

    def save(self, folder: str | Path) -> None:
        """Write weights, or the adapter alone, tokenizer and style in the form this class loads."""
        weights, adapter, tokenizer = self._loaded
        if adapter is not None:
            _save_adapter(weights, adapter, folder, self._base)
        elif weights.peft is not None:  # its layers have others' adapters inside
            self.copy().save(folder)
            return
        else:
            with _no_progress_bars():
                weights.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        style = json.dumps({"style": self.style})
        (Path(folder) / STYLE_FILE).write_text(style + "\n", "utf-8")

    def forget_replies(self) -> None:
        """Compute greedy replies anew: when the weights were changed, or a user is forgotten."""
        with self._lock:
            self._known.clear()

    @property
    def model(self) -> Any:
        """The transformers model, in evaluation mode; others may share it.

        To be computed with inside `active`, and to be changed in a `copy` only.
        """
        return self._loaded.weights.model

    @property
    def weights(self) -> Weights:
        """The weights in memory, and what lies on them."""
        return self._loaded.weights

    @property
    def base(self) -> str:
        """Where the full weights are: its own path, unless it is an adapter."""
        return self._base

    @property
    def adapter(self) -> str | None:
        """The name of its adapter on these weights; None: it is the base model."""
        return self._loaded.adapter

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self._loaded.tokenizer

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that finish a reply."""
        generation = getattr(self.model, "generation_config", None)
        ids = getattr(generation, "eos_token_id", None)
        ids = [] if ids is None else [ids] if isinstance(ids, int) else ids
        return frozenset({*ids, self.tokenizer.eos_token_id} - {None})

    @property
    def pad_id(self) -> int:
        """A token to fill up with; it is never looked at."""
        pad = self.tokenizer.pad_token_id
        return int(min(self.end_ids, default=0) if pad is None else pad)

    @cached_property
    def context(self) -> int | None:
        """Tokens of prompt and reply the model was made for, where it says so."""
        config = self.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None)

    def encode(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt.

        Compact: its text as it is, no special tokens. Instruct: the tokenizer's chat template
        with the opening of the reply; without a template, the contents one after the other.
        """
        if self.style == "compact" or not getattr(self.tokenizer, "chat_template", None):
            special = self.style != "compact"
            ids = self.tokenizer(sound(prompt.text), add_special_tokens=special)["input_ids"]
        else:
            ids = templated(self.tokenizer, prompt)
        return [int(token) for token in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a reply, up to its first end token."""
        stop = next((i for i, token in enumerate(ids) if token in self.end_ids), len(ids))
        return str(self.tokenizer.decode(list(ids[:stop]), skip_special_tokens=True))

    @property
    def obeys_schemas(self) -> bool:
        """Whether replies are held to their JSON schema: it takes a tokenizer of a known kind."""
        return self._grammar is not None

    @cached_property
    def _grammar(self) -> Grammar | None:
        if self.style == "compact":
            return None
        from memory_r1.llm.guide import grammar_of

        vocabulary = self.model.config.get_text_config().vocab_size
        return grammar_of(self.tokenizer, vocabulary, self.end_ids)

    def _write(
        self,
        prompts: Sequence[Prompt],
        max_tokens: int,
        temperature: float,
        schema: Mapping[str, Any] | None,
        watch: Callable[[Sequence[int]], None] | None = None,
    ) -> list[Completion]:
        if not prompts:
            return []
        from memory_r1.llm.sampler import sample

        encoded = [self.encode(prompt) for prompt in prompts]
        self._check_room(max(map(len, encoded)), max_tokens)
        guides = self._grammar.guides(schema) if schema and self._grammar else None
        with self.active() as model:
            replies = sample(
                model,
                encoded,
                max_tokens=max_tokens,
                temperature=temperature,
                end=self.end_ids,
                seed=self._seeds.getrandbits(63),
                guides=guides,
                watch=watch,
            )
        completions = [
            Completion(self.decode(reply.ids), len(ids), len(reply.ids), reply.finished)
            for ids, (reply,) in zip(encoded, replies, strict=True)
        ]
        for completion in completions:
            self.usage.count(completion)
        return completions

    def _check_room(self, longest: int, max_tokens: int) -> None:
        """ModelUnavailable, not ConfigError: a turn that doesn't fit is kept and deferred, and
        the other turns go on."""
        if self.context is not None and longest + max_tokens > self.context:
            raise ModelUnavailable(
                f"a prompt of {longest} tokens and a reply of up to {max_tokens} don't fit the "
                f"{self.context} tokens of model {self.name!r}. Show it fewer memories (settings "
                "k, per_speaker, related), or use a model with a longer context"
            )

    def _remember(self, replies: Mapping[_Asked, Completion]) -> None:
        for key, reply in replies.items():
            self._known[key] = reply
            self._known.move_to_end(key)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    @property
    def _loaded(self) -> _Loaded:
        with self._lock:
            self._held = self._held or self._load()
            return self._held

    def _load(self) -> _Loaded:
        import torch

        use_threads(None)
        device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = self._dtype or ("float32" if device == "cpu" else "auto")
        with _LOADING, _no_progress_bars():
            find_on_hub(self._base)
            tokenizer = self._try("tokenizer", lambda: _load_tokenizer(self.path, self._base))
            weights, adapter = self._try("weights", lambda: self._read(device, dtype))
        return _Loaded(weights, adapter, tokenizer)

    def _read(self, device: str, dtype: str) -> tuple[Weights, str | None]:
        """The base, which may be in memory, and the adapter that was put on it."""
        key = (version_of(self._base), device, dtype)
        alone = self._own or (self.path != self._base and not _stackable(self.path))
        weights = None if alone else LOADED.get(key)
        if weights is None:
            weights = Weights(_load_model(self._base, dtype).to(device).eval())
            if not alone:
                LOADED[key] = weights
        if self.path == self._base:
            return weights, None
        adapter = _put_on(weights, self.path)
        finalize(self, weights.take_off, adapter)
        return weights, adapter

    def _try(self, part: str, load: Callable[[], T]) -> T:
        from safetensors import SafetensorError

        try:
            return load()
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:400]
            raise ModelUnavailable(
                f"the {part} of model {self.path!r} can't be loaded: {reason}. Expected a folder "
                "written by save_pretrained (config.json, weights, tokenizer), or the id of a "
                "Hugging Face model that is in the local cache or can be downloaded"
            ) from error


def use_threads(number: int | None = None) -> int:
    """Set how many threads torch computes with; returns the number in use.

    None: what the environment's MEMORY_R1_THREADS says, else what torch chose. On a machine with
    other work to do, one thread is often faster than all. Raises ConfigError below 1.
    """
    import torch

    given = os.environ.get("MEMORY_R1_THREADS", "") if number is None else str(number)
    if given:
        if not re.fullmatch(r"[1-9]\d{0,3}", given):
            raise ConfigError(f"threads (MEMORY_R1_THREADS) is {given!r}; expected 1 or more")
        torch.set_num_threads(int(given))
    return torch.get_num_threads()


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _digest(prompt: Prompt) -> bytes:
    return hashlib.sha256(repr(prompt.messages).encode("utf-8", "replace")).digest()


def _load_tokenizer(path: str, base: str) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    own = any((Path(path) / file).is_file() for file in TOKENIZER_FILES)
    source = path if own else base
    # By the model's type, AutoTokenizer would make a Qwen2Tokenizer of our word pieces, which
    # cuts them differently: a file that claims no class beyond its own tables is taken at its word.
    plain = ("PreTrainedTokenizerFast", "TokenizersBackend")
    if get_tokenizer_config(source).get("tokenizer_class") in plain:
        return PreTrainedTokenizerFast.from_pretrained(source)
    return AutoTokenizer.from_pretrained(source)


def _load_model(base: str, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):  # transformers would draw them at random
        raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
    return model


def _stackable(path: str) -> bool:
    """Whether an adapter leaves its base as it was for others: LoRA without biases or copies."""
    config = _adapter_config(path)
    return config.bias == "none" and not config.modules_to_save


def _adapter_config(path: str) -> Any:
    if importlib.util.find_spec("peft") is None:
        raise MissingExtra(f"the adapter {path}", "peft", "train")
    from peft import LoraConfig, PeftConfig

    config = PeftConfig.from_pretrained(path)
    if not isinstance(config, LoraConfig):
        raise ValueError(f"it is an adapter of kind {config.peft_type}; expected LoRA")
    return config


def _put_on(weights: Weights, path: str) -> str:
    _adapter_config(path)
    from peft import PeftModel

    with quiet():
        return weights.put_on(
            lambda model, name: PeftModel.from_pretrained(model, path, adapter_name=name),
            lambda peft, name: peft.load_adapter(path, adapter_name=name),
        )


def _save_adapter(weights: Weights, name: str, folder: str | Path, base: str) -> None:
    """In peft's own format, as its file of one adapter lies on its own."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    Path(folder).mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(weights.peft, adapter_name=name, save_embedding_layers=False)
    whole = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    save_file(whole, Path(folder) / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.copy(weights.peft.peft_config[name])
    config.base_model_name_or_path = str(Path(base).resolve()) if is_path(base) else base
    config.inference_mode = True
    config.save_pretrained(folder)


@contextmanager
def quiet() -> Iterator[None]:
    """peft asks transformers for what it will call otherwise one day, and transformers says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
