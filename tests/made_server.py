"""A real server on this machine: the application on a free port, in a thread."""

import socket
import threading
import time
from contextlib import contextmanager

import uvicorn

from memory_r1.serve.server.app import build
from memory_r1.serve.server.settings import Serving


@contextmanager
def serving(memory, **settings):
    """The URL of a server of this memory, which is closed at the end; its app in `.app`."""
    app = build(memory, Serving(**settings))
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        try:
            yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", app)
        finally:
            server.should_exit = True
            thread.join(30)


class Served(str):
    """A URL that knows its application."""

    def __new__(cls, url, app):
        made = super().__new__(cls, url)
        made.app = app
        return made
