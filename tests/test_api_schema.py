"""Schemathesis against the API on PostgreSQL and SQLite: no 5xx, and every answer as its schema says.

SCHEMATHESIS_EXAMPLES=200 goes deeper; `make test` tries a few of each call.
"""

import os

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks
from schemathesis.specs.openapi import checks as of_answers

from db.engine import writing
from db.tables import scans as scans_table
from tests.api import ADMIN, Api, scanned
from tests.api import api as api

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "4"))
CHECKS = [
    checks.not_a_server_error,
    of_answers.status_code_conformance,
    of_answers.content_type_conformance,
    of_answers.response_headers_conformance,
    of_answers.response_schema_conformance,
]
# Streams go on for as long as a scan does: tests of their own follow them.
STREAMS = ("/v1/scans/{scan}/events",)
# What is drawn seldom is a folder that exists, or all of a change; and that scan has ended.
SELDOM = {"POST /v1/tenants", "PATCH /v1/tenants/{name}", "POST /v1/scans/{scan}/cancel"}
SELDOM |= {f"{method} /v1/tenants/{{name}}/webhook" for method in ("GET", "PUT")}  # and an address that can be one
# Afterwards it is gone.
LAST = "DELETE /v1/tenants/{name}"


def test_whatever_is_asked_is_answered_as_the_schema_says(api: Api) -> None:
    scan = scanned(api.engine, "known")
    with writing(api.engine) as connection:
        connection.execute(scans_table.update().values(state="suspect"))
    schema = schemathesis.openapi.from_url(f"{api.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    operations.sort(key=lambda one: one.label == LAST)
    succeeded = {
        one.label: ask(one, {"name": "known", "scan": scan}) for one in operations if one.path not in STREAMS
    }  # fmt: skip
    assert len(succeeded) == len(operations) - len(STREAMS) and set(succeeded) > {LAST}
    assert {label for label, any_did in succeeded.items() if not any_did} <= SELDOM, succeeded


def ask(operation: schemathesis.schemas.APIOperation, known: dict[str, str]) -> bool:
    """Was one of the answers that of success?"""
    turns, statuses = iter(range(1 << 30)), set()

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES < 50,
        suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate],
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def each(case: schemathesis.Case) -> None:
        case.headers["Authorization"] = f"Bearer {ADMIN}"
        for name in set(case.path_parameters) & set(known):
            if next(turns) % 3:  # most of the time something that is there
                case.path_parameters[name] = known[name]
        answer = case.call()
        case.validate_response(answer, checks=CHECKS)
        statuses.add(answer.status_code)

    each()
    return any(200 <= status < 300 for status in statuses)
