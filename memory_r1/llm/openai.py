"""Models behind an OpenAI-compatible URL: vLLM, Ollama, llama.cpp, hosted services."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx

from memory_r1.config import without_login
from memory_r1.errors import ModelUnavailable, ModelUnreachable
from memory_r1.llm.rate import RateLimit, Sent
from memory_r1.llm.usage import Usage
from memory_r1.types import Completion, Prompt, Style

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_REFUSED = frozenset({400, 404, 415, 422, 501})
_LONGEST_WAIT = 60.0
_PARTS = ("prompt", "completion")
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]+)?")


class OpenAILLM:
    """A client of `POST {base_url}/chat/completions`; threads may share it.

    Prompts of one call are sent at the same time, at most `concurrency` of them. A busy or broken
    server is asked again with growing pauses; then ModelUnreachable says what happened.
    """

    concurrent = True
    """It gains from being asked by several threads at once."""

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        api_key: str = "",
        style: Style = "instruct",
        timeout: float = 120.0,
        retries: int = 4,
        concurrency: int = 8,
        limit: RateLimit | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """timeout: seconds for one reply; retries: further attempts; sleep: waits that long.

        limit: of requests and tokens per minute, repeated attempts included.
        """
        self.name = model
        self.style = style
        shown, login = without_login(base_url)
        self.base_url = shown.rstrip("/")
        self.identity = f"{self.base_url}#{model}"
        """What its replies may be kept under."""
        self.usage = Usage()
        self.refused: frozenset[str] = frozenset()
        """What this server has turned out not to take: of response_format (a JSON schema),
        temperature, max_tokens and stream_options (the count of a stream's tokens)."""
        self._retries = retries
        self._limit = limit
        self._sleep = sleep
        self._key = api_key
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="memory-r1-llm")
        self._client = httpx.Client(
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            auth=login,
            limits=httpx.Limits(max_connections=concurrency),
        )

    def __repr__(self) -> str:
        """Model and URL, never the key."""
        return f"OpenAILLM({self.name!r}, base_url={self.base_url!r})"

    def close(self) -> None:
        """Close connections and threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order; ModelUnavailable when one can't be had."""

        def one(prompt: Prompt) -> Completion:
            return self._complete(prompt, max_tokens, temperature, schema)

        if len(prompts) == 1:
            return [one(prompts[0])]
        return list(self._pool.map(one, prompts))

    def stream(
        self, prompt: Prompt, tell: Callable[[str], None], *, max_tokens: int = 512
    ) -> Completion:
        """The completion, at temperature 0; `tell` is given its text piece by piece as it comes."""
        return self._complete(prompt, max_tokens, 0.0, None, tell)

    def _complete(
        self,
        prompt: Prompt,
        max_tokens: int,
        temperature: float,
        schema: Mapping[str, Any] | None,
        tell: Callable[[str], None] | None = None,
    ) -> Completion:
        """Ask with everything; what the server refuses is left out, and remembered if that helps.

        Not every server knows JSON schemas, and OpenAI's reasoning models take neither a
        temperature nor `max_tokens`.
        """
        began = time.perf_counter()
        offered: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
        if schema is not None:
            form = {"name": "reply", "strict": True, "schema": dict(schema)}
            offered["response_format"] = {"type": "json_schema", "json_schema": form}
        if tell is not None:
            offered["stream_options"] = {"include_usage": True}
        messages = [
            # Half a surrogate pair can't be sent.
            {"role": role, "content": content.encode("utf-8", "replace").decode()}
            for role, content in prompt.messages
        ]
        refused = self.refused
        while True:
            body: dict[str, Any] = {"model": self.name, "messages": messages}
            if tell is not None:
                body["stream"] = True
            body |= {name: value for name, value in offered.items() if name not in refused}
            if "max_tokens" in refused:
                body["max_completion_tokens"] = max_tokens
            response, sent = self._post(body, expected=len(prompt.text) // 4 + max_tokens)
            blamed = _blamed(response) & offered.keys() - refused
            if not blamed:
                break
            refused |= blamed
        if response.is_success:
            self.refused |= refused
        if tell is not None and _is_stream(response):
            completion = self._hear(response, tell)
        else:
            completion = self._read(response)
            if tell is not None:
                tell(completion.text)
        completion = replace(completion, seconds=time.perf_counter() - began)
        self.usage.count(completion)
        if sent is not None and completion.prompt_tokens:
            sent.tokens = completion.prompt_tokens + completion.completion_tokens
        return completion

    def models(self) -> list[str]:
        """The names of the models that the server says it serves; [] when it has no list.

        One attempt; ModelUnavailable when the server can't be reached or doesn't know the key.
        """
        try:
            response = self._client.get(f"{self.base_url}/models")
            if response.status_code in _REFUSED:
                return []
            response.raise_for_status()
            return [str(model["id"]) for model in response.json()["data"]]
        except httpx.HTTPStatusError as error:
            problem = f"HTTP {error.response.status_code}: {_said(error.response)}"
            raise self._unavailable(problem) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unavailable(f"{type(error).__name__}: {error}") from error
        except (ValueError, LookupError, TypeError, RecursionError):
            return []

    def _post(self, body: Mapping[str, Any], expected: int) -> tuple[httpx.Response, Sent | None]:
        """The server's response, asked for again while it is busy or cannot be reached.

        expected: about how many tokens prompt and reply will have.
        """
        for attempt in range(self._retries + 1):
            wait = min(0.5 * 2**attempt, _LONGEST_WAIT)
            sent = self._limit.enter(expected) if self._limit else None
            try:
                response = self._client.send(
                    self._client.build_request(
                        "POST", f"{self.base_url}/chat/completions", json=body
                    ),
                    stream="stream" in body,
                )
                if not _is_stream(response):
                    response.read()
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise self._unavailable(f"the URL is not valid: {error}") from error
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.status_code not in _RETRIED:
                    return response, sent
                problem = f"HTTP {response.status_code}: {_said(response)}"
                wait = _retry_after(response, wait)
            if attempt < self._retries:
                self._sleep(wait)
        problem = f"{problem} ({self._retries + 1} attempts)"
        raise self._unavailable(problem, ModelUnreachable)

    def _read(self, response: httpx.Response) -> Completion:
        if not response.is_success:
            raise self._unavailable(f"HTTP {response.status_code}: {_said(response)}")
        try:
            data = response.json()
            choice = data["choices"][0]
            text = choice["message"]["content"] or ""
            read, written = _tokens(data.get("usage") or {})
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise self._unavailable(f"not a chat completion: {_said(response)}") from error
        if not isinstance(text, str):
            raise self._unavailable(f"the reply's content is not text: {_said(response)}")
        return Completion(text, read, written, finished=choice.get("finish_reason") != "length")

    def _hear(self, response: httpx.Response, tell: Callable[[str], None]) -> Completion:
        """The same from events. What has been told can't be taken back, so nothing is repeated."""
        parts: list[str] = []
        finish: str | None = None
        usage: Mapping[str, Any] = {}
        try:
            for line in response.iter_lines():
                if not line.startswith("data:") or line.endswith("[DONE]"):
                    continue
                event = json.loads(line.removeprefix("data:"))
                if error := event.get("error"):
                    raise self._unavailable(" ".join(str(error)[:300].split()))
                usage = event.get("usage") or usage
                for choice in event.get("choices", ())[:1]:
                    finish = choice.get("finish_reason") or finish
                    if text := (choice.get("delta") or {}).get("content"):
                        parts.append(text)
                        tell(text)
            read, written = _tokens(usage)
        except httpx.HTTPError as cut:
            raise self._unavailable(f"the reply broke off ({type(cut).__name__})") from cut
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as fault:
            raise self._unavailable(f"not a streamed chat completion: {line[:200]!r}") from fault
        finally:
            response.close()
        if finish is None:
            raise self._unavailable("the reply broke off")
        return Completion("".join(parts), read, written, finished=finish != "length")

    def _unavailable(
        self, problem: str, kind: type[ModelUnavailable] = ModelUnavailable
    ) -> ModelUnavailable:
        if self._key:  # servers echo it
            problem = problem.replace(self._key, "[key]")
        return kind(
            f"model {self.name!r} at {self.base_url} did not reply: {problem}. "
            "Check that the server runs, that it serves this model, and OPENAI_BASE_URL and "
            "OPENAI_API_KEY."
        )


def _is_stream(response: httpx.Response) -> bool:
    kind = response.headers.get("content-type", "")
    return response.is_success and kind.startswith("text/event-stream")


def _tokens(usage: Mapping[str, Any]) -> tuple[int, int]:
    read, written = (int(usage.get(f"{part}_tokens") or 0) for part in _PARTS)
    return read, written


def _blamed(response: httpx.Response) -> set[str]:
    """The optional parts of a request that a refusal may be about."""
    if response.status_code not in _REFUSED:
        return set()
    if "max_completion_tokens" in response.text:
        return {"max_tokens"}
    for name in ("temperature", "stream_options"):
        if name in response.text:
            return {name}
    return {"response_format"}


def _said(response: httpx.Response) -> str:
    """The start of the server's own words."""
    return " ".join(response.text[:300].split()) or "(no text)"


def _retry_after(response: httpx.Response, wait: float) -> float:
    """Seconds to wait: the server's wish where it gives one in seconds, else `wait`."""
    wish = response.headers.get("retry-after", "")
    return min(float(wish), _LONGEST_WAIT) if _SECONDS.fullmatch(wish) else wait
