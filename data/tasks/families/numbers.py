"""Numbers: small sums in words, comparison, spelling, units, dates."""

from collections.abc import Callable
from functools import partial
from random import Random

from data.tasks.answers import Literal, Number, OneOf
from data.tasks.family import Draw, Family
from data.tasks.forms import Form, digits, option
from data.tasks.words import ANIMALS, CLOTHES, FOODS, MONTHS, NAMES, THINGS, TOOLS, plural, spelled

_OWNED = tuple(plural(noun) for noun in (*TOOLS, *CLOTHES, *THINGS) if plural(noun) != noun)
_COUNTED = _OWNED + tuple(plural(noun) for noun in (*ANIMALS, *FOODS) if plural(noun) != noun)


def _number(value: int, operands: list[int], random: Random, **fields: str) -> Draw:
    """A number that follows from the operands; wrong ones are near it."""
    near = [value + step for step in (-10, -2, -1, 1, 2, 10)]
    wrong = [other for other in near if other > 0 and other not in operands]
    random.shuffle(wrong)
    return Draw(
        fields=fields,
        gold=str(value),
        wrong=tuple(map(str, wrong[:3])),
        answer=Number(value, operands),
        form=digits(),
    )


def _add(random: Random) -> Draw:
    have, more = random.randint(2, 20), random.randint(2, 9)
    name, things = random.choice(NAMES), random.choice(_OWNED)
    event = random.choice(["buys", "finds", "gets"])
    text = f"{name} has {have} {things} and {event} {more} more."
    return _number(have + more, [have, more], random, text=text, name=name, things=things)


def _subtract(random: Random) -> Draw:
    have = random.randint(6, 20)
    fewer = random.randint(2, have - 2)
    if have - fewer == fewer:
        return _subtract(random)
    name, things = random.choice(NAMES), random.choice(_OWNED)
    event = random.choice(["sells", "loses", "gives away"])
    text = f"{name} has {have} {things} and {event} {fewer}."
    return _number(have - fewer, [have, fewer], random, text=text, name=name, things=things)


def _next_number(random: Random) -> Draw:
    number = random.randint(11, 9998)
    return _number(number + 1, [number], random, text=str(number))


def _extreme(random: Random, *, most: Callable[[list[int]], int]) -> Draw:
    numbers = random.sample(range(2, 1000), 3)
    right = str(most(numbers))
    wrong = tuple(str(number) for number in numbers if str(number) != right)
    return Draw(
        fields={"text": ", ".join(map(str, numbers))},
        gold=right,
        wrong=wrong,
        answer=OneOf([right], wrong),
        form=digits(),
    )


def _to_digits(random: Random) -> Draw:
    number, other = random.sample(range(11, 100), 2)
    things = random.choice(_COUNTED)
    swapped = number // 10 + number % 10 * 10
    others = dict.fromkeys([other, swapped, number + 1])
    wrong = tuple(f"{value} {things}" for value in others if value != number)
    return Draw(
        fields={"text": f"{spelled(number)} {things}"},
        gold=f"{number} {things}",
        wrong=wrong,
        answer=Number(number),
        form=Form("[0-9]+ [a-z]+", 2),
    )


def _to_words(random: Random) -> Draw:
    number, other = random.sample(range(11, 100), 2)
    things = random.choice(_COUNTED)
    wrong = tuple(f"{spelled(value)} {things}" for value in (other, number - 1))
    return Draw(
        fields={"text": f"{number} {things}"},
        gold=f"{spelled(number)} {things}",
        wrong=wrong,
        answer=OneOf([f"{spelled(number)} {things}"], wrong),
        form=Form("[a-z]+(-[a-z]+)? [a-z]+", 3),
    )


def _even_odd(random: Random) -> Draw:
    number = random.randint(10, 99999)
    right, wrong = ("even", "odd") if number % 2 == 0 else ("odd", "even")
    return Draw(
        fields={"text": str(number)},
        gold=right,
        wrong=(wrong,),
        answer=OneOf([right], [wrong]),
        form=option("even", "odd"),
    )


_UNITS = (("m", "cm", 100), ("km", "m", 1000), ("kg", "g", 1000), ("cm", "mm", 10), ("l", "ml", 1000))
_MEASURES = ("m", "cm", "km", "kg", "g", "mm", "l", "ml")


def _units(random: Random) -> Draw:
    large, small, factor = random.choice(_UNITS)
    number = random.randint(2, 99)
    thing = random.choice(THINGS)
    right = f"{number * factor} {small}"
    others = dict.fromkeys([number * factor * 10, number * factor // 10, number])
    wrong = tuple(f"{value} {small}" for value in others)
    return Draw(
        fields={"text": f"{number} {large}", "thing": thing, "small": small},
        gold=right,
        wrong=wrong,
        answer=Literal(right, wrong, near=[str(number * factor), f"{number * factor}{small}"]),
        form=Form(rf"[0-9]+ (?:{'|'.join(_MEASURES)})", 2),
    )


def _date(random: Random) -> Draw:
    day, month, year = random.randint(1, 28), random.randint(1, 12), random.randint(1900, 2030)
    other = month % 12 + 1
    if day in (month, other):
        return _date(random)
    right = f"{year}-{month:02d}-{day:02d}"
    wrong = (f"{year}-{day:02d}-{month:02d}", f"{year}-{other:02d}-{day:02d}", f"{year + 1}-{month:02d}-{day:02d}")
    return Draw(
        fields={"text": f"{day} {MONTHS[month - 1]} {year}"},
        gold=right,
        wrong=wrong,
        answer=Literal(right, wrong, near=[f"{year}-{month}-{day}", f"{year}/{month:02d}/{day:02d}"]),
        form=Form("[0-9]{4}-[0-9]{2}-[0-9]{2}", 3),
    )


FAMILIES = (
    Family(
        name="add",
        draw=_add,
        templates=(
            "{text} How many {things} now? Answer with a number.",
            "Answer with a number. {text} How many {things} is that?",
            "{text} Give the total number of {things}.",
            "How many {things} does {name} have in the end? {text}",
            "{text} What is the sum, in digits?",
        ),
    ),
    Family(
        name="subtract",
        draw=_subtract,
        templates=(
            "{text} How many {things} are left? Answer with a number.",
            "Answer with a number. {text} How many remain?",
            "{text} Give the number of {things} left.",
            "How many {things} does {name} keep? {text}",
            "{text} What is the rest, in digits?",
        ),
    ),
    Family(
        name="next-number",
        draw=_next_number,
        templates=(
            "Which number comes right after {text}?",
            "Add one to {text}. Answer with the number.",
            "What is the next whole number after {text}?",
            "Count on by one from {text}:",
            "Give the number that follows {text}.",
        ),
    ),
    Family(
        name="largest",
        draw=partial(_extreme, most=max),
        templates=(
            "Which number is the largest? {text}",
            "Write only the biggest number: {text}",
            "Find the highest of these numbers. {text}",
            "What is the maximum of {text}?",
            "Name the greatest number here: {text}",
        ),
    ),
    Family(
        name="smallest",
        draw=partial(_extreme, most=min),
        templates=(
            "Which number is the smallest? {text}",
            "Write only the lowest number: {text}",
            "Find the smallest of these numbers. {text}",
            "What is the minimum of {text}?",
            "Of these numbers, give the smallest: {text}",
        ),
    ),
    Family(
        name="to-digits",
        draw=_to_digits,
        templates=(
            "Write the number in digits: {text}",
            "Use digits instead of words: {text}",
            "Replace the number word by digits. {text}",
            "Rewrite with a numeral: {text}",
            "Put the number into figures: {text}",
        ),
    ),
    Family(
        name="to-words",
        draw=_to_words,
        templates=(
            "Write the number in words: {text}",
            "Use words instead of digits: {text}",
            "Replace the digits by words. {text}",
            "Spell out the number: {text}",
            "How is this said in words? {text}",
        ),
    ),
    Family(
        name="even-odd",
        draw=_even_odd,
        templates=(
            "Is {text} even or odd?",
            "Even or odd: {text}",
            "Say whether {text} is even or odd, in one word.",
            "Answer even or odd for the number {text}.",
            "Would you call {text} an even or an odd number?",
        ),
    ),
    Family(
        name="units",
        draw=_units,
        templates=(
            "Convert to {small}: the {thing} measures {text}",
            "The {thing} comes to {text}. How much is that in {small}?",
            "For the {thing} we need {text}. Write it in {small}.",
            "Give {text} in {small}, for the {thing}.",
            "The list says {text} for the {thing}. Say it in {small}:",
        ),
    ),
    Family(
        name="date",
        draw=_date,
        templates=(
            "Write as YYYY-MM-DD: {text}",
            "Convert the date to the form YYYY-MM-DD. {text}",
            "Year-month-day, in digits: {text}",
            "Rewrite this date like 2001-02-03: {text}",
            "What is {text} in the format YYYY-MM-DD?",
        ),
    ),
)
