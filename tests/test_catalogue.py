"""Every row of the catalogue of inputs has a test that shows it."""

from tests import catalogue
from tests.catalogue import ROWS


def test_every_row_is_shown_by_a_test() -> None:
    assert list(ROWS) == list(range(1, 43))
    assert sorted(ROWS.keys() - {one.row for one in catalogue.shown()}) == []


def test_every_marker_names_a_row_and_says_what_is_asserted() -> None:
    found = list(catalogue.shown())
    assert [one for one in found if one.row not in ROWS or len(one.asserted) < 5] == []
    assert len({(one.row, one.test) for one in found}) == len(found)
