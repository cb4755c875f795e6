"""Gold answers by another road than the families': from the drawn text alone."""

from collections.abc import Callable
from datetime import datetime
from random import Random

import pytest

from data.tasks.families.catalogue import FAMILIES
from data.tasks.words import spelled

UNITS = {("m", "cm"): 100, ("km", "m"): 1000, ("kg", "g"): 1000, ("cm", "mm"): 10, ("l", "ml"): 1000}


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.replace(",", " ").replace(".", " ").split() if word.isdigit()]


def insertion_sorted(text: str) -> str:
    done: list[int] = []
    for number in numbers(text):
        done.insert(sum(other < number for other in done), number)
    return ", ".join(map(str, done))


def without_repeats(text: str) -> str:
    kept = ""
    for item in text.split(", "):
        kept += "" if f", {item}," in f"{kept}," else f", {item}"
    return kept.removeprefix(", ")


def converted(text: str, small: str) -> str:
    number, large = text.split()
    return f"{int(number) * UNITS[large, small]} {small}"


ROADS: dict[str, Callable[[dict[str, str]], str]] = {
    "sort-numbers": lambda fields: insertion_sorted(fields["text"]),
    "sort-words": lambda fields: ", ".join(sorted(fields["text"].split(", "))),
    "reverse": lambda fields: ", ".join(reversed(fields["text"].split(", "))),
    "deduplicate": lambda fields: without_repeats(fields["text"]),
    "remove": lambda fields: f", {fields['text']},".replace(f", {fields['out']},", ",").strip(", "),
    "first-item": lambda fields: fields["text"].partition(",")[0],
    "nth-item": lambda fields: fields["text"].split(", ")[["first", "second", "third"].index(fields["place"])],
    "starts-with": lambda fields: next(w for w in fields["text"].split(", ") if w.startswith(fields["letter"])),
    "count": lambda fields: str(fields["text"].count(",") + 1),
    "join-with-and": lambda fields: " and ".join(fields["text"].rsplit(", ", 1)),
    "json-list": lambda fields: str(fields["text"].split(", ")).replace("'", '"'),
    "capitals": lambda fields: "".join(chr(ord(c) - 32) if c != " " else c for c in fields["text"]),
    "small-letters": lambda fields: "".join(chr(ord(c) + 32) if c != " " else c for c in fields["text"]),
    "rename": lambda fields: " ".join([fields["new"], *fields["text"].split()[1:]]),
    "extract-year": lambda fields: str(numbers(fields["text"])[-1]),
    "initials": lambda fields: "".join(f"{c}." for c in fields["text"] if c.isupper()),
    "surname-first": lambda fields: "{1}, {0}".format(*fields["text"].split()),
    "add": lambda fields: str(sum(numbers(fields["text"]))),
    "subtract": lambda fields: str(int.__sub__(*numbers(fields["text"]))),
    "next-number": lambda fields: str(len(range(int(fields["text"]))) + 1),
    "largest": lambda fields: insertion_sorted(fields["text"]).split(", ")[-1],
    "smallest": lambda fields: insertion_sorted(fields["text"]).split(", ")[0],
    "to-words": lambda fields: spelled(numbers(fields["text"])[0]) + " " + fields["text"].split()[1],
    "even-odd": lambda fields: "even" if fields["text"][-1] in "02468" else "odd",
    "units": lambda fields: converted(fields["text"], fields["small"]),
    "date": lambda fields: datetime.strptime(fields["text"], "%d %B %Y").date().isoformat(),
}


@pytest.mark.parametrize("name", ROADS)
def test_gold_answers_follow_from_the_text(name: str):
    for seed in range(60):
        draw = FAMILIES[name].draw(Random(seed))
        assert draw.gold == ROADS[name](dict(draw.fields)), draw.fields


def test_numbers_are_spelled_as_in_english():
    assert [spelled(number) for number in (0, 13, 20, 47, 99)] == [
        "zero",
        "thirteen",
        "twenty",
        "forty-seven",
        "ninety-nine",
    ]


@pytest.mark.parametrize(("family", "field"), [("who", "thing"), ("colour", "thing"), ("where", "name")])
def test_the_half_of_the_passage_that_is_asked_about_holds_the_gold_answer(family: str, field: str):
    for seed in range(60):
        draw = FAMILIES[family].draw(Random(seed))
        halves = [half.split() for half in draw.fields["text"].rstrip(".").split(" and ")]
        (half_asked,) = [half for half in halves if draw.fields[field] in half]
        assert draw.gold in half_asked


def test_yes_means_that_the_thing_is_named():
    for seed in range(60):
        draw = FAMILIES["yes-no"].draw(Random(seed))
        assert draw.gold == ("yes" if draw.fields["thing"] in draw.fields["text"].rstrip(".").split() else "no")


def test_unknown_means_that_the_thing_is_not_named():
    golds = set()
    for seed in range(60):
        draw = FAMILIES["unknown"].draw(Random(seed))
        named = draw.fields["thing"] in draw.fields["text"].split()
        assert draw.gold == (draw.fields["text"].split()[0] if named else "unknown")
        golds.add(draw.gold == "unknown")
    assert golds == {True, False}
