"""Word problems: one to three steps of arithmetic in small numbers, told as a story."""

from functools import partial
from random import Random

from data.problems.solution import Step, value_of, worked
from data.tasks.family import Draw, Family
from data.tasks.words import CLOTHES, NAMES, THINGS, TOOLS, plural

_THINGS = tuple(plural(noun) for noun in (*TOOLS, *CLOTHES, *THINGS) if plural(noun) != noun)
_PLACES = ("boxes", "bags", "baskets", "drawers", "rows")


def _told(random: Random, **numbers: int) -> dict[str, str]:
    """What a story is filled with: two names, things, where they are, and the numbers."""
    name, other = random.sample(NAMES, 2)
    words = {"name": name, "other": other, "things": random.choice(_THINGS), "places": random.choice(_PLACES)}
    return words | {key: str(number) for key, number in numbers.items()}


def _story(random: Random, *, steps: str, most_gone: int = 0, **ranges: tuple[int, int]) -> Draw:
    """Numbers within their ranges, and steps such as `have + more, _ - gone`, where _ is the result of the step before.

    most_gone: the most that may go; something is always left.
    """
    numbers = {name: random.randint(*limits) for name, limits in ranges.items()}
    calculation: list[Step] = []
    for first, sign, second in (step.split() for step in steps.split(", ")):
        if second == "gone":
            numbers["gone"] = random.randint(1, min(most_gone, numbers[first] - 1))
        calculation.append((numbers[first], sign, numbers[second]))
        numbers["_"] = value_of(calculation[-1])
    del numbers["_"]
    return worked(*calculation, **_told(random, **numbers))


def _change(random: Random) -> Draw:
    count, price = random.randint(2, 4), random.randint(2, 5)
    paid = count * price + random.randint(1, 9)
    return worked((count, "*", price), (paid, "-", count * price), **_told(random, count=count, price=price, paid=paid))


FAMILIES = (
    Family(
        name="gain",
        draw=partial(_story, steps="have + more", have=(2, 9), more=(1, 9)),
        templates=(
            "{name} has {have} {things} and buys {more} more. How many {things} does {name} have now?",
            "There are {have} {things} on the shelf. {name} adds {more}. How many are there now?",
            "{name} found {have} {things} in the morning and {more} in the afternoon. How many in all?",
            "{other} gives {name} {more} {things}. {name} had {have} of them before. How many has {name} after that?",
        ),
    ),
    Family(
        name="loss",
        draw=partial(_story, steps="have - gone", most_gone=9, have=(4, 15)),
        templates=(
            "{name} has {have} {things} and gives {gone} of them to {other}. How many {things} are left?",
            "A shop had {have} {things} and sold {gone}. How many {things} does it still have?",
            "Of {have} {things}, {name} lost {gone}. How many does {name} still have?",
            "{gone} of the {have} {things} in the house are broken. How many are not?",
        ),
    ),
    Family(
        name="groups",
        draw=partial(_story, steps="count * each", count=(2, 5), each=(2, 5)),
        templates=(
            "There are {count} {places} with {each} {things} each. How many {things} are there?",
            "{name} fills {count} {places} with {each} {things} each. How many {things} is that?",
            "{name} buys {each} {things} a day for {count} days. How many {things} does {name} buy?",
            "{count} friends bring {each} {things} each. How many {things} do they bring?",
        ),
    ),
    Family(
        name="gain-and-loss",
        draw=partial(_story, steps="have + more, _ - gone", most_gone=6, have=(2, 9), more=(1, 6)),
        templates=(
            "{name} had {have} {things}, bought {more} more and lost {gone}. How many {things} are left?",
            "There were {have} {things} in a box. {name} put in {more} and {other} took {gone} out. "
            "How many are in it?",
            "{name} has {have} {things}. {other} brings {more} more, then {gone} are sold. How many are there now?",
            "A shop with {have} {things} gets {more} new ones and sells {gone}. How many does it have in the evening?",
        ),
    ),
    Family(
        name="groups-and-loose",
        draw=partial(_story, steps="count * each, _ + loose", count=(2, 4), each=(2, 5), loose=(1, 6)),
        templates=(
            "{name} has {count} {places} with {each} {things} each and {loose} more. How many {things} in all?",
            "There are {each} {things} in each of {count} {places}, and {loose} on the floor. How many are there?",
            "{name} buys {count} packs of {each} {things} and {loose} single ones. How many {things} is that?",
            "{loose} {things} lie on the table, and {count} {places} hold {each} each. How many {things} are there?",
        ),
    ),
    Family(
        name="together",
        draw=partial(_story, steps="have + more, have + _", have=(2, 6), more=(1, 5)),
        templates=(
            "{name} has {have} {things}. {other} has {more} more than {name}. How many do they have together?",
            "{name} sold {have} {things} and {other} {more} more than that. How many did they sell together?",
            "On Monday {name} made {have} {things}, on Tuesday {more} more than on Monday. How many on both days?",
            "{other} owns {more} {things} more than {name}, who owns {have}. How many do the two own?",
        ),
    ),
    Family(
        name="change",
        draw=_change,
        templates=(
            "{name} buys {count} {things} at {price} dollars each and pays with {paid} dollars. How much is left?",
            "{name} had {paid} dollars and bought {count} {things} for {price} dollars each. "
            "How many dollars are left?",
            "One of the {things} costs {price} dollars. {name} takes {count} and has {paid} dollars. What remains?",
            "With {paid} dollars, {name} pays for {count} {things}, {price} dollars each. "
            "How much does {name} get back?",
        ),
    ),
    Family(
        name="three-steps",
        draw=partial(
            _story, steps="count * each, have + _, _ - gone", most_gone=6, have=(2, 6), count=(2, 3), each=(2, 4)
        ),
        templates=(
            "{name} has {have} {things}, buys {count} packs of {each} and gives away {gone}. How many are left?",
            "A shop had {have} {things}. It got {count} {places} of {each} each and sold {gone}. How many has it now?",
            "{name} had {have} {things}. {other} brought {count} {places} of {each}. Then {gone} were lost. "
            "How many are left?",
            "To {have} {things}, {name} adds {count} {places} with {each} each, and {other} takes {gone}. "
            "How many remain?",
        ),
    ),
    Family(
        name="two-gains",
        draw=partial(_story, steps="have + more, _ + again", have=(2, 9), more=(1, 6), again=(1, 6)),
        held_out=True,
        templates=(
            "{name} had {have} {things}, bought {more} and found {again} more. How many {things} does {name} have?",
            "There are {have} {things} in the first box, {more} in the second and {again} in the third. "
            "How many in all?",
        ),
    ),
    Family(
        name="groups-and-loss",
        draw=partial(_story, steps="count * each, _ - gone", most_gone=6, count=(2, 4), each=(2, 5)),
        held_out=True,
        templates=(
            "{name} fills {count} {places} with {each} {things} each and then sells {gone}. "
            "How many {things} are left?",
            "There were {count} {places} of {each} {things}, and {gone} were stolen. How many {things} remain?",
        ),
    ),
)
