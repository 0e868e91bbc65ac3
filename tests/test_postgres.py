"""What a store in PostgreSQL does beyond the contract, on a real server."""

import re
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from memory_r1 import Memory
from memory_r1.errors import MissingExtra, StoreError
from memory_r1.store import open_store
from memory_r1.types import Entry, JournalRow, Message, Owner, Turn

psycopg = pytest.importorskip("psycopg", reason="memory-r1[postgres] is not installed")

from memory_r1.store import postgres_schema  # noqa: E402
from memory_r1.store.postgres import PostgresStore  # noqa: E402
from memory_r1.store.postgres_schema import MIGRATIONS, Address  # noqa: E402
from memory_r1.store.postgres_session import CONNECTIONS  # noqa: E402

ANNA, BEN, CLEO = Owner("anna"), Owner("ben"), Owner("cleo")
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
EAST = np.array([1, 0], np.float32)
on_a_server = pytest.mark.slow  # it has to be started


@pytest.fixture
def store(postgres):
    store = PostgresStore(postgres)
    yield store
    store.close()


@pytest.fixture
def connection(postgres):
    """A session of somebody else in the same database, in the store's schema."""
    url, _, schema = postgres.partition("&schema=")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"SET search_path TO {schema}, public")
        yield connection


def entry(entry_id: str, text: str = "she has a cat", owner: Owner = ANNA, **fields) -> Entry:
    return Entry(entry_id, text, owner, NOON, **fields)


def terminate_all(connection) -> None:
    """What a restart of the server does to its clients."""
    connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE pid != pg_backend_pid() AND application_name = 'memory-r1'"
    )


# URLs


@pytest.mark.parametrize(
    "url, name, schema",
    [
        ("postgresql://db/memory", "postgresql://db/memory", "memory_r1"),
        ("postgres://u@h:5433/d?schema=x", "postgresql://u@h:5433/d?schema=x", "x"),
        (
            "postgresql://u:p%40ss@h/d?sslmode=require&schema=a%20b",
            "postgresql://u@h/d?schema=a b",
            "a b",
        ),
        ("postgresql:///d?host=/tmp&password=secret", "postgresql:///tmp/d", "memory_r1"),
    ],
)
def test_a_url_is_read_and_shown_without_its_password(url, name, schema):
    address = Address.read(url)
    assert (address.name, address.schema) == (name, schema)
    assert "schema" not in address.options and "p@ss" not in repr(address)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:sec@ret@host/db",
        "postgresql://ann:sec/ret@host/db",
        "postgresql://ann:sec?ret@host/db",
        "postgresql://ann:secret",
        "postgresql://ann:sec%zzret@host/db",
        "postgresql://ann:secret@host/db?schem=x",
        "postgresql://ann:secret@host/db?schema=",
    ],
)
def test_a_url_that_cannot_be_read_is_not_repeated(url):
    with pytest.raises(StoreError) as caught:
        open_store(url)
    said = "".join(traceback.format_exception(caught.value, chain=True))
    assert "expected postgresql://USER" in str(caught.value) or "name of a schema" in said
    assert "sec" not in said.replace(repr(url), "").replace("open_store(url)", "")


def test_a_server_that_is_not_there_is_named_without_the_password():
    password = "4711" * 2
    with pytest.raises(StoreError, match="ann@localhost:1/db: .*check that the server runs") as e:
        open_store(f"postgresql://ann:{password}@localhost:1/db")
    assert password not in "".join(traceback.format_exception(e.value))


def test_without_psycopg_the_extra_is_named():
    code = """
import sys
sys.modules["psycopg"] = None
from memory_r1.store import open_store
open_store("postgresql://localhost/memories")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingExtra: a store in PostgreSQL needs psycopg" in done.stderr
    assert "pip install 'memory-r1[postgres]'" in done.stderr
    assert issubclass(MissingExtra, Exception)


# the schema


@on_a_server
def test_stores_in_two_schemas_of_a_database_know_nothing_of_each_other(new_postgres):
    one, two = PostgresStore(new_postgres()), PostgresStore(new_postgres())
    one.put(entry("a"), EAST)
    assert one.owners() == [ANNA] and two.owners() == []
    one.close()
    two.close()


@on_a_server
def test_a_schema_with_odd_characters_in_its_name_is_quoted(postgres):
    url = postgres.partition("&schema=")[0] + "&schema=" + quote('Ann\'s "memory"; é')
    store = PostgresStore(url)
    store.put(entry("a"), EAST)
    again = open_store(url)
    assert again.owners() == [ANNA]
    store.close()
    again.close()


@on_a_server
def test_the_tables_of_another_program_are_refused_and_not_touched(postgres, connection):
    schema = postgres.partition("&schema=")[2]
    connection.execute(f"CREATE SCHEMA {schema}")
    connection.execute("CREATE TABLE heads (id text)")
    with pytest.raises(StoreError, match="tables of another program; choose another with .schema"):
        PostgresStore(postgres)
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = %s"
    assert connection.execute(tables, (schema,)).fetchall() == [("heads",)]


@on_a_server
def test_a_newer_schema_is_refused(store, postgres, connection):
    connection.execute("INSERT INTO migrations (number) VALUES (99)")
    with pytest.raises(StoreError, match=f"schema 99, .* up to {len(MIGRATIONS)}; upgrade"):
        PostgresStore(postgres)


@on_a_server
def test_a_schema_grows_by_numbered_migrations(store, postgres, connection, monkeypatch):
    def second(connection) -> None:
        connection.execute("ALTER TABLE messages ADD COLUMN colour text")

    def broken(connection) -> None:
        connection.execute("ALTER TABLE messages ADD COLUMN shape text")
        raise RuntimeError("half way")

    monkeypatch.setattr(postgres_schema, "MIGRATIONS", (*MIGRATIONS, second, broken))
    with pytest.raises(RuntimeError):
        PostgresStore(postgres)
    monkeypatch.setattr(postgres_schema, "MIGRATIONS", (*MIGRATIONS, second))
    PostgresStore(postgres).close()
    columns = connection.execute("SELECT * FROM messages").description
    assert columns[-1].name == "colour"
    assert connection.execute("SELECT max(number) FROM migrations").fetchone() == (
        len(MIGRATIONS) + 1,
    )


@on_a_server
def test_many_may_open_a_new_schema_at_once(postgres):
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(lambda _: PostgresStore(postgres), range(8)))
    for store in stores:
        assert store.owners() == []
        store.close()


@on_a_server
def test_a_missing_database_is_named(postgres):
    url = postgres.replace("/postgres?", "/nowhere?")
    with pytest.raises(StoreError, match='database "nowhere" does not exist; check .* database'):
        PostgresStore(url)


@on_a_server
def test_who_may_not_switch_pgvector_on_is_told_what_to_have_run(postgres, connection):
    connection.execute("CREATE ROLE plain LOGIN")
    connection.execute("CREATE DATABASE bare OWNER plain")
    url = postgres.replace("postgres:@/postgres?", "plain:@/bare?")
    with pytest.raises(StoreError, match="an administrator run there:  CREATE EXTENSION vector"):
        PostgresStore(url)
    with psycopg.connect(url.partition("&schema=")[0]) as bare:
        tables = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'test%'"
        assert bare.execute(tables).fetchone() == (0,)


# transactions and locks


@on_a_server
def test_what_a_transaction_has_read_is_still_true_when_it_writes(store):
    store.put(entry("a"), EAST)

    def count_up(_: int) -> None:
        with store.transaction():
            last = store.get(ANNA, "a")
            store.put(replace(last, version=last.version + 1), EAST)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(count_up, range(64)))
    assert store.get(ANNA, "a").version == 65


@on_a_server
def test_a_fact_of_the_store_is_set_once_by_those_who_look_first(store):
    def claim(name: int) -> str | None:
        with store.transaction():
            if store.get_meta("embedder") is None:
                store.set_meta("embedder", str(name))
                return str(name)
        return None

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        claims = [claim for claim in pool.map(claim, range(32)) if claim]
    assert claims == [store.get_meta("embedder")]


@on_a_server
def test_one_owners_transaction_does_not_hold_up_another_owner(store):
    done = []

    def other() -> None:
        store.put(entry("b", owner=BEN), EAST)
        done.append(store.entries(ANNA))

    with store.transaction():
        store.put(entry("a"), EAST)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(10)
        assert done == [[]]  # nor does a reader of the same owner wait
    assert store.entries(ANNA) == [entry("a")]


@on_a_server
def test_a_transaction_that_begins_with_the_owners_holds_them_all(store):
    for owner in (ANNA, BEN, CLEO):
        store.put(entry("a", owner=owner), EAST)
    order = []

    def count_up(owner: Owner) -> None:
        with store.transaction():
            last = store.get(owner, "a")
            store.put(replace(last, version=last.version + 1), EAST)
            order.append(owner)

    with store.transaction():
        assert store.owners() == [ANNA, BEN, CLEO]
        threads = [threading.Thread(target=count_up, args=(o,)) for o in (ANNA, BEN, CLEO)]
        for thread in threads:
            thread.start()
            thread.join(0.05)
        for owner in (CLEO, ANNA, BEN):  # in any order
            store.put(entry("a", "read while nobody wrote", owner, version=2), EAST)
        assert order == []
    for thread in threads:
        thread.join()
    assert {store.get(owner, "a").version for owner in (ANNA, BEN, CLEO)} == {3}


@on_a_server
def test_two_transactions_that_wait_for_each_other_are_told_apart(store):
    both = threading.Barrier(2)

    def write(first: Owner, second: Owner) -> str:
        try:
            with store.transaction():
                store.put(entry(first.user_id, owner=first), EAST)
                both.wait()
                store.put(entry(first.user_id, owner=second), EAST)
            return "kept"
        except StoreError as err:
            return str(err)

    with ThreadPoolExecutor(2) as pool:
        results = sorted(pool.map(write, (ANNA, BEN), (BEN, ANNA)), key=len)
    assert results[0] == "kept" and "nothing of this one was kept, do it again" in results[1]
    assert store.entries(ANNA)[0].id == store.entries(BEN)[0].id
    assert len(store.entries(ANNA)) == len(store.entries(BEN)) == 1


@on_a_server
def test_the_locks_of_a_failed_inner_transaction_go_with_it_and_are_taken_again(store):
    with store.transaction():
        store.put(entry("a"), EAST)
        with pytest.raises(RuntimeError), store.transaction():
            store.put(entry("b", owner=BEN), EAST)
            raise RuntimeError
        thread = threading.Thread(target=store.put, args=(entry("c", owner=BEN), EAST))
        thread.start()
        thread.join(10)
        assert store.entries(BEN) == [entry("c", owner=BEN)]
        store.put(entry("c", "changed", BEN, version=2), EAST)
    assert store.get(BEN, "c").version == 2


@on_a_server
def test_a_failure_caught_inside_a_transaction_cannot_pass_for_success(store):
    with pytest.raises(StoreError, match="caught inside it; nothing of it was kept"):
        with store.transaction():
            store.put(entry("a"), EAST)
            store.add_journal(JournalRow("j", ANNA, "NOOP", NOON))
            with pytest.raises(StoreError, match="null value"):
                store.mark(ANNA, "j", None)
    assert store.entries(ANNA) == []


@on_a_server
def test_an_index_of_an_open_transaction_is_seen_by_it_alone(store):
    store.put(entry("a"), EAST)
    seen = []
    with pytest.raises(RuntimeError), store.transaction():
        store.put(entry("b"), EAST)
        assert len(store.index(ANNA)) == 2
        thread = threading.Thread(target=lambda: seen.append(len(store.index(ANNA))))
        thread.start()
        thread.join()
        raise RuntimeError
    assert seen == [1]
    store.put(entry("c"), EAST)  # with the revision that "b" had
    assert [found.id for found in store.index(ANNA).entries] == ["a", "c"]


@on_a_server
def test_more_threads_than_connections_take_turns(store):
    def write(n: int) -> None:
        with store.transaction():
            store.put(entry(str(n), owner=Owner(str(n))), EAST)

    with ThreadPoolExecutor(4 * CONNECTIONS) as pool:
        list(pool.map(write, range(8 * CONNECTIONS)))
    assert len(store.owners()) == 8 * CONNECTIONS


@on_a_server
@pytest.mark.parametrize("bad", ["a\0b", "half an emoji \ud83d"])
def test_an_id_that_postgres_cannot_hold_is_refused(store, bad):
    with store.transaction():
        store.put(entry("a"), EAST)
        with pytest.raises(StoreError, match="use another"):
            store.put(entry(bad), EAST)
    assert store.entries(ANNA) == [entry("a")]


# a server that goes away


@on_a_server
def test_a_lost_connection_is_an_error_in_a_transaction_and_the_next_call_goes_on(
    store, connection
):
    store.put(entry("a"), EAST)
    with pytest.raises(StoreError, match="connection to .* was lost .*the next call connects"):
        with store.transaction():
            store.put(entry("b"), EAST)
            terminate_all(connection)
            store.put(entry("c"), EAST)
    assert store.entries(ANNA) == [entry("a")]
    store.put(entry("d"), EAST)
    assert [found.id for found in store.index(ANNA).entries] == ["a", "d"]


@on_a_server
def test_a_connection_lost_at_the_end_leaves_it_open_whether_all_was_kept(store, connection):
    with pytest.raises(StoreError, match="may or may not be kept: look before you do it again"):
        with store.transaction():
            store.put(entry("a"), EAST)
            terminate_all(connection)
    assert store.entries(ANNA) == []


@on_a_server
def test_a_connection_lost_while_nothing_was_done_is_not_noticed(store, connection):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: store.put(entry(str(n)), EAST), range(16)))
    assert len(store.index(ANNA)) == 16
    terminate_all(connection)
    connection.execute("DELETE FROM versions WHERE id = '3'")  # an older copy was restored
    connection.execute("DELETE FROM heads WHERE id = '3'")
    assert len(store.index(ANNA)) == 15


@on_a_server
def test_a_store_closed_by_another_thread_lets_a_transaction_end(store):
    with store.transaction():
        store.put(entry("a"), EAST)
        store.close()
        store.put(entry("b"), EAST)
    with pytest.raises(StoreError, match="was closed; open it again"):
        store.entries(ANNA)


# the memory on top


@on_a_server
def test_two_memories_in_one_database_work_as_one(postgres):
    told = {"user_id": "ann", "speaker": "Ann", "timestamp": "2023-05-08"}
    with Memory(postgres) as here, Memory(postgres) as there:
        here.add("I moved to Lisbon.", **told)
        there.add("My bicycle is green.", **told, wait=False)
        there.flush()
        assert "Lisbon" in there.search("where does Ann live?", user_id="ann", k=1)[0].entry.text
        (row,) = [row for row in here.journal(user_id="ann") if "bicycle" in row.after.text]
        here.undo(row.id, user_id="ann")
        assert len(there.list(user_id="ann")) == 1
        assert there.check() == ()
        assert here.forget("ann")["entries"] == 1
        assert there.list(user_id="ann") == [] and there.store.owners() == []


# what is erased


def deleted_rows(connection) -> int:
    """Rows that nobody sees, and that no VACUUM had removed before this one."""
    connection.execute("SET lc_messages = 'C'")
    said = []
    connection.add_notice_handler(lambda notice: said.append(notice.message_primary))
    connection.execute("VACUUM (VERBOSE) owners, heads, versions, journal, messages, feedback")
    return sum(int(n) for text in said for n in re.findall(r"tuples: (\d+) removed", text))


def files_with(secret: bytes, connection) -> list[str]:
    """The tables and indexes of the schema whose files hold these bytes."""
    connection.execute("CHECKPOINT")
    (folder,) = connection.execute("SHOW data_directory").fetchone()
    rows = connection.execute(
        "SELECT relname, pg_relation_filepath(oid) FROM pg_class WHERE relkind IN ('r', 'i')"
        " AND relnamespace = current_schema()::regnamespace"
    )
    return [name for name, file in rows if secret in Path(folder, file).read_bytes()]


def fill(store) -> Owner:
    secret = Owner("secret")
    for number in range(50):
        store.put(entry(f"secret {number}", "the secret is 4711", secret), EAST)
        store.put(entry(f"{number}", "kept", BEN), EAST)
    store.add_message(Message("secret", secret, Turn("Anna", "the secret is 4711"), NOON))
    return secret


@on_a_server
def test_no_row_of_a_forgotten_owner_is_left_in_tables_and_indexes(store, connection):
    secret = fill(store)
    assert {"owners", "versions", "versions_pkey"} <= set(files_with(b"secret", connection))
    store.remove(secret, "secret 7")
    assert deleted_rows(connection) > 0
    assert store.forget(secret)["entries"] == 49
    assert deleted_rows(connection) == 0
    # Free space of a page is not overwritten before it is used again; a rewritten table has none.
    for table in ("owners", "heads", "versions", "messages"):
        connection.execute(f"VACUUM FULL {table}")
    assert files_with(b"secret", connection) == []
    assert len(store.entries(BEN)) == 50 and store.problems() == []


@on_a_server
def test_forget_says_who_may_still_read_what_is_erased(postgres, store, connection):
    hurried = PostgresStore(postgres, timeout=0.1)
    hurried.put(entry("a"), EAST)
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    connection.execute("SELECT FROM versions")
    pid = connection.info.backend_pid
    with pytest.raises(StoreError, match=f"are erased, but .*session {pid} .* call forget again"):
        hurried.forget(ANNA)
    assert store.owners() == []
    connection.execute("ROLLBACK")
    assert set(hurried.forget(ANNA).values()) == {0}
    hurried.close()


@on_a_server
def test_forget_says_when_this_user_may_not_clear_the_pages(postgres, store, connection):
    store.put(entry("a"), EAST)
    schema = postgres.partition("&schema=")[2]
    connection.execute("CREATE ROLE clerk LOGIN")
    connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO clerk")
    rights = "SELECT, INSERT, UPDATE, DELETE"
    connection.execute(f"GRANT {rights} ON ALL TABLES IN SCHEMA {schema} TO clerk")
    clerk = PostgresStore(postgres.replace("postgres:@", "clerk:@"))
    with pytest.raises(StoreError, match='are erased, but .*permission denied to vacuum "owners"'):
        clerk.forget(ANNA)
    assert store.owners() == []
    clerk.close()


@on_a_server
def test_forget_in_a_transaction_erases_when_that_is_done(store, connection):
    secret = fill(store)
    with pytest.raises(RuntimeError), store.transaction():
        store.forget(secret)
        raise RuntimeError
    assert len(store.entries(secret)) == 50
    with store.transaction():
        store.forget(secret)
        store.put(entry("b", owner=BEN), EAST)
    assert deleted_rows(connection) == 0 and store.owners() == [BEN]


# problems


@on_a_server
@pytest.mark.parametrize(
    "damage, said",
    [
        ("DELETE FROM versions", "last version is not the one noted"),
        ("DELETE FROM owners", "versions of nobody"),
        ("UPDATE versions SET version = 3", "a gap"),
        ("UPDATE heads SET version = 0", "current version that is not the last"),
        ("UPDATE versions SET vector = '[1]' WHERE id = 'b'", "vectors of different lengths"),
    ],
)
def test_what_is_broken_is_found(store, connection, damage, said):
    store.put(entry("a"), EAST)
    store.put(entry("b"), EAST)
    assert store.problems() == []
    connection.execute(damage)
    assert any(said in problem for problem in store.problems())
