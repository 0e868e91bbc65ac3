"""The map of docs/architecture.md, held by the code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import memory_r1

PACKAGE = Path(memory_r1.__file__).parent
LAYERS = """
serve
compat
bench train
aio doctor
memory
outbox audit transfer practice
remember respond
extract manage answer grading
bank retrieve data filters
store embed llm
text config
types errors caches
"""
DEPTH = {name: depth for depth, line in enumerate(LAYERS.split("\n")) for name in line.split()}
MODULES = sorted(PACKAGE.rglob("*.py"))
TORCH_ALLOWED = {"train", "llm/local.py", "llm/prefix.py", "llm/sampler.py"}
TORCH_FREE = {
    "train/__init__.py",
    "train/construct.py",
    "train/episodes.py",
    "train/rewards.py",
    "train/rollout.py",
}


def imports(path):
    """(line, dotted module) of every import in a file, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import(names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module, names, level=0):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.ImportFrom():
                raise AssertionError(f"{path}:{node.lineno}: imports are absolute")


def where(path):
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=where)
def test_imports_only_point_down(path):
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for line, module in imports(path) if here in DEPTH else ():
        package, target, *_ = [*module.split("."), ""]
        if package == "memory_r1" and target in DEPTH:
            assert target == here or DEPTH[target] > DEPTH[here], (
                f"{where(path)}:{line}: {here} may not import {target}"
            )


def test_every_module_is_on_the_map():
    names = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES}
    assert names - {"__init__", "models"} <= DEPTH.keys()


@pytest.mark.parametrize("path", MODULES, ids=where)
def test_torch_is_named_only_where_it_may_be(path):
    relative = where(path)
    allowed = relative in TORCH_ALLOWED or relative.split("/")[0] in TORCH_ALLOWED
    for line, module in imports(path):
        if module.split(".")[0] in ("torch", "transformers", "peft", "accelerate"):
            assert allowed and relative not in TORCH_FREE, f"{relative}:{line} imports {module}"


def test_the_core_runs_without_torch():
    modules = "memory_r1, memory_r1.memory, memory_r1.serve.cli, memory_r1.bench.run"
    for name in TORCH_FREE:
        if (PACKAGE / name).exists():
            modules += ", memory_r1." + name.removesuffix(".py").replace("/", ".")
    code = f"import sys, {modules.replace('.__init__', '')}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", MODULES, ids=where)
def test_no_failure_is_swallowed(path):
    """Catching everything is for request handlers; elsewhere it must end in a raise."""
    if where(path).startswith("serve/"):
        return
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            if caught in ("everything", "Exception", "BaseException"):
                assert isinstance(node.body[-1], ast.Raise), (
                    f"{where(path)}:{node.lineno} catches {caught} and goes on"
                )


@pytest.mark.parametrize("path", MODULES, ids=where)
def test_a_module_says_what_it_is(path):
    if path.stat().st_size:
        assert ast.get_docstring(ast.parse(path.read_text("utf-8")))
