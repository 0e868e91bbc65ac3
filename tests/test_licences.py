"""What users install may be installed by anybody, and the build installs nothing else."""

from email.message import Message
from pathlib import Path

import licences
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PINS = Path(__file__).parents[1] / "constraints.txt"


def pinned():
    lines = [line for line in PINS.read_text("utf-8").splitlines() if not line.startswith("#")]
    return {canonicalize_name((pin := Requirement(line)).name): pin.specifier for line in lines}


def test_the_licences_of_all_that_users_install_are_known_and_allowed():
    found = licences.everything()
    assert {"numpy", "httpx"} <= {one.name for one in found if one.brought_by == ("core",)}
    assert len(found) > 40
    assert [one for one in found if not one.allowed and not licences.unseen(one)] == []


def test_all_that_users_install_is_pinned_for_the_build():
    pins = pinned()
    missing = [
        one.name
        for one in licences.everything()
        if not licences.unseen(one) and one.name not in pins
    ]
    assert missing == []
    assert all(str(of).startswith("==") for of in pins.values())


@pytest.mark.parametrize(
    ("expression", "fine"),
    [
        ("MIT", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("GPL-3.0-only OR MIT", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-3.0-only", False),
        ("MIT AND GPL-2.0-or-later", False),
        ("(MIT OR Apache-2.0) AND AGPL-3.0-only", False),
        ("LGPL-3.0-only", False),
        ("Custom License", False),
        ("unknown", False),
        ("", False),
        ("MIT )", False),
    ],
)
def test_an_expression_is_allowed_when_some_way_to_keep_it_is(expression, fine):
    assert licences.allows(expression) is fine


def about(**headers):
    message = Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return message


def test_older_ways_to_state_a_licence_are_understood_and_nothing_is_guessed():
    text = "MIT License\n\nCopyright (c) 2024 Somebody"
    assert licences.licence_of(about(License=text)) == "MIT"
    classified = "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"
    assert "GNU" in licences.licence_of(about(Classifier=classified))
    assert not licences.allows(licences.licence_of(about(Classifier=classified)))
    assert licences.licence_of(about(Name="x")) == "unknown"


def test_a_copyleft_or_unknown_licence_is_named_and_fails(monkeypatch, capsys):
    copyleft = licences.Found("viral", "1.0", "GPL-3.0-only", ("core",))
    absent = licences.Found("absent", "", "not installed here", ("serve",))
    monkeypatch.setattr(licences, "everything", lambda: [copyleft, absent])
    with pytest.raises(SystemExit) as ended:
        licences.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "viral: licence 'GPL-3.0-only'" in said and "absent" in said


def test_what_was_agreed_to_was_agreed_to_under_one_licence():
    assert licences.Found("psycopg", "3", "LGPL-3.0-only", ("postgres",)).allowed
    assert not licences.Found("psycopg", "4", "GPL-3.0-only", ("postgres",)).allowed
