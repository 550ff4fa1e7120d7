"""docs/performance.md says what is computed and counted now."""

import pytest

from traffic import page


@pytest.mark.parametrize("name", page.TABLES)
def test_the_page_is_up_to_date(name: str) -> None:
    assert page.stated(name) == page.TABLES[name](), "PYTHONPATH=tests python tests/traffic/table.py --write"
