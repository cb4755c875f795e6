from pathlib import Path

import pytest

from data.describe import TABLES, table

PAGES = {"tasks": "tasks.md", "problems": "verifiable.md"}


@pytest.mark.parametrize("name", TABLES)
def test_a_page_shows_the_families_as_they_are(name: str):
    page = Path(__file__).parents[2] / "docs" / PAGES[name]
    assert table(name) in page.read_text("utf-8"), f"run `python -m data.describe {name}` and put its table into {page}"
