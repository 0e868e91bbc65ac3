"""a vLLM server's HTTP API, as far as a training needs it (no torch here)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from memory_r1.errors import ModelUnavailable

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_LONGEST_PAUSE = 30.0
_SHORT = 10.0
"""Seconds for what a server that is there answers at once."""


@dataclass(frozen=True)
class Ask:
    """A prompt to be completed `n` times."""

    model: str
    ids: tuple[int, ...]
    n: int
    max_tokens: int
    temperature: float
    end: tuple[int, ...]
    """Tokens that finish a reply."""
    seed: int


@dataclass(frozen=True)
class Reply:
    """One completion as tokens."""

    ids: tuple[int, ...]
    """The end token included."""
    logps: tuple[float, ...]
    """Of each token, under the distribution it was drawn from."""
    stopped: bool
    """False when it was cut off at the limit."""


@dataclass(frozen=True)
class Served:
    """A model in the server's list."""

    root: str | None
    """Where its files are."""
    parent: str | None
    """Of an adapter: its base."""


class VllmServer:
    """A client of one server; threads may share it. Raises ModelUnavailable in the server's words.

    A busy or broken server is asked again with growing pauses.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str = "",
        timeout: float = 600.0,
        retries: int = 3,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """url: of the API, ending in /v1; timeout: seconds for one request; sleep: waits so long.

        key: as it was given to the server (--api-key); it is in no message.
        """
        self.url = url.rstrip("/")
        self._root = self.url.removesuffix("/v1")
        self._retries, self._sleep, self._key = retries, sleep, key
        self._client = httpx.Client(
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=None),
        )

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def alive(self) -> bool:
        """Whether it answers at all."""
        try:
            return self._client.get(f"{self.url}/models", timeout=_SHORT).is_success
        except httpx.HTTPError:
            return False

    def models(self) -> dict[str, Served]:
        """What it serves, adapters included, by name."""
        response = self._send("GET", f"{self.url}/models")
        try:
            return {
                str(model["id"]): Served(model.get("root"), model.get("parent"))
                for model in response.json()["data"]
            }
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._unavailable(f"not a list of models: {_said(response)}") from error

    def complete(self, ask: Ask) -> list[Reply]:
        """`ask.n` sampled completions; token ids in and out."""
        body = {
            "model": ask.model,
            "prompt": list(ask.ids),
            "n": ask.n,
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            # Said aloud, since the server's defaults are those of the model's generation config,
            # and a distribution that is cut is not the one whose log-probs are trained on.
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": list(ask.end),
            "seed": ask.seed,
            "logprobs": 1,
            "return_token_ids": True,
        }
        response = self._send("POST", f"{self.url}/completions", body)
        try:
            return self._read(ask, response.json())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self._unavailable(
                f"no completion with token ids and log-probs ({error!r}): {_said(response)}. "
                "It takes vLLM 0.10.2 or later"
            ) from error

    def _read(self, ask: Ask, data: Any) -> list[Reply]:
        if data["model"] != ask.model:
            raise self._unavailable(f"asked for model {ask.model!r}, it used {data['model']!r}")
        choices = sorted(data["choices"], key=lambda choice: int(choice["index"]))
        if len(choices) != ask.n:
            raise self._unavailable(f"asked for {ask.n} completions, it sent {len(choices)}")
        for choice in choices:
            read = choice.get("prompt_token_ids")
            if read is not None and tuple(read) != ask.ids:
                raise self._unavailable("it read another prompt than it was sent")
        return [self._reply(choice) for choice in choices]

    def _reply(self, choice: Mapping[str, Any]) -> Reply:
        ids = tuple(int(token) for token in choice["token_ids"])
        logps = tuple(float(logp) for logp in choice["logprobs"]["token_logprobs"])
        reason = choice["finish_reason"]
        if not ids or len(ids) != len(logps) or reason not in ("stop", "length"):
            raise self._unavailable(
                f"a completion of {len(ids)} tokens with {len(logps)} log-probs ended by {reason!r}"
            )
        return Reply(ids, logps, reason == "stop")

    def load(self, name: str, folder: Path) -> None:
        """Serve the adapter in a folder under a name of its own, and see that it does."""
        body = {"lora_name": name, "lora_path": str(folder)}
        response = self._post(f"{self.url}/load_lora_adapter", body)
        # Believed is the list, not the reply: a repeated request is told "already loaded".
        served = self.models().get(name)
        if served is None or served.root not in (None, str(folder)):
            raise self._unavailable(
                f"it did not load the adapter {folder}: HTTP {response.status_code}: "
                f"{_said(response)}. Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, "
                "--enable-lora and --max-lora-rank of at least the adapter's rank; it must see "
                "that folder (sampler.folder)"
            )

    def unload(self, name: str) -> None:
        """Forget an adapter. It may be gone already, or the server with it: neither matters."""
        try:
            body = {"lora_name": name}
            self._client.post(f"{self.url}/unload_lora_adapter", json=body, timeout=_SHORT)
        except httpx.HTTPError:
            return

    def reload(self, folder: Path) -> None:
        """Read full weights anew from a folder, and forget prompts read with the old ones.

        Only a server in development mode can (VLLM_SERVER_DEV_MODE=1).
        """
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        for path, sent in (("collective_rpc", body), ("reset_prefix_cache", None)):
            response = self._post(f"{self._root}/{path}", sent)
            if not response.is_success:
                raise self._unavailable(
                    f"it did not read the weights in {folder}: {path} answered HTTP "
                    f"{response.status_code}: {_said(response)}. Start it with "
                    "VLLM_SERVER_DEV_MODE=1, or train an adapter"
                )

    def _post(self, url: str, body: Mapping[str, Any] | None) -> httpx.Response:
        """One attempt, whatever it answers."""
        try:
            return self._client.post(url, json=body)
        except httpx.HTTPError as error:
            raise self._unavailable(f"{type(error).__name__}: {error}") from error

    def _send(self, method: str, url: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """The server's good answer, asked for again while it is busy or can't be reached."""
        for attempt in range(self._retries + 1):
            try:
                response = self._client.request(method, url, json=body)
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.is_success:
                    return response
                problem = f"HTTP {response.status_code}: {_said(response)}"
                if response.status_code not in _RETRIED:
                    raise self._unavailable(problem)
            if attempt < self._retries:
                self._sleep(min(0.5 * 2**attempt, _LONGEST_PAUSE))
        raise self._unavailable(f"{problem} ({self._retries + 1} attempts)")

    def _unavailable(self, problem: str) -> ModelUnavailable:
        if self._key:  # servers echo it
            problem = problem.replace(self._key, "[key]")
        return ModelUnavailable(f"the sampler at {self.url} failed: {problem.rstrip('.')}.")


def _said(response: httpx.Response) -> str:
    return " ".join(response.text[:300].split()) or "(no text)"
