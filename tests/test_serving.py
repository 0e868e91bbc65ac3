"""`memory-r1 serve` as its own process: it starts, is loaded, stopped, killed, and loses nothing.

What counts is what was acknowledged: every operation a reply told of is in the journal afterwards,
every message a reply told of is kept and gets done.
"""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner

from memory_r1 import Memory
from memory_r1.serve.cli import app
from memory_r1.serve.server.app import build
from memory_r1.serve.server.run import configured
from memory_r1.serve.server.settings import Serving
from memory_r1.types import Owner

PROGRAM = [sys.executable, "-m", "memory_r1.serve.cli"]
USERS = ("ann", "ben", "cy", "dee")


class Started:
    """A server in a process of its own."""

    def __init__(self, store, *options):
        command = [*PROGRAM, "serve", "--store", str(store), "--port", "0", *options]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MEMORY_R1_")}
        self.log = Path(tempfile.mkstemp(suffix=".log")[1])
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log, env=environment)
        while not (found := re.search(r"http://[\d.:]+(?= )", self.said)):
            assert self.process.poll() is None, self.said
            time.sleep(0.02)
        self.url = found[0]

    @property
    def said(self):
        return self.log.read_text()

    def stop(self, how=signal.SIGTERM):
        """End it, and see that it ends well."""
        self.process.send_signal(how)
        self.process.wait(60)
        assert self.process.returncode == (0 if how == signal.SIGTERM else -how), self.said


@contextmanager
def started(store, *options):
    server = Started(store, *options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        server.log.unlink()


class Client(threading.Thread):
    """Sends requests of every kind, and keeps what was acknowledged."""

    numbers = count()

    def __init__(self, url, requests):
        super().__init__()
        self.url, self.requests = url, requests
        self.chance = random.Random(next(self.numbers))
        self.name = f"client {next(self.numbers)}"
        self.entries = []  # (user, entry id), of this client only
        self.undoable = []
        self.operations, self.messages, self.refused = set(), set(), []
        self.cut = False

    def run(self):
        with httpx.Client(base_url=self.url, timeout=60) as api:
            try:
                for number in range(self.requests):
                    self.play(api, number)
            except httpx.TransportError:  # the server is gone, as some tests want it
                self.cut = True

    def play(self, api, number):
        user, chance = self.chance.choice(USERS), self.chance.random()
        if chance < 0.3 or not self.entries:
            self.add(api, user, number, wait=True)
        elif chance < 0.4:
            self.add(api, user, number, wait=False)
        elif chance < 0.6:
            body = {"user_id": user, "query": f"number {number}"}
            self.told(api.post("/v1/search", json=body))
        elif chance < 0.75:
            self.told(api.get("/v1/memories", params={"user_id": user, "limit": 10}))
        else:
            self.change(api, number, chance)

    def add(self, api, user, number, wait):
        body = {"user_id": user, "messages": f"{self.name} saw number {number}", "wait": wait}
        if (reply := self.told(api.post("/v1/memories", json=body))) is None:
            return
        self.messages |= {(user, message) for message in reply["message_ids"]}
        for row in reply["operations"]:
            self.operations.add((user, row["id"]))
            if row["op"] == "ADD":
                self.entries.append((user, row["entry_id"]))

    def change(self, api, number, chance):
        user, entry = self.chance.choice(self.entries)
        at = f"/v1/memories/{entry}"
        if chance < 0.85:
            if (row := self.told(api.get(at))) is not None:
                assert row["user_id"] == user
        elif chance < 0.92:
            self.changed(user, api.patch(at, json={"text": f"{self.name} corrected {number}"}))
        elif chance < 0.96 or not self.undoable:
            self.entries.remove((user, entry))
            self.undoable.append((user, entry))
            self.changed(user, api.delete(at))
        else:
            user, entry = self.undoable.pop()
            reply = self.told(api.post("/v1/undo", json={"user_id": user, "target": entry}))
            self.operations |= {(user, row["id"]) for row in (reply or {}).get("operations", ())}

    def changed(self, user, reply):
        if (row := self.told(reply)) is not None:
            self.operations.add((user, row["id"]))

    def told(self, reply):
        if reply.status_code in (200, 202):
            return reply.json()
        self.refused.append((reply.request.method, reply.url.path, reply.text))
        return None


def load(url, clients, requests):
    """Clients at work."""
    every = [Client(url, requests) for _ in range(clients)]
    for client in every:
        client.start()
    return every


def assert_nothing_is_lost(store, clients):
    """What the clients were told of is in the store, which is sound."""
    with Memory(store, now=lambda: datetime.now(UTC) + timedelta(hours=1)) as memory:
        memory.resume()  # an hour later: what a killed process had in hand is free again
        memory.flush(120)
        for user in USERS:
            journal = memory.journal(user_id=user)
            kept = {row.id for row in journal}
            said = {id for client in clients for of, id in client.operations if of == user}
            assert said <= kept, f"{len(said - kept)} operations of {user} are lost"
            messages = {m.id: m.state for m in memory.store.messages(Owner(user))}
            sent = {id for client in clients for of, id in client.messages if of == user}
            assert sent <= messages.keys(), f"{len(sent - messages.keys())} messages are lost"
            assert {messages[id] for id in sent} <= {"done"}
            acted = {row.turn_id for row in journal}
            assert sent <= acted, "a message is done, and nothing was done with it"
        assert memory.check() == ()


def test_it_says_where_it_is_and_stops_when_told(tmp_path):
    with started(tmp_path / "m.db") as server:
        assert "REST: /v1" in server.said
        assert httpx.get(f"{server.url}/healthz").json()["status"] == "ok"
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        server.stop()
        assert server.said.endswith("open to all on this machine\n")  # and no traceback


def test_ctrl_c_is_a_good_end_of_a_server(tmp_path):
    with started(tmp_path / "m.db") as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0


def test_a_port_there_cannot_be_is_refused(tmp_path):
    told = CliRunner().invoke(app, ["serve", "--port", "99999", "--store", str(tmp_path / "m.db")])
    assert told.exit_code == 2 and "65535" in told.output


@pytest.mark.slow
@pytest.mark.parametrize("where", ["sqlite", "postgres"])
def test_ten_thousand_mixed_requests_lose_nothing(where, tmp_path, request):
    store = tmp_path / "m.db"
    if where == "postgres":
        store = request.getfixturevalue("new_postgres")()
    with started(store) as server:
        clients = load(server.url, 16, 625)
        for client in clients:
            client.join()
        waits = httpx.Client(base_url=server.url)
        deadline = time.monotonic() + 120
        while any(  # also without another request
            waits.get("/v1/messages", params={"user_id": user, "state": state}).json()["messages"]
            for user in USERS
            for state in ("pending", "working")
        ):
            assert time.monotonic() < deadline, "background adds still wait"
            time.sleep(0.2)
        waits.close()
        server.stop()
    assert not any(client.cut for client in clients)
    assert [refusal for client in clients for refusal in client.refused] == []
    assert sum(len(client.operations) for client in clients) > 3000
    assert_nothing_is_lost(store, clients)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["told", "killed"])
def test_a_server_that_ends_under_load_keeps_what_it_acknowledged(how, tmp_path):
    store = tmp_path / "m.db"
    with started(store) as server:
        with httpx.Client(base_url=server.url) as api:
            waiting = Client(server.url, 0)
            for number in range(100):
                waiting.add(api, "ann", number, wait=False)
        clients = load(server.url, 6, 10_000)
        time.sleep(1)
        server.stop(how)
        for client in clients:
            client.join()
    assert all(client.cut for client in clients)
    with started(store) as server:  # goes on with what waits, by itself
        httpx.get(f"{server.url}/readyz")
        server.stop()
    assert_nothing_is_lost(store, [*clients, waiting])


@pytest.mark.slow
def test_what_waited_is_done_after_a_restart_without_another_word(tmp_path):
    store = tmp_path / "m.db"
    with started(store) as server, httpx.Client(base_url=server.url) as api:
        client = Client(server.url, 0)
        for number in range(50):
            client.add(api, "ann", number, wait=False)
        server.stop()
    with started(store) as server, httpx.Client(base_url=server.url) as api:
        deadline = time.monotonic() + 30
        asked = {"user_id": "ann", "state": "pending"}
        while api.get("/v1/messages", params=asked).json()["messages"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server.stop()
    assert_nothing_is_lost(store, [client])


def cli(*arguments, code=0):
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return done


def test_keys_are_made_and_revoked_while_the_server_runs(tmp_path):
    store = str(tmp_path / "m.db")
    with started(store) as server, httpx.Client(base_url=server.url) as api:
        asked = {"params": {"user_id": "ann"}}
        assert api.get("/v1/memories", **asked).status_code == 200
        key = cli("keys", "create", "mine", "--user", "ann", "--store", store).stdout.strip()
        assert api.get("/v1/memories", **asked).status_code == 401
        shown = {"Authorization": f"Bearer {key}"}
        assert api.get("/v1/memories", headers=shown).status_code == 200
        (told,) = json.loads(cli("keys", "list", "--store", store, "--json").stdout)
        assert told["name"] == "mine" and told["user_id"] == "ann" and key not in str(told)
        cli("keys", "create", "another", "--store", store)
        cli("keys", "revoke", told["id"], "--store", store)
        assert api.get("/v1/memories", headers=shown).status_code == 401


def test_other_machines_get_in_with_a_key_only(tmp_path):
    refused = cli("serve", "--store", str(tmp_path / "m.db"), "--host", "0.0.0.0", code=1)
    assert "memory-r1 keys create" in refused.stderr and "Traceback" not in refused.stderr


def test_a_port_that_is_taken_is_said(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = cli("serve", "--store", str(tmp_path / "m.db"), "--port", port, code=1)
    assert f"can't listen on 127.0.0.1:{port}" in refused.stderr
    assert "Traceback" not in refused.stderr


# Clients that take their time, and clients that never stop


@pytest.fixture
def patient_for_a_moment(monkeypatch):
    """The address of a server as `memory-r1 serve` sets it up, with little patience."""
    monkeypatch.setattr("memory_r1.serve.server.connection.HEAD_SECONDS", 0.4)
    settings = Serving()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(configured(build(Memory("ram:"), settings), settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join(30)


HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"", b""),
        (b"G", b""),
        (HEAD, b"X: y\r\n"),
        (HEAD + b"\r\n", b"\r\n"),
        (b"POST /v1/none HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n", b"x"),
    ],
    ids=["nothing", "one byte", "a head by and by", "empty lines", "a body nobody reads"],
)
def test_a_client_that_asks_nothing_is_let_go_of(patient_for_a_moment, first, then):
    began = time.monotonic()
    with socket.create_connection(patient_for_a_moment, timeout=0.1) as line:
        with suppress(ConnectionError):
            line.sendall(first)
            while time.monotonic() - began < 15:
                line.sendall(then)
                with suppress(TimeoutError):
                    if not line.recv(4096):
                        break
    assert time.monotonic() - began < 15


def test_a_head_without_end_is_cut_off(patient_for_a_moment):
    sent = 0
    with socket.create_connection(patient_for_a_moment, timeout=10) as line:
        line.sendall(HEAD)
        with suppress(ConnectionError):
            for _ in range(2000):
                line.sendall(b"X: " + b"y" * 1000 + b"\r\n")
                sent += 1000
    assert sent < 1_900_000


def test_requests_one_after_another_and_all_at_once_are_answered(patient_for_a_moment):
    with socket.create_connection(patient_for_a_moment, timeout=10) as line:
        for _ in range(3):
            line.sendall(HEAD + b"\r\n")
            assert line.recv(4096).startswith(b"HTTP/1.1 200")
            time.sleep(0.2)
        line.sendall(2 * (HEAD + b"\r\n") + HEAD + b"Connection: close\r\n\r\n")
        with line.makefile("rb") as replies:
            assert replies.read().count(b"HTTP/1.1 200") == 3


def test_a_server_speaks_no_websockets(patient_for_a_moment):
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    with socket.create_connection(patient_for_a_moment, timeout=10) as line:
        line.sendall(HEAD + upgrade + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        assert line.recv(4096).startswith(b"HTTP/1.1 200")
