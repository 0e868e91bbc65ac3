"""Requests made from our OpenAPI document: never a server error, never what it doesn't say."""

import re

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from made_server import serving
from schemathesis import checks
from schemathesis.specs.openapi import checks as of_schema

from memory_r1 import Memory
from memory_r1.serve.server.app import build

CHECKS = [
    checks.not_a_server_error,
    of_schema.status_code_conformance,
    of_schema.content_type_conformance,
    of_schema.response_headers_conformance,
    of_schema.response_schema_conformance,
    of_schema.unsupported_method,
]
OURS = "^/(v1/(?!chat|completions|responses|models)|mem0/|healthz|readyz|metrics)"
schema = schemathesis.openapi.from_dict(build(Memory("ram:")).openapi())


def play(examples):
    """Settings: the same requests each time, as many as that for an operation."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def url():
    """A server with something to find."""
    memory = Memory("ram:")
    for user in ("ann", "0"):
        memory.add("I play the oboe", user_id=user)
    with serving(memory, rate="") as url:
        yield url


def asking(label, examples):
    """A test of one operation."""

    @schema.include(name=label).parametrize()
    @play(examples)
    def test(case, url):
        case.call_and_validate(base_url=url, checks=CHECKS, timeout=120)

    return test


# Schemathesis would give all operations' tests one id, by which they are dealt out to the cores.
for label in (each.ok().label for each in schema.include(path_regex=OURS).get_all_operations()):
    name = re.sub(r"\W+", "_", label).strip("_")
    globals()[f"test_{name}_does_what_the_document_says"] = asking(label, 5)
    globals()[f"test_{name}_does_so_many_times"] = pytest.mark.slow(asking(label, 60))
