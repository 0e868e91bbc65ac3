"""What docs/operations.md promises of backups and alerts."""

import re
import sqlite3
import threading
from pathlib import Path

import httpx
import yaml
from made_server import serving

from memory_r1 import Memory

PAGE = (Path(__file__).parents[1] / "docs" / "operations.md").read_text("utf-8")


def block(name):
    return re.search(rf"<!-- file {name} -->\n+```\w+\n(.*?)```", PAGE, re.DOTALL)[1]


def test_a_backup_made_while_somebody_writes_is_a_whole_store(tmp_path):
    (copying,) = re.findall(r"VACUUM INTO '", PAGE)
    stop, seen = threading.Event(), []
    with Memory(tmp_path / "memory.db") as memory:
        memory.add("I moved to Lisbon.", user_id="ann")

        def write():
            while not stop.is_set():
                memory.add(f"My number is {len(seen)}.", user_id="ann")
                seen.append(1)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for number in range(3):
                before = len(seen)
                while len(seen) < before + 5:
                    stop.wait(0.001)
                with sqlite3.connect(tmp_path / "memory.db") as connection:
                    connection.execute(f"{copying}{tmp_path / f'copy{number}.db'}'")
                connection.close()
        finally:
            stop.set()
            writer.join()
    sizes = []
    for number in range(3):
        with Memory(tmp_path / f"copy{number}.db") as copy:
            assert copy.check() == ()
            sizes.append(len(copy.list(user_id="ann")))
    assert 1 < sizes[0] < sizes[1] < sizes[2]


def test_alerts_name_metrics_that_the_server_has(tmp_path):
    with serving(Memory(tmp_path / "memory.db")) as url:
        body = {"messages": "I moved to Lisbon.", "user_id": "ann"}
        assert httpx.post(f"{url}/v1/memories", json=body).status_code in (200, 201)
        body = {"query": "Lisbon", "user_id": "ann"}
        assert httpx.post(f"{url}/v1/search", json=body).status_code == 200
        shown = httpx.get(f"{url}/metrics").text
    (group,) = yaml.safe_load(block("alerts.yml"))["groups"]
    for rule in group["rules"]:
        assert rule.keys() == {"alert", "expr", "for"}
        for name in re.findall(r"memory_r1_\w+", rule["expr"]):
            assert re.search(rf"^{name}\b", shown, re.MULTILINE), f"{rule['alert']}: {name}"
        for route in re.findall(r'route="(.*?)"', rule["expr"]):
            assert f'route="{route}"' in shown, route
    assert yaml.safe_load(block("prometheus.yml"))["scrape_configs"][0]["job_name"] == "memory-r1"
