"""One model's weights in memory, and the adapters on them: manager, answerer, critic, reference."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

from memory_r1.errors import ConfigError


class Weights:
    """A causal LM of transformers and the adapters that lie on it (peft's LoRA layers inside it).

    Whoever computes does so within `using`, one thread at a time: with one adapter, or with none,
    which is then the base model to the last bit.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        """What is computed with; its layers are exchanged in place when an adapter is put on."""
        self.peft: Any = None
        """peft's wrapper around `model`, once it carries an adapter."""
        self.lock = threading.RLock()
        self._now: str | None = None
        self._number = 0
        self._unused: list[str] = []
        self._layers: list[Any] = []

    def put_on(self, wrap: Callable[[Any, str], Any], more: Callable[[Any, str], object]) -> str:
        """Put an adapter on, frozen; returns the name it goes by here.

        wrap:  makes peft's wrapper of a model without adapters: (model, name) -> wrapper
        more:  adds a further adapter to such a wrapper: (wrapper, name)
        """
        with self.lock:
            self._clear()
            self._number += 1
            name = f"a{self._number}"
            rests, kept = self._now, self._learning()
            training = [module for module in self.model.modules() if module.training]
            if self.peft is None:
                self.peft = wrap(self.model, name)
            else:
                more(self.peft, name)
            self._layers = [m for m in self.model.modules() if hasattr(m, "adapter_layer_names")]
            for parameter in self.peft.parameters():
                parameter.requires_grad_(False)
            for parameter in kept:
                parameter.requires_grad_(True)
            self.model.eval()
            for module in training:
                module.training = True
            self._now = name
            self._switch(rests)
            return name

    def take_off(self, name: str) -> None:
        """The adapter is needed no more; it goes when the next one is put on."""
        self._unused.append(name)

    @contextmanager
    def using(self, name: str | None) -> Iterator[Any]:
        """The model with this adapter alone in effect, or (None) the base; afterwards as it was."""
        with self.lock:
            before = self._now
            self._switch(name)
            try:
                yield self.model
            finally:
                self._switch(before)

    def rest_on(self, name: str | None) -> None:
        """What is in effect from now on, outside of `using`."""
        with self.lock:
            self._switch(name)

    def parameters(self, name: str) -> dict[str, Any]:
        """The parameters of an adapter, by their names in peft's files."""
        found = {}
        for key, parameter in self.peft.named_parameters():
            parts = key.split(".")
            if name in parts:
                parts.remove(name)
                found[".".join(parts)] = parameter
        if not found:
            raise ConfigError(f"no adapter {name!r} lies on these weights")
        return found

    def _learning(self) -> list[Any]:
        return [p for layer in self._layers for p in _own(layer) if p.requires_grad]

    def _switch(self, name: str | None) -> None:
        if self.peft is None or name == self._now:
            return
        # peft's switches also decide what is trained, which is ours to say.
        kept = [(p, p.requires_grad) for layer in self._layers for p in _own(layer)]
        for layer in self._layers:
            if name is None:
                layer.enable_adapters(False)
            else:
                layer.set_adapter([name])
                layer.enable_adapters(True)
        for parameter, learns in kept:
            parameter.requires_grad_(learns)
        self._now = name

    def _clear(self) -> None:
        """Delete the adapters whose users are gone; the last one stays, for peft needs one."""
        while self._unused:
            name = self._unused.pop()
            others = [other for other in self.peft.peft_config if other != name]
            if not others:
                continue
            rests = None if name == self._now else self._now
            gone = {id(parameter) for parameter in self.parameters(name).values()}
            kept = [p for p in self._learning() if id(p) not in gone]
            self._switch(None)
            self.peft.set_adapter(others[-1])  # peft's own idea of what is active must exist
            self.peft.delete_adapter(name)
            for parameter in self.peft.parameters():
                parameter.requires_grad_(False)
            for parameter in kept:
                parameter.requires_grad_(True)
            self._switch(rests)


def _own(layer: Any) -> Iterator[Any]:
    """The parameters of all adapters in a layer."""
    for part in layer.adapter_layer_names:
        held = getattr(layer, part)
        if hasattr(held, "parameters"):
            yield from held.parameters()


LOADED: WeakValueDictionary[tuple[str, ...], Weights] = WeakValueDictionary()
"""Weights that are in memory, by what they were read from and how: who asks for them again is
given these. They go when the last model on them goes."""
