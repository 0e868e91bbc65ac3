"""docs/reference.md, written from the docstrings of what users import; `make docs` writes it."""

import ast
import re
import textwrap
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "memory_r1"
PAGE = PACKAGE.parent / "docs" / "reference.md"
WIDTH = 96
GLUE = "\x00"  # a space at which no line is broken

HEAD = """# Reference

Written by `make docs` from the docstrings. What isn't here is internal and may change. The command
line is in [cli.md](cli.md), what the verbs do together in [memory.md](memory.md), the settings of a
run file in [training.md](training.md), REST in `/openapi.json` of a running server.
"""

# (title, (module, names; none: all that is public)...); what is used most comes first
SECTIONS = (
    (
        "Memory",
        ("memory", "Memory", "Stats"),
        ("aio", "AsyncMemory"),
        ("config", "Settings"),
        ("remember", "AddResult", "FactResult", "FactStatus", "Usage"),
        ("extract", "Messages", "Moment"),
        ("filters", "Filters"),
    ),
    ("Vocabulary", ("types",)),
    ("Errors", ("errors",)),
    (
        "Models",
        ("llm", "LLM", "Agents", "Call", "Conversation", "drive"),
        ("llm.open", "open_agents", "open_llm"),
        ("llm.openai", "OpenAILLM"),
        ("llm.local", "LocalLLM"),
        ("llm.scripted", "ScriptedLLM"),
    ),
    (
        "Embedders",
        (
            *("embed", "Embedder", "open_embedder"),
            *("LocalEmbedder", "SentenceTransformersEmbedder", "HttpEmbedder"),
        ),
    ),
    ("Stores", ("store", "Store", "Vector", "open_store"), ("store.counts", "Counts")),
    (
        "Looking after a store",
        ("audit", "Audit", "audit", "check"),
        ("bank", "Bank", "reindex"),
        ("doctor", "Check", "examine"),
        ("transfer", "export", "restore"),
        ("practice", "dialogues"),
    ),
    (
        "Measures of text",
        ("text", "Gold", "normalise", "em", "f1", "f1_official", "bleu1", "rouge_l_recall"),
    ),
    (
        "Other systems",
        ("compat.mem0", "Memory", "AsyncMemory"),
        ("compat.langgraph", "MemoryStore"),
        ("compat.importers", "Receipt", "bring"),
        ("compat.readers", "read_json", "read_mem0", "read_letta", "read_langgraph"),
    ),
    (
        "Dialogues",
        ("data.dialogues", "Session", "Question", "Dialogue", "Irregularity", "Report"),
        ("data.formats", "stream", "load", "find"),
        ("data.jsonl", "read", "dump"),
        ("data.world", "WorldConfig", "generate", "write"),
    ),
    (
        "Benchmarks",
        ("bench.plan", "Plan"),
        ("bench.run", "Prices", "Run", "run"),
        ("bench.systems", "open_system"),
        ("bench.systems.base", "System", "Options"),
        (
            *("bench.score", "Prediction", "compare", "Interval", "paired_bootstrap"),
            *("recall_any", "recall_all", "ndcg"),
        ),
        ("bench.judge", "Judged", "judge"),
        ("bench.gather", "read"),
        ("bench.publish", "Report", "report", "write"),
    ),
    (
        "Training",
        ("train.runfile", "load_run"),
        ("train.learn", "Learned", "learn"),
        ("train.episodes", "Outcome", "Episode"),
        ("train.rollout", "Step", "Rollout", "play", "judge"),
        ("train.rewards", "Reward", "open_reward"),
        ("train.algorithms",),
    ),
    ("Server", ("serve.server.app", "build"), ("serve.server.settings", "Serving")),
)


def reference():
    """The page."""
    parts = [HEAD]
    for title, *modules in SECTIONS:
        told = ", ".join(f"[{name}](#memory_r1{name.replace('.', '')})" for name, *_ in modules)
        parts.append(f"- [{title}](#{title.lower().replace(' ', '-')}): {told}")
    parts.append("")
    for title, *modules in SECTIONS:
        parts.append(f"## {title}\n")
        for module, *names in modules:
            parts += _module(module, names)
    return "\n".join(parts)


def _module(name, names):
    tree = ast.parse(_path(name).read_text("utf-8"))
    found = {}
    for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        for defined in _defines(node):
            if not defined.startswith("_"):
                found[defined] = (node, _string(following))
    if missing := set(names) - found.keys():
        raise LookupError(f"memory_r1.{name} has no {', '.join(sorted(missing))}")
    told = names or [n for n, (node, _) in found.items() if not _is_constant(node)]
    yield f"### memory_r1.{name}\n"
    yield from _prose(ast.get_docstring(tree) or "")
    for one in told:
        node, after = found[one]
        yield from _class(node) if isinstance(node, ast.ClassDef) else _thing(node, after)


def _path(name):
    path = PACKAGE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _defines(node):
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [name]
        case ast.Assign(targets=[ast.Name(name)]) | ast.AnnAssign(target=ast.Name(name)):
            return [name]
    return []


def _is_constant(node):
    return isinstance(node, ast.Assign | ast.AnnAssign)


def _string(node):
    match node:
        case ast.Expr(ast.Constant(str(text))):
            return _joined(text)
    return ""


def _joined(text):
    return " ".join(text.split())


def _thing(node, after):
    """A function, or an alias with the string that follows it."""
    if _is_constant(node):
        yield f"#### {_defines(node)[0]}\n"
        shown = ast.unparse(node).replace("'", '"')  # as the formatter has it
        yield f"```python\n{_wrapped(shown)}\n```\n"
        yield from [f"{after}\n"] if after else []
        return
    yield f"#### {node.name}\n"
    yield f"```python\n{_signature(node)}\n```\n"
    yield from _prose(ast.get_docstring(node) or "")


def _class(node):
    yield f"#### {node.name}\n"
    begins = next((n for n in node.body if getattr(n, "name", "") == "__init__"), None)
    if begins is not None:
        yield f"```python\n{_signature(begins, node.name)}\n```\n"
    elif bases := [ast.unparse(base) for base in node.bases]:
        yield f"```python\nclass {node.name}({', '.join(bases)})\n```\n"
    yield from _prose(ast.get_docstring(node) or "")
    fields = list(_fields(node))
    if fields:
        yield "\n".join(fields) + "\n"
    for method in node.body:
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
            if not method.name.startswith("_") and ast.get_docstring(method):
                yield f"```python\n{_signature(method, node.name)}\n```\n"
                yield from _prose(ast.get_docstring(method))


def _fields(node):
    for field, following in zip(node.body, [*node.body[1:], None], strict=True):
        match field:
            case ast.AnnAssign(target=ast.Name(name)) if not name.startswith("_"):
                told = _string(following)
                yield f"- `{ast.unparse(field)}`" + (f": {told}" if told else "")


def _signature(node, name=""):
    """The call as it is written, without self; of a class without what it returns."""
    called = f"{name}.{node.name}" if name and node.name != "__init__" else name or node.name
    begin = ("await " if isinstance(node, ast.AsyncFunctionDef) else "") + called
    end = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    if any(ast.unparse(decorator) == "property" for decorator in node.decorator_list):
        return begin + end
    given = list(_arguments(node.args))
    if given and given[0] in ("self", "cls"):
        given = given[1:]
    if given and given[0] == "/":
        given = given[1:]
    if len(begin) + len(", ".join(given)) + len(end) + 2 <= WIDTH:
        return f"{begin}({', '.join(given)}){end}"
    lines = _wrapped(f"{', '.join(one.replace(' ', GLUE) for one in given)},")
    return f"{begin}(\n{textwrap.indent(lines.replace(GLUE, ' '), '    ')}\n){end}"


def _arguments(arguments):
    """Each as in `name: type = default`, with the marks / and * between them."""
    ordered = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(ordered) - len(arguments.defaults)) + arguments.defaults
    for place, (one, default) in enumerate(zip(ordered, defaults, strict=True), 1):
        yield _argument(one, default)
        if place == len(arguments.posonlyargs):
            yield "/"
    if arguments.vararg:
        yield f"*{_argument(arguments.vararg)}"
    elif arguments.kwonlyargs:
        yield "*"
    for one, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _argument(one, default)
    if arguments.kwarg:
        yield f"**{_argument(arguments.kwarg)}"


def _argument(one, default=None):
    typed = f"{one.arg}: {ast.unparse(one.annotation)}" if one.annotation else one.arg
    if default is None:
        return typed
    shown = ast.unparse(default)
    shown = shown if '"' in shown else shown.replace("'", '"')
    return f"{typed} = {shown}" if one.annotation else f"{typed}={shown}"


def _wrapped(text):
    return textwrap.fill(text, WIDTH - 4, break_long_words=False, break_on_hyphens=False)


def _prose(docstring):
    """Paragraphs as they are; what is laid out in columns, trees and examples as code."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        laid_out = ">>>" in paragraph or re.search(r"\S {2,}\S|^ +\S|[├└]", paragraph, re.MULTILINE)
        if paragraph.strip():
            yield f"```text\n{paragraph}\n```\n" if laid_out else f"{paragraph}\n"
