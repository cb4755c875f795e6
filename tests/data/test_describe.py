from pathlib import Path

from data.tasks.describe import tasks

PAGE = Path(__file__).parents[3] / "docs" / "tasks.md"


def test_the_page_shows_the_families_as_they_are():
    assert tasks() in PAGE.read_text("utf-8"), (
        "run `python -m data.tasks.describe` and put its table into docs/tasks.md"
    )
