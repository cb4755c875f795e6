"""What a recipe's YAML may say, and what is refused with file and line."""

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field, model_validator

from onebase.errors import RecipeError
from onebase.recipe import reader
from onebase.recipe.sections import Section


class Train(Section):
    steps: int = 1
    """Optimiser steps."""
    rates: tuple[float, ...] = ()
    shuffled: bool = True
    warmup: float | None = None

    @model_validator(mode="after")
    def _fit_together(self) -> "Train":
        if self.warmup is not None and self.warmup > self.steps:
            raise ValueError(f"warmup={self.warmup} is longer than train.steps={self.steps}")
        return self


class Recipe(Section):
    value: Any = None
    names: tuple[str, ...] = ()
    train: Train = Train()


def read(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    return reader.read(tmp_path / "recipe.yaml", Recipe, overrides)


VALUES: dict[str, Any] = {
    **{"1e-4": 1e-4, "1E5": 1e5, ".5": 0.5, "-3.": -3.0, "0x1F": 31, "0o17": 15, "017": 17},
    **{"true": True, "False": False, "~": None, "null": None, "": None},
    # Texts, which YAML 1.1 would take for booleans, a date and a number of seconds.
    **{name: name for name in ("yes", "no", "on", "off", "2026-01-31", "12:30:45", "1.2.3")},
    **{"'1'": "1", '"off"': "off", "[1, a]": [1, "a"], "{a: 1}": {"a": 1}},
}


@pytest.mark.parametrize(("text", "value"), VALUES.items(), ids=map(repr, VALUES))
def test_values_are_those_of_yaml_1_2_in_a_file_and_in_an_override(tmp_path: Path, text: str, value: Any) -> None:
    for recipe in (read(tmp_path, f"value: {text}\n"), read(tmp_path, "value: 9\n", f"value={text}")):
        assert recipe.value == value
        assert type(recipe.value) is type(value)
    (tmp_path / "again.yaml").write_text(reader.dump(recipe), encoding="utf-8")
    assert reader.read(tmp_path / "again.yaml", Recipe) == recipe


def test_an_anchor_is_what_it_names(tmp_path: Path) -> None:
    recipe = read(tmp_path, "value: &rates [0.1, 0.2]\ntrain:\n  rates: *rates\n")
    assert recipe.train.rates == (0.1, 0.2)


REFUSED = {
    "an unknown key": ("names: []\ntrain:\n  stpes: 3\n", r"recipe\.yaml:3: train: unknown key 'stpes'; .*'steps'\?"),
    "a key given twice": (
        "train:\n  steps: 1\n  steps: 2\n",
        r"recipe\.yaml:3: the key 'steps' was given before, on line 2\. Remove one\.",
    ),
    "a wrong type": ("\ntrain:\n  steps: many\n", r"recipe\.yaml:3: train\.steps: .*integer.*, found 'many'"),
    "an element of a list": ("names:\n- a\n- 3\n", r"recipe\.yaml:3: names\.1: .*string.*, found 3"),
    "infinity": ("train:\n  rates: [.inf]\n", r"recipe\.yaml:2: train\.rates\.0: .*finite number"),
    "broken YAML": ("value: 1\nnames: [1\n", r"recipe\.yaml:3: not valid YAML: "),
    "an alias of nothing": ("value: *x\n", r"recipe\.yaml:1: not valid YAML: found undefined alias"),
    "an alias inside what it names": ("value: &x [*x]\n", r"recipe\.yaml: nested too deeply, or an alias"),
    "lists in each other": ("value: " + "[" * 5000, r"recipe\.yaml: nested too deeply"),
    "a control character": ("value: 1\nnames: [\x01]\n", r"recipe\.yaml:2: not valid YAML: the character #x0001"),
    "a Python object": ("value: !!python/object:os.system x\n", r"recipe\.yaml:1: not valid YAML: could not determine"),
    "two documents": ("value: 1\n---\nvalue: 2\n", r"recipe\.yaml:2: not valid YAML: "),
    "a list": ("- 1\n", r"recipe\.yaml: expected keys and values at the top, found sequence\."),
    "nothing": ("", r"recipe\.yaml: expected keys and values at the top, found nothing\."),
    "another version of YAML": ("%YAML 1.1\n---\nvalue: 1\n", r"recipe\.yaml:1: a recipe is YAML 1\.2"),
    "a version that is not known": ("\n%YAML 1.3\n---\nvalue: 1\n", r"recipe\.yaml:2: a recipe is YAML 1\.2"),
    "truth for a number": (
        "train:\n  steps: true\n",
        r"recipe\.yaml:2: train\.steps: input should be a number, found true",
    ),
    "truth in a list of numbers": (
        "train:\n  rates: [1, true]\n",
        r"recipe\.yaml:2: train\.rates\.1: input should be a number, found true",
    ),
    "truth where a number may be missing": ("train:\n  warmup: true\n", r"train\.warmup: input should be a number"),
    "a text of digits for a number": ("train:\n  steps: '10'\n", r"train\.steps: input should be a number, found '10'"),
    "a number for truth": ("train:\n  shuffled: 1\n", r"train\.shuffled: input should be true or false, found 1"),
    "a word for truth": ("train:\n  shuffled: off\n", r"train\.shuffled: input should be true or false, found 'off'"),
    "no truth value": ("value: !!bool maybe\n", r"recipe\.yaml: not valid YAML: "),
    "no integer": ('value: !!int ""\n', r"recipe\.yaml: not valid YAML: "),
    "no digits": ("value: 0x_\n", r"recipe\.yaml: not valid YAML: "),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, text)


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"value: \xe9\n")
    with pytest.raises(RecipeError, match=r"latin\.yaml: not UTF-8 text \(.* at byte 7\)"):
        reader.read(tmp_path / "latin.yaml", Recipe)
    with pytest.raises(RecipeError, match=r"none\.yaml: there is no such recipe"):
        reader.read(tmp_path / "none.yaml", Recipe)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train", "override 'train': expected key=value"),
        ("train.stpes=2", r"override 'train\.stpes=2': train: unknown key 'stpes'; did you mean 'steps'"),
        ("train.steps=many", r"override 'train\.steps=many': train\.steps: .*, found 'many'"),
        ("names.7=a", r"override 'names\.7=a': the list has 2 elements"),
        ("train.steps.x=1", r"^override 'train\.steps\.x=1': train\.steps: .*integer"),
        ("train.warmup.x=", r"^override 'train\.warmup\.x=': train\.warmup: "),
        ("names.a.b=1", r"override 'names\.a\.b=1': there is no 'a' to go into"),
    ],
)
def test_an_override_that_is_wrong_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, "names: [a, b]\n", override)


def test_a_wrong_element_is_one_error_and_its_list_is_not_called_empty(tmp_path: Path) -> None:
    class Filled(Section):
        rates: Annotated[tuple[float, ...], Field(min_length=1)]

    (tmp_path / "filled.yaml").write_text("rates: [a]\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"filled\.yaml:1: rates\.0: .*number") as refused:
        reader.read(tmp_path / "filled.yaml", Filled)
    assert "\n" not in str(refused.value)
    with pytest.raises(RecipeError, match=r"rates: .* at least 1 item"):
        reader.read(tmp_path / "filled.yaml", Filled, ["rates=[]"])


class Loose(Section):
    rate: float | None = None
    count: int = 1
    mixed: int | str = 0
    numbers: list[float] = []  # noqa: RUF012 - TRL's configs have lists


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("rate: 3", "rate", 3.0),
        ("rate: null", "rate", None),
        ("count: 1e2", "count", 100),
        ("mixed: '8'", "mixed", "8"),
        ("mixed: 8", "mixed", 8),
        ("numbers: [1, 2.5]", "numbers", [1.0, 2.5]),
    ],
)
def test_numbers_are_taken_in_every_spelling_of_theirs(tmp_path: Path, text: str, name: str, value: Any) -> None:
    (tmp_path / "loose.yaml").write_text(text, encoding="utf-8")
    taken = getattr(reader.read(tmp_path / "loose.yaml", Loose), name)
    assert taken == value and type(taken) is type(value)


def test_elements_of_lists_are_looked_at_too_and_named(tmp_path: Path) -> None:
    (tmp_path / "loose.yaml").write_text("numbers: [1, 2]\n", encoding="utf-8")
    for override, shown in (("numbers.1=true", "true"), ("numbers.1='2'", "'2'")):
        with pytest.raises(RecipeError) as refused:
            reader.read(tmp_path / "loose.yaml", Loose, [override])
        assert str(refused.value) == f"override '{override}': numbers.1: input should be a number, found {shown}"


def test_an_override_is_not_blamed_for_a_common_word(tmp_path: Path) -> None:
    class Whole(Section):
        out: str = ""
        value: int = 0

        @model_validator(mode="after")
        def _fail(self) -> "Whole":
            raise ValueError("value=0 is wrong. Leave it out")

    (tmp_path / "whole.yaml").write_text("value: 0\n", encoding="utf-8")
    with pytest.raises(RecipeError) as refused:
        reader.read(tmp_path / "whole.yaml", Whole, ["out=x"])
    assert ", override" not in str(refused.value)
    with pytest.raises(RecipeError, match=r"whole\.yaml, override 'value=3': value=0"):
        reader.read(tmp_path / "whole.yaml", Whole, ["value=3"])


def test_where_values_do_not_fit_together_the_override_of_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml:1, override 'train\.warmup=7': train: warmup=7\.0 is longer"):
        read(tmp_path, "train:\n  steps: 3\n", "value=1", "train.rates=[1.0]", "train.warmup=7")


def test_a_line_that_an_override_has_replaced_is_not_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^override 'train\.rates=\[x\]': train\.rates\.0: "):
        read(tmp_path, "train:\n  rates: [1.0]\n", "train.rates=[x]")
