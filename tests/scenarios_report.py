"""What the 29 scenarios give on each file system: `python -m tests.scenarios_report` runs them and prints a table."""

import sys
from collections.abc import Iterable, Iterator

import pytest

from tests.scenarios import HIDDEN, SCENARIOS

PROPERTY = "scenarios"
TEST = "tests/test_exactness.py::test_all_29_scenarios_give_the_right_index_after_one_scan"

Found = dict[str, dict[str, set[str]]]  # file system → when → scenarios that gave a wrong index or feed


def of_reports(reports: Iterable[object]) -> Found:
    """From the reports of the tests, as pytest has them."""
    found: Found = {}
    for report in reports:
        if getattr(report, "when", None) == "call":
            for name, value in report.user_properties:  # type: ignore[attr-defined]
                if name == PROPERTY:
                    kind, when, wrong = value
                    found.setdefault(kind, {})[when] = set(wrong)
    return found


def summary(found: Found) -> Iterator[str]:
    """A line a file system: how many of the scenarios were right, and which were not."""
    if found:
        yield f"{'right of ' + str(len(SCENARIOS)):<14}" + "".join(f"{when:>10}" for when in _whens(found))
    for kind, by_when in found.items():
        wrong = set().union(*by_when.values())
        told = {True: "  named: ", False: "  NOT named: "}
        counts = "".join(f"{len(SCENARIOS) - len(by_when[when]):>10}" for when in _whens(found) if when in by_when)
        rest = "".join(
            told[named] + ", ".join(names)
            for named in (True, False)
            if (names := sorted(name for name in wrong if (name in HIDDEN.get(kind, {})) == named))
        )
        yield f"{kind:<14}{counts}{rest}"


def table(found: Found) -> Iterator[str]:
    """Scenario × file system, in Markdown: right in how many of the ways to run it."""
    yield "| scenario | " + " | ".join(found) + " |"
    yield "|---" * (len(found) + 1) + "|"
    for name in SCENARIOS:
        cells = [
            f"{sum(name not in wrong for wrong in by_when.values())}/{len(by_when)}"
            + ("" if not any(name in wrong for wrong in by_when.values()) else
               " (named)" if name in HIDDEN.get(kind, {}) else " **wrong**")
            for kind, by_when in found.items()
        ]  # fmt: skip
        yield f"| {name} | " + " | ".join(cells) + " |"
    for name, why in {name: why for hidden in HIDDEN.values() for name, why in hidden.items()}.items():
        yield f"\n{name} (named): {why}."


def _whens(found: Found) -> list[str]:
    return list(dict.fromkeys(when for by_when in found.values() for when in by_when))


class _Collect:
    def __init__(self) -> None:
        self.reports: list[pytest.TestReport] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)


def main() -> int:
    collected = _Collect()
    status = pytest.main([TEST], plugins=[collected])
    print("\n".join(["", *table(of_reports(collected.reports))]))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
