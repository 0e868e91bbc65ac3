"""Requests made from our OpenAPI document: never a server error, never what it doesn't say."""

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
schema = schemathesis.openapi.from_dict(build(Memory("ram:")).openapi()).include(path_regex=OURS)


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


@schema.parametrize()
@play(5)
def test_a_request_gets_what_the_document_says(case, url):
    case.call_and_validate(base_url=url, checks=CHECKS, timeout=120)


@pytest.mark.slow
@schema.parametrize()
@play(60)
def test_many_requests_get_what_the_document_says(case, url):
    case.call_and_validate(base_url=url, checks=CHECKS, timeout=120)
