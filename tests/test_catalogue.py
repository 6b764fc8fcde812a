"""Every row of the catalogue, of inputs and of faults, has a test that shows it."""

import pytest

from tests import catalogue
from tests.catalogue import FAULTS, ROWS

BOTH = pytest.mark.parametrize(("marker", "rows"), [("row", ROWS), ("fault", FAULTS)], ids=["inputs", "faults"])


def test_the_rows_are_those_of_the_catalogue() -> None:
    assert (list(ROWS), list(FAULTS)) == (list(range(1, 43)), list(range(1, 25)))


@BOTH
def test_every_row_is_shown_by_a_test_that_ci_runs(marker: str, rows: dict[int, str]) -> None:
    assert sorted(rows.keys() - {one.row for one in catalogue.shown(marker) if one.in_ci}) == []


@BOTH
def test_every_marker_names_a_row_and_says_what_is_asserted(marker: str, rows: dict[int, str]) -> None:
    found = list(catalogue.shown(marker))
    assert [one for one in found if one.row not in rows or len(one.asserted) < 5] == []
    assert len({(one.row, one.test, one.asserted) for one in found}) == len(found)
