"""Whatever the row, and whatever is put into a valid one, it becomes records or a DataError that names its place."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.files.readers import reader_of
from data.formats.table import FORMATS, build, build_all
from data.records import Demonstration, Origin, Prompt, Ranking, Record, fingerprint
from onebase.errors import DataError

KINDS: list[Any] = [Prompt, Demonstration, Ranking]
KEYS = sorted(
    {key for format in FORMATS.values() for key in format.keys}
    | {"role", "content", "from", "value", "system", "score"}
)
HUGE = 10**400

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.just(HUGE)
    | st.text(max_size=8)
    | st.sampled_from(KEYS),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


def read_fixtures() -> dict[str, list[Any]]:
    folder = Path(__file__).parents[1] / "fixtures"
    rows = {}
    for name in FORMATS:
        (path,) = folder.glob(f"{name}.json*")
        read = reader_of(path)
        assert read is not None
        rows[name] = [row for _, row in read(path)]
    return rows


FIXTURES = read_fixtures()


def places_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a row."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path, *(place for key, inner_value in inner for place in places_in(inner_value, (*path, key)))]


def with_other(row: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    changed = copy.deepcopy(row)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return changed


def requires_records_or_data_error(rows: list[Any], kind: Any, format: str | None) -> None:
    """Each row by itself, all of them raising, and all of them counting."""
    records: list[Record] = []
    for row in rows:
        try:
            records += build(row, kind, Origin("f", 1), format=format)
        except DataError as error:
            assert str(error).startswith(("f:1:", "data: f: the format"))
    try:
        records += build_all(enumerate(rows, start=1), kind, "f", format=format)
    except DataError as error:
        assert str(error).startswith(("f:", "data: f: the format"))
    errors: list[DataError] = []
    notes: list[tuple[str, str]] = []
    try:
        records += build_all(
            enumerate(rows, start=1),
            kind,
            "f",
            format=format,
            report=errors.append,
            note=lambda reason, place: notes.append((reason, place)),
        )
    except DataError as error:
        assert str(error).startswith("data: f: the format")
    assert all(isinstance(record, kind) for record in records)
    assert all(str(error).startswith("f:") for error in errors)
    assert all(place.startswith("f:") for _, place in notes)
    fingerprint(records)  # whatever is in a record can be written down


SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
NAMED = st.none() | st.sampled_from(sorted(FORMATS))


def any_row_law(examples: int) -> Callable[..., None]:
    @settings(max_examples=examples, deadline=None, suppress_health_check=SLOW)
    @given(rows=st.lists(JSON, max_size=4), kind=st.sampled_from(KINDS), format=NAMED)
    def test(rows: list[Any], kind: Any, format: str | None) -> None:
        requires_records_or_data_error(rows, kind, format)

    return test


def changed_row_law(examples: int) -> Callable[..., None]:
    @settings(max_examples=examples, deadline=None, suppress_health_check=SLOW)
    @given(data=st.data(), name=st.sampled_from(sorted(FORMATS)), value=JSON, named=st.booleans())
    def test(data: st.DataObject, name: str, value: Any, named: bool) -> None:
        rows = list(FIXTURES[name])
        which = data.draw(st.integers(0, len(rows) - 1))
        places = places_in(rows[which])
        path = places[data.draw(st.integers(0, len(places) - 1))]
        rows[which] = with_other(rows[which], path, value)
        for kind in FORMATS[name].makers:
            requires_records_or_data_error(rows, kind, name if named else None)

    return test


test_any_json_becomes_records_or_a_data_error = any_row_law(200)
test_a_sound_row_with_anything_in_it_becomes_records_or_a_data_error = changed_row_law(200)
test_any_json_at_length = pytest.mark.slow(any_row_law(5000))
test_a_sound_row_with_anything_in_it_at_length = pytest.mark.slow(changed_row_law(5000))


VALUES = [None, True, float("nan"), HUGE, "", [], [None], {"a": 1}]


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_no_value_in_any_place_of_a_fixture_ends_in_a_traceback(name: str):
    first = FIXTURES[name][0]
    for path in places_in(first):
        for value in VALUES:
            changed = with_other(first, path, value)
            for kind in FORMATS[name].makers:
                errors: list[DataError] = []
                records = list(build_all(iter([(1, changed)]), kind, "f", format=name, report=errors.append))
                assert all(isinstance(record, kind) for record in records)
                assert all(str(error).startswith(("f:1: ", "f:1:")) for error in errors)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_no_key_of_a_fixture_can_be_lost_without_a_word(name: str):
    """A row without one of its format's keys is refused, whatever else it has."""
    for key in FORMATS[name].keys:
        row = {other: value for other, value in FIXTURES[name][0].items() if other != key}
        for kind in set(FORMATS[name].makers) - set(FORMATS[name].files):
            with pytest.raises(DataError, match=f"the row has no '{key}', which the format '{name}' needs"):
                list(build(row, kind, Origin("f", 1), format=name))


def test_rows_are_not_changed_by_reading_them():
    for name, rows in FIXTURES.items():
        before = json.dumps(rows)
        for kind in FORMATS[name].makers:
            list(build_all(enumerate(rows, start=1), kind, "f", format=name, report=lambda error: None))
        assert json.dumps(rows) == before
