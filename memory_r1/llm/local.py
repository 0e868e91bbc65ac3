"""prompts -> completions by a model that runs here: a Hugging Face id, a folder, an adapter."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import httpx

from memory_r1.errors import ConfigError, MissingExtra, ModelUnavailable
from memory_r1.llm.usage import Usage
from memory_r1.types import Completion, Prompt, Style

if TYPE_CHECKING:
    from memory_r1.llm.guide import Grammar

STYLE_FILE = "memory_r1.json"
"""Next to config.json: how the model's prompts are written, {"style": "compact"}."""
LONGEST_COMPACT_REPLY = 160
"""Tokens; no reply of the compact style needs as many, and a rambling tiny model stays cheap."""
_ADAPTER = "adapter_config.json"
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json")
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tokenizer_config.json",
)
_REMEMBERED = 20_000
_LOADING = threading.Lock()
"""transformers sets process-wide switches while it loads: two models at once lose weights."""
T = TypeVar("T")


class _Loaded(NamedTuple):
    model: Any
    tokenizer: Any


class _Asked(NamedTuple):
    """What a greedy reply depends on, the weights apart."""

    prompt: bytes
    max_tokens: int
    schema: str


class LocalLLM:
    """A causal language model of transformers on this machine, loaded at its first use.

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
        self.path = str(Path(path_or_id).expanduser() if _is_path(path_or_id) else path_or_id)
        self.name = name or (Path(self.path).name if _is_path(self.path) else self.path)
        self._base = _base_of(self.path)
        self.style: Style = style or _style_of(self.path) or _style_of(self._base) or "instruct"
        self.cache_hits = 0
        """Replies at temperature 0 that were known already."""
        self.usage = Usage()
        self._device, self._dtype = device, dtype
        self._seed, self._seeds = seed, random.Random(seed)
        self._held: _Loaded | None = None
        self._known: OrderedDict[_Asked, Completion] = OrderedDict()
        # While it samples, the model's attention is exchanged: one thread at a time.
        self._lock = threading.RLock()

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

    def copy(self, *, dtype: str | None = None) -> LocalLLM:
        """The same model with weights of its own, read anew: one to train, one that stays."""
        return LocalLLM(
            self.path,
            style=self.style,
            device=self._device,
            dtype=dtype or self._dtype,
            name=self.name,
            seed=self._seed,
        )

    def save(self, folder: str | Path) -> None:
        """Write weights, tokenizer and style in the form this class loads."""
        with _no_progress_bars():
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        style = json.dumps({"style": self.style})
        (Path(folder) / STYLE_FILE).write_text(style + "\n", "utf-8")

    def forget_replies(self) -> None:
        """Compute greedy replies anew; to be called when the model's weights were changed."""
        with self._lock:
            self._known.clear()

    @property
    def model(self) -> Any:
        """The transformers model (a peft model where this is an adapter), in evaluation mode."""
        return self._loaded.model

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
            ids = self.tokenizer(_sound(prompt.text), add_special_tokens=special)["input_ids"]
        else:
            ids = self._templated(prompt)
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
    ) -> list[Completion]:
        if not prompts:
            return []
        from memory_r1.llm.sampler import sample

        encoded = [self.encode(prompt) for prompt in prompts]
        self._check_room(max(map(len, encoded)), max_tokens)
        replies = sample(
            self.model,
            encoded,
            max_tokens=max_tokens,
            temperature=temperature,
            end=self.end_ids,
            seed=self._seeds.getrandbits(63),
            guides=self._grammar.guides(schema) if schema and self._grammar else None,
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

    def _templated(self, prompt: Prompt) -> Sequence[int]:
        from jinja2 import TemplateError

        messages = [{"role": role, "content": _sound(text)} for role, text in prompt.messages]

        def render(messages: list[dict[str, str]]) -> Sequence[int]:
            ids: Sequence[int] = self.tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=True,
                return_dict=False,
                enable_thinking=False,  # read by templates of models that would think aloud
            )
            return ids

        try:
            return render(messages)
        except TemplateError:
            # Some templates (Gemma's) know no system role.
            if len(messages) < 2 or messages[0]["role"] != "system":
                raise
            first, second, *rest = (message["content"] for message in messages)
            opening = {"role": messages[1]["role"], "content": f"{first}\n\n{second}"}
            return render([opening, *messages[2:]])

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
            _find_on_hub(self._base)
            tokenizer = self._try("tokenizer", lambda: _load_tokenizer(self.path, self._base))
            model = self._try("weights", lambda: _load_model(self.path, self._base, dtype))
        return _Loaded(model.to(device).eval(), tokenizer)

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


def _is_path(name: str | Path) -> bool:
    return isinstance(name, Path) or name.startswith((".", "/", "~")) or Path(name).is_dir()


def _sound(text: str) -> str:
    """Half a surrogate pair, which no tokenizer takes, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _digest(prompt: Prompt) -> bytes:
    return hashlib.sha256(repr(prompt.messages).encode("utf-8", "replace")).digest()


def _unusable(folder: str, expected: str, seen: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{folder} is not a model: expected {expected}, {seen}. Point to a folder written by "
        "save_pretrained, to the output of a training run, or name a Hugging Face model"
    )


def _base_of(path: str) -> str:
    """Where the full weights are: the path itself, or the base of an adapter folder.

    Raises ModelUnavailable for a folder in which something is missing.
    """
    folder = Path(path)
    if not _is_path(path):
        return path
    if not folder.is_dir():
        raise _unusable(path, "a folder", "there is none")
    seen = "it holds " + (", ".join(sorted(f.name for f in folder.iterdir())[:12]) or "nothing")
    if (folder / _ADAPTER).is_file():
        base = _read_json(folder / _ADAPTER).get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            raise _unusable(path, f"base_model_name_or_path in {_ADAPTER}", "it is not there")
        inside = folder / base
        return _base_of(str(inside) if inside.is_dir() else base)
    if not (folder / "config.json").is_file():
        raise _unusable(path, f"config.json (or {_ADAPTER})", seen)
    if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        raise _unusable(path, "weights, such as model.safetensors", seen)
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        raise _unusable(path, "a tokenizer, such as tokenizer.json", seen)
    return path


def _style_of(path: str) -> Style | None:
    file = Path(path) / STYLE_FILE
    if not _is_path(path) or not file.is_file():
        return None
    match _read_json(file).get("style"):
        case "compact":
            return "compact"
        case "instruct":
            return "instruct"
        case other:
            raise _unusable(
                path, f'style "compact" or "instruct" in {STYLE_FILE}', f"got {other!r}"
            )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unusable(str(file.parent), f"JSON in {file.name}", str(error)) from error
    if not isinstance(data, dict):
        raise _unusable(str(file.parent), f"a JSON object in {file.name}", f"got {data!r:.80}")
    return data


def _find_on_hub(name: str) -> None:
    """Refuse at once an id that is neither in the local cache nor to be had from the hub.

    The hub's own client would retry for a minute or more before it says so.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if _is_path(name) or isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    reason = "the environment forbids downloads (HF_HUB_OFFLINE)"
    if not constants.HF_HUB_OFFLINE:
        url = f"{constants.ENDPOINT}/{name}/resolve/main/config.json"
        try:
            found = httpx.head(url, timeout=20, follow_redirects=True)
        except httpx.HTTPError as error:
            reason = f"{constants.ENDPOINT} can't be reached ({error})"
        else:
            if found.status_code not in (401, 403, 404):  # a private model has a token of its own
                return
            if constants.HF_TOKEN_PATH and os.path.isfile(constants.HF_TOKEN_PATH):
                return
            reason = f"{constants.ENDPOINT} answered {found.status_code} for it"
    raise ModelUnavailable(
        f"no model {name!r}: it is no folder here, it is not in the local cache, and {reason}. "
        "Expected rules, tiny, tiny-base, a folder, openai:MODEL, a URL with #MODEL, or a "
        "Hugging Face id"
    )


def _load_tokenizer(path: str, base: str) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    own = any((Path(path) / file).is_file() for file in _TOKENIZERS)
    source = path if own else base
    # By the model's type, AutoTokenizer would make a Qwen2Tokenizer of our word pieces, which
    # cuts them differently: a file that claims no class beyond its own tables is taken at its word.
    plain = ("PreTrainedTokenizerFast", "TokenizersBackend")
    if get_tokenizer_config(source).get("tokenizer_class") in plain:
        return PreTrainedTokenizerFast.from_pretrained(source)
    return AutoTokenizer.from_pretrained(source)


def _load_model(path: str, base: str, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):  # transformers would draw them at random
        raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
    if base == path:
        return model
    if importlib.util.find_spec("peft") is None:
        raise MissingExtra(f"the adapter {path}", "peft", "train")
    from peft import PeftModel

    return PeftModel.from_pretrained(model, path)
