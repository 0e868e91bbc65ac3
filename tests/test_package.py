"""What is built is what is used: a bare wheel, in an environment of its own."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def call(*words, folder=None):
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "hatchling", "build", "-d", folder, folder=ROOT)
    return folder


@pytest.fixture(scope="module")
def bare(built, tmp_path_factory):
    """The bin folder of an environment with the wheel and what it can't do without."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    call(sys.executable, "-m", "venv", folder)
    (wheel,) = built.glob("*.whl")
    pip = (folder / "bin" / "python", "-m", "pip", "install", "--quiet")
    call(*pip, "-c", ROOT / "constraints.txt", wheel)
    return folder / "bin"


def sources(suffixes):
    """Files of the package as they are in the checkout, relative to the root."""
    found = (p for p in (ROOT / "memory_r1").rglob("*") if p.suffix in suffixes)
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_the_wheel_holds_the_package_its_types_and_its_models(built):
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "memory_r1/py.typed" in names
    assert sources({".py", ".json", ".safetensors", ".md", ".html", ".toml"}) <= names
    assert {f"memory_r1/runs/{path.name}" for path in (ROOT / "runs").glob("*.toml")} <= names
    outside = {n.split("/")[0] for n in names} - {"memory_r1"}
    assert all(name.endswith(".dist-info") for name in outside)


def test_the_source_archive_can_be_tested(built):
    (archive,) = built.glob("*.tar.gz")
    names = {name.split("/", 1)[1] for name in tarfile.open(archive).getnames()}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "Makefile", "SECURITY.md"} | {
        "constraints.txt"
    }
    assert wanted | {"tests/test_package.py"} | sources({".py"}) <= names


def test_the_bare_wheel_remembers_and_answers_without_torch_and_nltk(bare, tmp_path):
    program = bare / "memory-r1"
    python = bare / "python"
    installed = call(python, "-m", "pip", "list", "--format=freeze").lower()
    assert "torch==" not in installed
    assert "nltk==" not in installed
    assert "Usage: memory-r1" in call(program, "--help")

    call(program, "add", "I moved to Lisbon.", "--at", "2023-05-08", folder=tmp_path)
    assert "Lisbon" in call(program, "search", "Lisbon", folder=tmp_path)
    answer = call(program, "ask", "When did I move to Lisbon?", folder=tmp_path)
    assert answer.strip() == "8 May 2023"


def test_what_needs_an_extra_names_it(bare, tmp_path):
    done = subprocess.run(
        [bare / "memory-r1", "ask", "anything", "--llm", "tiny"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "memory-r1[train]" in done.stderr
    assert "Traceback" not in done.stderr
