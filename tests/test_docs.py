"""What the documentation shows is what happens.

A ```console or ```python block under the line `<!-- run -->` is executed; the blocks of one file
share a folder and run in order, and what stands under `<!-- file NAME -->` is written to that file.
`...` in the shown output stands for anything. A command that ends in & goes on until the page is
done. The port of `--port 8700` is another, free one, and at localhost:8000 a model is played.
`python tests/test_docs.py` writes docs/cli.md from the program's own help, and docs/reference.md
from the docstrings.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
import reference_page
import typer
from model_server import Server, completion

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CLI_PAGE = ROOT / "docs" / "cli.md"
SLOW = {"train_your_own.md"}
OTHERS = [
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    *ROOT.glob("memory_r1/models/*/README.md"),
]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
NEEDS_PEERS = {"langgraph_agent.py"}
BLOCK = re.compile(
    r"<!-- (?P<what>run|file)(?P<needs>[^>]*?) -->\n+```(?P<kind>\w+)\n(?P<body>.*?)```", re.DOTALL
)
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("MEMORY_R1_")},
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "COLUMNS": "80",
    "NO_COLOR": "1",
    "TERM": "dumb",
    "PYTHONWARNINGS": "error",
}


def shell(command, folder, started=None):
    """Exit code, and standard output and error in the order they came.

    started: takes the process group, which may go on in the background.
    """
    with tempfile.TemporaryFile() as out:  # a pipe would stay open as long as the background runs
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        if started is not None:
            started.append(process.pid)
        code = process.wait(600)
        out.seek(0)
        text = out.read().decode("utf-8")
    return code, "\n".join(line.rstrip() for line in text.splitlines())


def shown_commands(body):
    """(command, the output shown) of a console block; a command goes on after a final \\."""
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        lines = part.rstrip().split("\n")
        last = next(i for i, line in enumerate(lines) if not line.endswith("\\"))
        shown = (line.rstrip() for line in lines[last + 1 :])
        yield "\n".join(lines[: last + 1]), "\n".join(shown).strip()


def fits(shown, seen):
    """Whether an output is as shown, where ... stands for anything."""
    return re.fullmatch(".*?".join(map(re.escape, shown.split("..."))), seen.strip(), re.DOTALL)


def is_bundled(model):
    return (files("memory_r1") / "models" / model).is_dir()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def marked(paths, slow):
    return [
        pytest.param(path, id=path.name, marks=[pytest.mark.slow] if path.name in slow else [])
        for path in paths
    ]


def chat(body):
    """What a chat model says that has read of an oboe in its prompt, or hasn't."""
    known = "oboe" in json.dumps(body["messages"])
    return 200, completion("You play the oboe." if known else "Hello! What do you play?")


@pytest.fixture(scope="module")
def model():
    """Where a model is, as host:port."""
    server = Server()
    server.respond = chat
    yield server.url.split("/")[2]
    server.close()


@pytest.mark.parametrize("page", marked(PAGES, SLOW))
def test_what_a_page_shows_happens(page, tmp_path, model):
    text = page.read_text("utf-8")
    text = text.replace("8700", free_port()).replace("localhost:8000", model)
    started = []
    try:
        missing = play(text, tmp_path, started)
    finally:
        for group in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)
    if missing:
        pytest.skip(f"not in this checkout, so not all was run: {', '.join(sorted(missing))}")


def play(text, folder, started):
    """Run what a page shows; returns the models that it needs and that aren't here."""
    missing = set()
    for block in BLOCK.finditer(text):
        if block["what"] == "file":
            (folder / block["needs"].strip()).write_text(block["body"], encoding="utf-8")
        elif absent := {model for model in block["needs"].split() if not is_bundled(model)}:
            missing |= absent
        elif block["kind"] == "python":
            (folder / "block.py").write_text(block["body"], encoding="utf-8")
            code, seen = shell("python block.py", folder, started)
            assert code == 0, seen
        else:
            for command, shown in shown_commands(block["body"]):
                _, seen = shell(command, folder, started)
                assert fits(shown, seen), f"$ {command}\nshown:\n{shown}\nseen:\n{seen}"
    return missing


@pytest.mark.parametrize(
    "program", marked(sorted((ROOT / "examples").glob("*.py")), slow=NEEDS_PEERS)
)
def test_examples_run(program, tmp_path):
    python = PEERS if program.name in NEEDS_PEERS else "python"
    if python == PEERS and not PEERS.exists():
        pytest.skip(f"{PEERS} is not there: run  make peers")
    code, seen = shell(f"{python} {program}", tmp_path)
    assert code == 0, seen
    assert seen


def cli_page():
    """docs/cli.md: the help of the program and of each of its commands."""
    from memory_r1.serve.cli import app

    names = [""]
    for name, command in sorted(typer.main.get_command(app).commands.items()):
        names += [name, *(f"{name} {inner}" for inner in getattr(command, "commands", ()))]
    parts = ["# Command line\n\nWritten by `make docs` from the program's own help.\n"]
    for name in names:
        words = f"memory-r1 {name}".strip()
        code, text = shell(f"{words} --help", ROOT)
        assert code == 0, text
        parts.append(f"## {words}\n\n```\n{text.strip()}\n```\n")
    return "\n".join(parts)


def test_the_page_of_the_command_line_is_its_help():
    assert CLI_PAGE.read_text("utf-8") == cli_page(), "docs/cli.md is out of date; run:  make docs"


def test_the_reference_is_what_the_docstrings_say():
    page = reference_page.PAGE.read_text("utf-8")
    assert page == reference_page.reference(), "docs/reference.md is out of date; run:  make docs"


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((ROOT / "examples").glob("*.py"))], ids=lambda page: page.name
)
def test_what_is_imported_is_in_the_reference(page):
    told = set(re.findall(r"^###+ (.+)$", reference_page.PAGE.read_text("utf-8"), re.MULTILINE))
    imports = re.findall(
        r"^from (memory_r1\.[\w.]+) import ([\w, ]+)", page.read_text("utf-8"), re.M
    )
    for module, names in imports:
        for name in names.replace(" ", "").split(","):
            assert told & {name, f"{module}.{name}"}, f"{module}.{name} is not in the reference"


def prose(page):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """What `page.md#...` may name: each heading as GitHub writes it, counted when repeated."""
    seen = Counter()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        yield f"{name}-{seen[name]}" if seen[name] else name
        seen[name] += 1


@pytest.mark.parametrize(
    "page", [*PAGES, *OTHERS], ids=lambda page: f"{page.parent.name}/{page.name}"
)
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://|mailto:)([^)\s]+)", prose(page)):
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name} links to {target}: no such heading"


def test_every_page_can_be_reached_from_the_readme():
    reached, queue = set(), [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        reached.add(page)
        for target in re.findall(r"\]\((?!https?://)([^)#\s]+\.md)", prose(page)):
            linked = (page.parent / target).resolve()
            queue += [linked] if linked.exists() and linked not in reached else []
    lost = [page.name for page in PAGES if page.resolve() not in reached]
    assert not lost, f"no link leads from the README to {', '.join(lost)}"


def test_the_readmes_map_names_what_exists():
    text = (ROOT / "README.md").read_text("utf-8")
    tree = re.search(r"```\nmemory-r1/\n(.*?)```", text, re.DOTALL)[1]
    folders = [ROOT]
    for line in tree.splitlines():
        drawn, name = re.match(r"([│├└─ ]*)([\w./-]+)", line).groups()
        depth = len(drawn) // 4  # each level is drawn four signs wide
        there = folders[depth - 1] / name
        assert there.exists(), f"the README's map names {name}"
        folders[depth:] = [there]


if __name__ == "__main__":
    CLI_PAGE.write_text(cli_page(), encoding="utf-8")
    reference_page.PAGE.write_text(reference_page.reference(), encoding="utf-8")
