"""No connection but to configured endpoints: every attempt to make one is written down."""

import json
import socket

import pytest
from model_server import Server, completion

from memory_r1 import Memory
from memory_r1.doctor import examine


@pytest.fixture
def attempts(monkeypatch):
    """Every address that anything tried to reach or to look up; only this machine's are reached."""
    tried = []
    connect, connect_ex, look_up = (
        socket.socket.connect,
        socket.socket.connect_ex,
        socket.getaddrinfo,
    )

    def watched(call):
        def watch(self, address):
            if self.family != socket.AF_UNIX:
                tried.append(address[:2])
                if address[0] not in ("127.0.0.1", "::1"):
                    raise OSError(f"the network is closed: {address}")
            return call(self, address)

        return watch

    def watched_name(host, *arguments, **options):
        if host not in ("127.0.0.1", "::1"):
            tried.append((host, 0))
            raise OSError(f"the network is closed: {host}")
        return look_up(host, *arguments, **options)

    def watched_datagram(self, data, *arguments):
        tried.append(arguments[-1][:2])
        raise OSError("the network is closed")

    monkeypatch.setattr(socket.socket, "connect", watched(connect))
    monkeypatch.setattr(socket.socket, "connect_ex", watched(connect_ex))
    monkeypatch.setattr(socket.socket, "sendto", watched_datagram)
    monkeypatch.setattr(socket, "getaddrinfo", watched_name)
    return tried


@pytest.fixture
def server():
    server = Server()
    server.respond = reply
    yield server
    server.close()


def reply(body):
    """Each role's reply, told apart by the schema that is sent along."""
    asked = json.dumps(body.get("response_format", ""))
    if '"facts"' in asked:
        said = '{"facts": [{"text": "Ann has a dog, Rex", "quote": "a dog named Rex"}]}'
    elif '"operations"' in asked:
        said = '{"operations": [{"op": "ADD", "text": "Ann has a dog, Rex"}]}'
    elif '"ready"' in asked:
        said = '{"ready": true}'
    else:
        said = "Memories: 0\n**Answer:** Rex"
    return 200, completion(said)


def live(path, **options):
    """A life with a memory: remember, find, ask, look back, take back, forget."""
    with Memory(path, **options) as memory:
        added = memory.add("I adopted a dog named Rex.", user_id="ann", speaker="Ann")
        assert added.complete and added.rows
        memory.add("I have a cat.", user_id="ann", wait=False)
        assert memory.search("dog", user_id="ann")
        assert memory.ask("What is the dog called?", user_id="ann").text
        entry, *_ = memory.list(user_id="ann")
        assert memory.history(entry.id, user_id="ann")
        memory.stats()
        memory.audit(user_id="ann")
        memory.retry("ann")
        memory.undo(memory.journal(user_id="ann")[-1].id, user_id="ann")
        assert memory.forget("ann")


def test_the_watch_sees_what_it_should(attempts):
    for host in ("127.0.0.1", "192.0.2.1", "example.org"):
        with pytest.raises(OSError):
            socket.create_connection((host, 1), timeout=1)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        pytest.raises(OSError),
    ):
        datagrams.sendto(b"x", ("192.0.2.1", 53))
    assert {host for host, _ in attempts} == {"127.0.0.1", "192.0.2.1", "example.org"}
    assert len(attempts) >= 4


def test_a_memory_with_rules_reaches_for_nothing(attempts, tmp_path):
    live(tmp_path / "memory.db")
    assert all(check.status == "ok" for check in examine(str(tmp_path / "memory.db")))
    assert attempts == []


def test_the_bundled_model_reaches_for_nothing(attempts, tmp_path):
    pytest.importorskip("torch", reason="local models need the extra [train]")
    live(tmp_path / "memory.db", llm="tiny")
    assert attempts == []


def test_a_service_is_reached_and_nothing_else(attempts, server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    live(tmp_path / "memory.db", llm=f"{server.url}#m", embedder=f"{server.url}#nomic")
    examine(str(tmp_path / "memory.db"), f"{server.url}#m", f"{server.url}#nomic")
    assert set(attempts) == {("127.0.0.1", server.http.server_port)}
    assert server.bodies


def test_a_server_with_all_its_faces_reaches_its_services_and_nothing_else(
    attempts, server, tmp_path, monkeypatch
):
    """FastAPI, the MCP SDK and Prometheus' client could all tell somebody; none does."""
    pytest.importorskip("fastapi", reason="the server needs the extra [serve]")
    import httpx
    from made_server import serving

    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    memory = Memory(tmp_path / "memory.db", llm=f"{server.url}#m")
    with serving(memory, upstream=server.url) as url, httpx.Client(base_url=url) as api:
        turn = {"user_id": "ann", "messages": "I adopted a dog named Rex."}
        assert api.post("/v1/memories", json=turn).status_code == 200
        chat = {"model": "m", "user": "ann", "messages": [{"role": "user", "content": "My dog?"}]}
        assert api.post("/v1/chat/completions", json=chat).status_code == 200
        listed = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
        accepts = {"Accept": "application/json, text/event-stream"}
        assert api.post("/mcp?user_id=ann", json=listed, headers=accepts).status_code == 200
        for path in ("/metrics", "/openapi.json", "/", "/ui"):
            assert api.get(path, follow_redirects=True).status_code in (200, 404)
        own = httpx.URL(url).port
    assert set(attempts) == {("127.0.0.1", server.http.server_port), ("127.0.0.1", own)}
