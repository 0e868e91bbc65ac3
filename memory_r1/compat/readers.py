"""What mem0, Letta and LangGraph kept -> records, from files or from their own objects.

All of it is read before anything is written: a record that can't be read is named by its number,
and nothing has happened.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from memory_r1.compat import items
from memory_r1.compat.banks import NO_USER, end_of
from memory_r1.compat.importers import Found, Record, Said
from memory_r1.errors import ConfigError, DataError
from memory_r1.extract import moment_of
from memory_r1.types import Owner, Turn

_KNOWN_TO_MEM0: Final = frozenset(
    "id memory data text hash metadata score created_at updated_at user_id agent_id run_id "
    "actor_id role expiration_date text_lemmatized score_details event".split()
)


def read_json(path: Path) -> Any:
    """What a JSON file holds, or a file with one JSON document per line; DataError."""
    expected = "a JSON file"
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error, expected) from error
    if not text.strip():
        raise DataError(f"{path} is empty; expected {expected}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        whole = error
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        raise DataError(f"{path} is not JSON: {whole}") from whole


def unreadable(path: Path, error: OSError | UnicodeDecodeError, expected: str) -> DataError:
    """Why a file can't be read, in a sentence that names it and says what was expected."""
    match error:
        case FileNotFoundError():
            return DataError(f"there is no file {path}; expected {expected}")
        case IsADirectoryError():
            return DataError(f"{path} is a folder; expected {expected}")
        case UnicodeDecodeError():
            return DataError(f"{path} can't be read: it is not UTF-8 text; expected {expected}")
    return DataError(f"{path} can't be read: {str(error.strerror).lower()}; expected {expected}")


def _numbered(found: object, what: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The records of a list with their numbers from 1; DataError for what is none."""
    if not isinstance(found, list):
        raise DataError(f"expected {what}, got {_short(found)}")
    for number, record in enumerate(found, 1):
        if not isinstance(record, Mapping):
            raise DataError(f"record {number}: expected an object, got {_short(record)}")
        yield number, record


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return "an object with " + (", ".join(map(str, list(value)[:8])) or "nothing")
    return f"{value!r:.80}"


def _moment(number: int, record: Mapping[str, Any], name: str) -> datetime | None:
    value = record.get(name)
    if value in (None, ""):
        return None
    try:
        return moment_of(value)
    except ConfigError as error:
        raise DataError(f"record {number}: {name}: {error}") from error


def _text(number: int, record: Mapping[str, Any], names: Sequence[str]) -> str:
    for name in names:
        if isinstance(text := record.get(name), str) and text.strip():
            return text
    raise DataError(
        f"record {number}: expected a text as {' or '.join(names)}, got {_short(record)}"
    )


# mem0


def read_mem0(source: Any, *, user: str = "", history: Path | None = None) -> Found:
    """The memories of mem0.

    source: what `get_all` returned (either form), or a `mem0.Memory` itself, which brings its
    history along. user: whose they become; by default whose they were. history: mem0's history
    database, for how they read before. DataError with the number of what can't be read.
    """
    before: Callable[[str], list[Mapping[str, Any]]]
    if hasattr(source, "vector_store"):
        listed, before = _mem0_rows(source), source.db.get_history
    else:
        listed = source
        rows = _history_rows(history) if history else {}
        before = lambda known: rows.get(known, [])  # noqa: E731
    if isinstance(listed, Mapping):
        listed = listed.get("results", listed.get("memories", listed))
    found = Found()
    for number, item in _numbered(listed, '{"results": [...]} or a list, as get_all gives it'):
        found.records.append(_mem0_record(number, item, user, before))
    return found


def _mem0_rows(memory: Any) -> list[Mapping[str, Any]]:
    """Everything in mem0's vector store, as get_all would show it."""
    listed = memory.vector_store.list(filters=None, top_k=10_000_000)
    rows = listed[0] if listed and isinstance(listed[0], list) else listed
    core = {"data", "hash", "text_lemmatized"}
    shown: list[Mapping[str, Any]] = []
    for row in rows:
        payload = dict(row.payload or {})
        told = {name: value for name, value in payload.items() if name in _KNOWN_TO_MEM0 - core}
        rest = {name: value for name, value in payload.items() if name not in _KNOWN_TO_MEM0}
        shown.append({**told, "id": str(row.id), "memory": payload.get("data"), "metadata": rest})
    return shown


def _history_rows(path: Path) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of mem0's history database by memory, in order."""
    if not path.is_file():
        raise DataError(f"{path} is not there; expected mem0's history_db_path")
    rows: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as file:
            file.row_factory = sqlite3.Row
            for row in file.execute(
                "SELECT memory_id, new_memory, created_at, updated_at FROM history"
                " ORDER BY created_at, datetime(updated_at), rowid"
            ):
                rows[str(row["memory_id"])].append(dict(row))
    except sqlite3.Error as error:
        raise DataError(f"{path} is not mem0's history database: {error}") from error
    return rows


def _mem0_record(
    number: int,
    item: Mapping[str, Any],
    user: str,
    before: Callable[[str], list[Mapping[str, Any]]],
) -> Record:
    text = _text(number, item, ("memory", "data", "text"))
    known = str(item.get("id") or items.digest(json.dumps(item, sort_keys=True, default=str)))
    ids = [str(item.get(name) or "") for name in ("user_id", "agent_id", "run_id")]
    if not user and not any(ids):
        raise DataError(f"record {number} names no user_id, agent_id or run_id; give --user")
    metadata = item.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise DataError(f"record {number}: metadata is {_short(metadata)}; expected an object")
    rest = {name: item[name] for name in item.keys() - _KNOWN_TO_MEM0 if item[name] is not None}
    if item.get("role"):
        rest["role"] = item["role"]
    created, updated = _moment(number, item, "created_at"), _moment(number, item, "updated_at")
    versions: list[tuple[str, datetime | None]] = []
    for row in before(known):
        said = row.get("new_memory")
        if isinstance(said, str) and said.strip() and (not versions or versions[-1][0] != said):
            at = _moment(number, row, "updated_at") or _moment(number, row, "created_at")
            versions.append((said, at))
    if not versions or versions[-1][0] != text:
        versions.append((text, updated if versions else created))
    return Record(
        "mem0",
        known,
        Owner(user or ids[0] or NO_USER, ids[1], ids[2]),
        tuple(versions),
        said=created,
        speaker=str(item.get("actor_id") or ""),
        metadata={**metadata, **rest},
        expires=_last_day(number, item.get("expiration_date")),
    )


def _last_day(number: int, day: Any) -> datetime | None:
    """The end of a memory's last day."""
    if day in (None, ""):
        return None
    try:
        return end_of(str(day)[:10])
    except ValueError as error:
        raise DataError(f"record {number}: expiration_date: {error}") from error


# Letta


def read_letta(source: Any, *, user: str) -> Found:
    """The memory of Letta's agents.

    source: an agent file (.af), today's form or the older one, or the list that the archival
    memory of an agent is given as. user: whose memory it becomes. Blocks and passages are kept as
    they are; messages of users and assistants are to be read. The persona, being an instruction,
    is left out.
    """
    found = Found()
    if isinstance(source, list):
        _read_passages(found, source, user, "")
        return found
    if not isinstance(source, Mapping) or not source.keys() & {"agents", "core_memory"}:
        raise DataError(
            'expected an agent file with "agents" (or the older "core_memory"), or a list of '
            f"passages, got {_short(source)}"
        )
    agents = source.get("agents", [source])
    shared = {block.get("id"): block for _, block in _numbered(source.get("blocks", []), "blocks")}
    for _, agent in _numbered(agents, "agents"):
        name = str(agent.get("name") or "")
        own = [*(agent.get("core_memory") or []), *(agent.get("memory_blocks") or [])]
        blocks = own + [shared[known] for known in agent.get("block_ids") or [] if known in shared]
        _read_blocks(found, blocks, user, name)
        _read_messages(found, agent.get("messages") or [], user, name)
        passages = agent.get("passages") or agent.get("archival_memory") or []
        _read_passages(found, passages, user, name)
    _read_passages(found, source.get("passages") or [], user, "")
    return found


def _read_blocks(found: Found, blocks: list[Any], user: str, agent: str) -> None:
    for number, block in _numbered(blocks, "blocks"):
        label, value = str(block.get("label") or ""), block.get("value")
        if label == "persona":
            found.skipped["persona: an instruction, put it into your system prompt"] += 1
        elif not isinstance(value, str) or not value.strip():
            found.skipped["empty block"] += 1
        else:
            # Their ids are numbers within the file; what a block says is what it is.
            known = items.digest(json.dumps([agent, label, value]))
            at = _moment(number, block, "updated_at") or _moment(number, block, "created_at")
            metadata = {"letta": "block", "agent": agent, "label": label}
            found.records.append(
                Record("letta", known, Owner(user), ((value.strip(), at),), metadata=metadata)
            )


def _read_passages(found: Found, passages: list[Any], user: str, agent: str) -> None:
    for number, passage in _numbered(passages, "passages"):
        text = _text(number, passage, ("text", "content"))
        created = _moment(number, passage, "created_at")
        metadata = {"letta": "passage", "agent": agent}
        if passage.get("tags"):
            metadata["tags"] = passage["tags"]
        known = str(passage.get("id") or items.digest(json.dumps([agent, text])))
        given = passage.get("metadata") or passage.get("metadata_") or {}
        found.records.append(
            Record(
                "letta",
                known,
                Owner(user),
                ((text.strip(), created),),
                said=created,
                metadata={**given, **metadata},
            )
        )


def _read_messages(found: Found, messages: list[Any], user: str, agent: str) -> None:
    for number, message in _numbered(messages, "messages"):
        role = message.get("role")
        texts = _said(message) if role in ("user", "assistant") else []
        if not texts:
            found.skipped["message without words of user or assistant"] += 1
        at = _moment(number, message, "created_at")
        for text in texts:
            known = items.digest(json.dumps([agent, role, str(at), text]))
            speaker = str(message.get("name") or (user if role == "user" else agent or role))
            turn = Turn(speaker, text, at, role=str(role))
            metadata = {"letta": "message", "agent": agent}
            found.records.append(Said("letta", known, Owner(user), turn, metadata))


def _said(message: Mapping[str, Any]) -> list[str]:
    """What a message says to the other side: no events, no thoughts, no calls of other tools."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        content = "\n".join(part for part in parts if isinstance(part, str))
    texts = [content] if isinstance(content, str) else []
    calls = message.get("tool_calls") or []
    spoken = [call.get("function") or {} for call in calls if isinstance(call, Mapping)]
    if spoken:  # text beside a call is a thought; what is said is what was sent
        sent = [call.get("arguments") for call in spoken if call.get("name") == "send_message"]
        texts = [text for text in map(_packed, sent) if text]
    elif message.get("role") == "user":
        texts = [text for text in map(_packed, texts) if text]
    return [text.strip() for text in texts if text.strip()]


def _packed(text: Any) -> str:
    """The words in the JSON that Letta wraps them in; "" for its own events, as heartbeats."""
    if not isinstance(text, str):
        return ""
    try:
        packed = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(packed, dict) or "message" not in packed:
        return text
    said = packed["message"] if packed.get("type", "user_message") == "user_message" else ""
    return said if isinstance(said, str) else ""


# LangGraph


def read_langgraph(source: Any, *, user: str = "") -> Found:
    """The items of a LangGraph store.

    source: a `BaseStore`, or a list of `item.dict()`, by itself or under "items". user: whose
    memory they become, with namespace and value in the metadata; by default every namespace stays
    one, as `compat.langgraph` keeps it.
    """
    if hasattr(source, "list_namespaces"):
        listed: Any = [item.dict() for item in source.search((), limit=1_000_000_000)]
    else:
        listed = source.get("items", source) if isinstance(source, Mapping) else source
    found = Found()
    for number, item in _numbered(listed, "a list of items, as item.dict() gives them"):
        found.records.append(_langgraph_record(number, item, user))
    return found


def _langgraph_record(number: int, item: Mapping[str, Any], user: str) -> Record:
    namespace, key, value = item.get("namespace"), item.get("key"), item.get("value")
    if not (isinstance(namespace, list | tuple) and namespace and isinstance(value, Mapping)):
        raise DataError(f"record {number}: expected namespace, key and value, got {_short(item)}")
    labels = tuple(map(str, namespace))
    if any("." in label or not label for label in labels):
        raise DataError(f"record {number}: a label of {labels} is empty or holds a period")
    updated = _moment(number, item, "updated_at")
    created = _moment(number, item, "created_at") or updated or datetime.now(UTC)
    try:
        told = items.written(str(key), value, created, safe=False)
    except ConfigError as error:
        raise DataError(f"record {number}: {error}") from error
    metadata = {"namespace": list(labels), "value": value} if user else told.metadata
    return Record(
        "langgraph",
        json.dumps([*labels, str(key)], ensure_ascii=False),
        Owner(user or items.user_of(labels)),
        ((told.text, updated),),
        metadata=metadata,
    )
