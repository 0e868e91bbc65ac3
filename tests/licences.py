"""What users install, and under which licences  (part of `make audit`).

    python tests/licences.py

Looks at the core and each extra with all that they bring, as it is installed here. Ends with 1 and
names where a licence is unknown, or asks more of users than to keep its text.
"""

from __future__ import annotations

import importlib.metadata as metadata
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = "memory-r1"
ALLOWED = frozenset(
    {
        *("MIT", "MIT-0", "MIT-CMU", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "ISC", "Apache-2.0"),
        *("PSF-2.0", "Python-2.0", "CNRI-Python", "Unlicense", "CC0-1.0", "Zlib", "BSL-1.0"),
        *("HPND", "MPL-2.0"),
    }
)
"""SPDX names. MPL-2.0 asks something only of who changes its files."""
EXCEPTIONS = {
    "psycopg": "LGPL-3.0-only",
    "psycopg-binary": "LGPL-3.0-only",
}
"""By name, with the licence that was agreed to: the driver of the extra [postgres], which is
installed beside us by who wants it, not copied, and can be exchanged for another build."""
TOLD = {
    **dict.fromkeys(("apache", "apache 2.0", "apache software license"), "Apache-2.0"),
    **dict.fromkeys(("apache license, version 2.0", "apache 2.0 license"), "Apache-2.0"),
    **dict.fromkeys(("bsd", "bsd license", "bsd 3-clause license"), "BSD-3-Clause"),
    **dict.fromkeys(("3-clause bsd license",), "BSD-3-Clause"),
    **dict.fromkeys(("mit license", "the mit license"), "MIT"),
    **dict.fromkeys(("mozilla public license 2.0 (mpl 2.0)",), "MPL-2.0"),
    **dict.fromkeys(("isc license", "isc license (iscl)"), "ISC"),
    **dict.fromkeys(("python software foundation license", "psfl"), "PSF-2.0"),
    **dict.fromkeys(("the unlicense (unlicense)",), "Unlicense"),
}
"""How older packages call them."""
ELSEWHERE = frozenset({"verl", "watch"})
"""Extras of which the usual environment doesn't hold everything."""


@dataclass(frozen=True)
class Found:
    """A package that users install."""

    name: str
    version: str
    """"" where it isn't installed here, so that nothing is known of it."""
    licence: str
    brought_by: tuple[str, ...]
    """"core", or names of extras."""

    @property
    def allowed(self) -> bool:
        """Whether anybody may install it without a second thought, or it was agreed to."""
        return EXCEPTIONS.get(self.name) == self.licence or allows(self.licence)


def allows(expression: str) -> bool:
    """Whether an SPDX expression can be kept with allowed licences alone; no for what isn't one."""
    words = re.findall(r"\(|\)|[^\s()]+", re.sub(r"\s+WITH\s+\S+", "", expression))
    place = 0

    def term() -> bool:
        nonlocal place
        word = words[place] if place < len(words) else ""
        place += 1
        if word != "(":
            return word in ALLOWED
        held = either()
        place += 1  # the bracket that closes it
        return held

    def both() -> bool:
        nonlocal place
        held = term()
        while place < len(words) and words[place] == "AND":
            place += 1
            held = term() and held
        return held

    def either() -> bool:
        nonlocal place
        held = both()
        while place < len(words) and words[place] == "OR":
            place += 1
            held = both() or held
        return held

    held = either()
    return held and place == len(words)


def licence_of(about: metadata.PackageMetadata) -> str:
    """An SPDX expression where one is stated, or understood; else the package's own words."""
    if stated := about["License-Expression"]:
        return str(stated)
    named = str(about["License"] or "").strip()
    # Some put the whole text there; its first line is the name.
    first = named.splitlines()[0].strip() if named else ""
    if (known := TOLD.get(first.lower(), first)) and allows(known):
        return known
    classes = [c.split(" :: ") for c in about.get_all("Classifier") or []]
    classed = [c[-1] for c in classes if c[0] == "License" and len(c) > 2]
    return " AND ".join(TOLD.get(c.lower(), c) for c in classed) or first or "unknown"


def brought(extra: str) -> set[str]:
    """The names of all that an extra brings; "core": what everybody installs."""
    found: set[str] = set()
    waiting = [(PACKAGE, "" if extra == "core" else extra)]
    seen = set(waiting)
    while waiting:
        name, asked = waiting.pop()
        for needed in _needs(name, asked):
            other = canonicalize_name(needed.name)
            found.add(other)
            for option in ("", *needed.extras):
                if (other, option) not in seen:
                    seen.add((other, option))
                    waiting.append((other, option))
    return found - {PACKAGE}


def _needs(name: str, extra: str) -> Iterator[Requirement]:
    """What a package requires here, for itself and with an extra."""
    about = _installed().get(name)
    for line in (about.requires or []) if about else []:
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate({"extra": extra}):
            yield needed


@cache
def _installed() -> dict[str, metadata.Distribution]:
    return {canonicalize_name(found.name): found for found in metadata.distributions()}


def everything() -> list[Found]:
    """All that users install, by name. The tools of development are not among it."""
    extras = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    by: dict[str, list[str]] = {}
    for extra in ("core", *(e for e in extras if e not in ("dev", "torture"))):
        for name in brought(extra):
            by.setdefault(name, []).append(extra)
    found = []
    for name, extras_of in sorted(by.items()):
        package = _installed().get(name)
        version = package.version if package else ""
        licence = licence_of(package.metadata) if package else "not installed here"
        shown = ("core",) if "core" in extras_of else tuple(extras_of)
        found.append(Found(name, version, licence, shown))
    return found


def unseen(found: Found) -> bool:
    """Whether it is only of extras that another environment holds."""
    return not found.version and ELSEWHERE.issuperset(found.brought_by)


def main() -> None:
    """Print the table."""
    found = everything()
    print("| package | version | licence | brought by |\n|---|---|---|---|")
    for one in found:
        print(f"| {one.name} | {one.version} | {one.licence} | {', '.join(one.brought_by)} |")
    apart = [one.name for one in found if unseen(one)]
    refused = [one for one in found if not one.allowed and not unseen(one)]
    if apart:
        print(f"\nnot installed here, so not looked at: {', '.join(apart)}", file=sys.stderr)
    for one in refused:
        print(
            f"{one.name}: licence {one.licence!r} is not on the list; expected one of "
            f"{', '.join(sorted(ALLOWED))}. Do without it, or agree to it in EXCEPTIONS",
            file=sys.stderr,
        )
    sys.exit(1 if refused else 0)


if __name__ == "__main__":
    main()
