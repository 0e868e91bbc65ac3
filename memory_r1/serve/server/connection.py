"""a connection's bytes -> requests whose heads come in time, and are of a sane size."""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS: Final = 20.0
"""That a client may take to say what it wants, from the first byte or from connecting on."""
HEAD_BYTES: Final = 65_536
"""Of a request's line and headers, give or take what one read brings."""


class Connection(HttpToolsProtocol):
    """HTTP as uvicorn speaks it, which alone waits for a head without end and takes any size.

    So a few hundred clients that say a byte now and then, or one that never comes to the end of
    its headers, would use up the connections or the memory without ever showing a key.
    """

    _patience: asyncio.TimerHandle | None = None
    """Runs while no request is in hand, and until the head of the next is whole."""
    _head: int | None = None
    """Bytes of the head that is coming; None between heads."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; too many of a head end the connection."""
        if self._head is not None:
            self._head += len(data)
            if self._head > HEAD_BYTES:
                self.send_400_response("The head of this request is too long.")
                return
        # What comes after a reply and begins no request, also the rest of a body that nobody
        # read, stops uvicorn's own timer.
        if not self._busy:
            self._wait()
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Count and time a head."""
        super().on_message_begin()
        self._head = 0
        self._wait()

    def on_headers_complete(self) -> None:
        """Let the application work as long as it takes."""
        self._head = None
        self._stop_waiting()
        super().on_headers_complete()

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        if self._busy:  # a request was sent before the reply to the last: reading stands still
            self._wait()
        else:
            self.transport.close()
