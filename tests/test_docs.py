"""What the documentation shows is what happens.

A ```console or ```python block under the line `<!-- run -->` is executed; the blocks of one file
share a folder and run in order. `...` in the shown output stands for anything.
`python tests/test_docs.py` writes docs/cli.md from the program's own help.
"""

import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CLI_PAGE = ROOT / "docs" / "cli.md"
BLOCK = re.compile(r"<!-- run(?P<needs>[^>]*?) -->\n+```(?P<kind>\w+)\n(?P<body>.*?)```", re.DOTALL)
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("MEMORY_R1_")},
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "COLUMNS": "80",
    "NO_COLOR": "1",
    "TERM": "dumb",
    "PYTHONWARNINGS": "error",
}


def shell(command, folder):
    """Standard output and error of a command, in the order they came."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    return done.returncode, "\n".join(line.rstrip() for line in done.stdout.splitlines())


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_happens(page, tmp_path):
    missing = set()
    for block in BLOCK.finditer(page.read_text("utf-8")):
        if absent := {model for model in block["needs"].split() if not is_bundled(model)}:
            missing |= absent
        elif block["kind"] == "python":
            (tmp_path / "block.py").write_text(block["body"], encoding="utf-8")
            code, seen = shell("python block.py", tmp_path)
            assert code == 0, seen
        else:
            for command, shown in shown_commands(block["body"]):
                _, seen = shell(command, tmp_path)
                assert fits(shown, seen), f"$ {command}\nshown:\n{shown}\nseen:\n{seen}"
    if missing:
        pytest.skip(f"not in this checkout, so not all was run: {', '.join(sorted(missing))}")


@pytest.mark.parametrize("program", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_run(program, tmp_path):
    code, seen = shell(f"python {program}", tmp_path)
    assert code == 0, seen
    assert seen


def cli_page():
    """docs/cli.md: the help of the program and of each of its commands."""
    from memory_r1.serve.cli import app

    names = ["", *sorted(typer.main.get_command(app).commands)]
    parts = ["# Command line\n\nWritten by `make docs` from the program's own help.\n"]
    for name in names:
        words = f"memory-r1 {name}".strip()
        code, text = shell(f"{words} --help", ROOT)
        assert code == 0, text
        parts.append(f"## {words}\n\n```\n{text.strip()}\n```\n")
    return "\n".join(parts)


def test_the_page_of_the_command_line_is_its_help():
    assert CLI_PAGE.read_text("utf-8") == cli_page(), "docs/cli.md is out of date; run:  make docs"


def test_links_between_pages_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readmes_map_names_what_exists():
    text = (ROOT / "README.md").read_text("utf-8")
    tree = re.search(r"```\nmemory-r1/\n(.*?)```", text, re.DOTALL)[1]
    inside = False
    for line in tree.splitlines():
        name = re.match(r"[│├└─ ]*([\w./-]+)", line)[1]
        if name == "memory_r1/":
            inside = True
            continue
        base = ROOT / "memory_r1" if inside else ROOT
        assert (base / name).exists(), f"the README's map names {name}"


if __name__ == "__main__":
    CLI_PAGE.write_text(cli_page(), encoding="utf-8")
