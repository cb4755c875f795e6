"""docs/data.md has a line for every format, and its examples are what it says."""

import json
import re
from pathlib import Path

import pytest

from data.formats.table import FORMATS, build_all, candidates
from data.records import Demonstration, Prompt, Ranking
from onebase.errors import DataError

PAGE = Path(__file__).parents[3] / "docs" / "data.md"
CELL = re.compile(r"(?<!\\)\|")


def lines() -> dict[str, list[str]]:
    """The cells of each format's line, without the first."""
    lines_of = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            name, *rest = (cell.strip().replace("\\|", "|") for cell in CELL.split(line)[1:-1])
            assert name.strip("`") not in lines_of
            lines_of[name.strip("`")] = rest
    return lines_of


LINES = lines()


def test_every_format_has_a_line():
    assert set(LINES) == set(FORMATS)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_an_example_is_recognised_and_sound(name: str):
    fields, example, becomes = LINES[name]
    row = json.loads(example.strip("`"))
    assert FORMATS[name].keys <= set(row)
    assert fields
    for kind in FORMATS[name].makers:
        (format,) = candidates(row, kind)
        assert format.name == name or format.makers[kind] == FORMATS[name].makers[kind]
        try:
            list(build_all(iter([(1, row)]), kind, "f", format=name))
        except DataError as error:
            # The one example that is cut short: four completions would fill the page.
            assert name == "ultrafeedback" and "a ranking needs at least 2 responses" in str(error)
    assert becomes


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_what_a_row_becomes_is_named(name: str):
    becomes = LINES[name][2]
    if becomes == "the same":
        return
    named = {
        kind
        for letter, kind in (("P", Prompt), ("D", Demonstration), ("R", Ranking))
        if re.search(rf"\b{letter}\b", becomes)
    }
    assert named == set(FORMATS[name].makers)


@pytest.mark.parametrize("name", sorted(name for name, format in FORMATS.items() if format.options))
def test_options_are_named(name: str):
    line = " ".join(LINES[name])
    if LINES[name][2] != "the same":
        assert all(option in line for option in FORMATS[name].options)
