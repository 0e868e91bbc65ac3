"""What a store holds, in numbers: counted where it lies, so that no text is read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self


@dataclass(frozen=True)
class Counts:
    """How much some owners have."""

    owners: int = 0
    entries: int = 0
    """Current ones, also those that have expired."""
    superseded: int = 0
    operations: Mapping[str, int] = field(default_factory=dict)
    """Journal rows by operation."""
    proposals: int = 0
    """Journal rows that wait for a person."""
    messages: Mapping[str, int] = field(default_factory=dict)
    """By state."""
    feedback: int = 0
    usage: Mapping[str, int] = field(default_factory=dict)
    """What the messages took, by its name in `Message.usage`."""

    @classmethod
    def of(cls, rows: Iterable[tuple[Any, ...]]) -> Self:
        """The sum of rows (what, name, number), as the queries below group them."""
        found: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for what, name, number in rows:
            found[what][name] += number
        return cls(
            operations=dict(found["operations"]),
            messages=dict(found["messages"]),
            usage=dict(found["usage"]),
            **dict(found[""]),
        )


# To read a body as JSON takes long, and PostgreSQL refuses those with a NUL. As codec.py writes
# them, the operation follows the id, in which a quote would be escaped: what introduces it is there
# for the first time. The usage, which is numbers, ends a message: there for the last time.
_OP = '","op":"'
IN_SQLITE: Final = (
    # Materialized: the sort behind a GROUP BY would carry the bodies along.
    "WITH these AS (SELECT value FROM json_each(?)), ops AS MATERIALIZED (SELECT state,"
    f" CAST(substr(body, instr(body, '{_OP}') + {len(_OP)}, 8) AS TEXT) AS op"
    " FROM journal WHERE owner IN these)"
    " SELECT '', iif(current, 'entries', 'superseded'), count(*) FROM heads"
    " WHERE owner IN these AND version > 0 GROUP BY current"
    " UNION ALL SELECT 'operations', substr(op, 1, instr(op, '\"') - 1) AS name, count(*) FROM ops"
    " GROUP BY name"
    " UNION ALL SELECT '', 'proposals', count(*) FROM ops WHERE state = 'proposed'"
    " UNION ALL SELECT 'messages', state, count(*) FROM messages WHERE owner IN these"
    " GROUP BY state"
    " UNION ALL SELECT 'usage', u.key, sum(u.value) FROM messages,"
    " json_each(iif(typeof(body) = 'text', body, CAST(body AS TEXT)), '$.usage') u"
    " WHERE owner IN these GROUP BY u.key"
    " UNION ALL SELECT '', 'feedback', count(*) FROM feedback WHERE owner IN these"
)
"""What the owners have whose numbers are given as a JSON list."""

_OF = "owner IN (SELECT number FROM these)"
IN_POSTGRES: Final = (
    "ops AS (SELECT state, split_part(convert_from(substring(body FROM"
    f" position('{_OP}'::bytea IN body) + {len(_OP)} FOR 8), 'LATIN1'), '\"', 1) AS op"
    f" FROM journal WHERE {_OF}),"
    f" live AS MATERIALIZED (SELECT count(*) AS n FROM versions WHERE {_OF} AND current)"
    " SELECT '', 'owners', count(*) FROM these"
    " UNION ALL SELECT '', 'entries', n FROM live"
    " UNION ALL SELECT '', 'superseded', count(*) - (SELECT n FROM live) FROM heads"
    f" WHERE {_OF} AND version > 0"
    " UNION ALL SELECT 'operations', op, count(*) FROM ops GROUP BY op"
    " UNION ALL SELECT '', 'proposals', count(*) FROM ops WHERE state = 'proposed'"
    f" UNION ALL SELECT 'messages', state, count(*) FROM messages WHERE {_OF} GROUP BY state"
    # As LATIN1, which any bytes are: a body may hold half of a surrogate pair.
    " UNION ALL SELECT 'usage', u.key, sum(u.value::bigint)::bigint FROM messages,"
    " json_each_text(left(split_part(convert_from(body, 'LATIN1'), '\"usage\":', -1), -1)::json) u"
    f" WHERE {_OF} GROUP BY u.key"
    f" UNION ALL SELECT '', 'feedback', count(*) FROM feedback WHERE {_OF}"
)
"""What the owners have whose numbers the table `these` holds; stands behind its definition."""
