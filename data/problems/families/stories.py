"""Word problems: one to three steps of arithmetic in small numbers, told as a story."""

from random import Random

from data.problems.solution import value_of, worked
from data.tasks.family import Draw, Family
from data.tasks.words import CLOTHES, NAMES, THINGS, TOOLS, plural

_THINGS = tuple(plural(noun) for noun in (*TOOLS, *CLOTHES, *THINGS) if plural(noun) != noun)
_PLACES = ("boxes", "bags", "baskets", "drawers", "rows")


def _told(random: Random, **numbers: int) -> dict[str, str]:
    """What a story is filled with: two names, things, where they are, and the numbers."""
    name, other = random.sample(NAMES, 2)
    words = {"name": name, "other": other, "things": random.choice(_THINGS), "places": random.choice(_PLACES)}
    return words | {key: str(number) for key, number in numbers.items()}


def _gain(random: Random) -> Draw:
    have, more = random.randint(2, 9), random.randint(1, 9)
    return worked((have, "+", more), **_told(random, have=have, more=more))


def _loss(random: Random) -> Draw:
    have = random.randint(4, 15)
    gone = random.randint(1, min(9, have - 1))
    return worked((have, "-", gone), **_told(random, have=have, gone=gone))


def _groups(random: Random) -> Draw:
    count, each = random.randint(2, 5), random.randint(2, 5)
    return worked((count, "*", each), **_told(random, count=count, each=each))


def _gain_and_loss(random: Random) -> Draw:
    have, more = random.randint(2, 9), random.randint(1, 6)
    gone = random.randint(1, min(6, have + more - 1))
    return worked((have, "+", more), (have + more, "-", gone), **_told(random, have=have, more=more, gone=gone))


def _groups_and_loose(random: Random) -> Draw:
    count, each, loose = random.randint(2, 4), random.randint(2, 5), random.randint(1, 6)
    steps = (count, "*", each), (count * each, "+", loose)
    return worked(*steps, **_told(random, count=count, each=each, loose=loose))


def _together(random: Random) -> Draw:
    have, more = random.randint(2, 6), random.randint(1, 5)
    return worked((have, "+", more), (have, "+", have + more), **_told(random, have=have, more=more))


def _change(random: Random) -> Draw:
    count, price = random.randint(2, 4), random.randint(2, 5)
    paid = count * price + random.randint(1, 9)
    return worked((count, "*", price), (paid, "-", count * price), **_told(random, count=count, price=price, paid=paid))


def _three_steps(random: Random) -> Draw:
    have, count, each = random.randint(2, 6), random.randint(2, 3), random.randint(2, 4)
    total = have + count * each
    gone = random.randint(1, min(6, total - 1))
    steps = (count, "*", each), (have, "+", count * each), (total, "-", gone)
    assert value_of(steps[-1]) > 0
    return worked(*steps, **_told(random, have=have, count=count, each=each, gone=gone))


def _two_gains(random: Random) -> Draw:
    have, more, again = random.randint(2, 9), random.randint(1, 6), random.randint(1, 6)
    steps = (have, "+", more), (have + more, "+", again)
    return worked(*steps, **_told(random, have=have, more=more, again=again))


def _groups_and_loss(random: Random) -> Draw:
    count, each = random.randint(2, 4), random.randint(2, 5)
    gone = random.randint(1, min(6, count * each - 1))
    steps = (count, "*", each), (count * each, "-", gone)
    return worked(*steps, **_told(random, count=count, each=each, gone=gone))


FAMILIES = (
    Family(
        name="gain",
        draw=_gain,
        templates=(
            "{name} has {have} {things} and buys {more} more. How many {things} does {name} have now?",
            "There are {have} {things} on the shelf. {name} adds {more}. How many are there now?",
            "{name} found {have} {things} in the morning and {more} in the afternoon. How many in all?",
            "{other} gives {name} {more} {things}. {name} had {have} of them before. How many has {name} after that?",
        ),
    ),
    Family(
        name="loss",
        draw=_loss,
        templates=(
            "{name} has {have} {things} and gives {gone} of them to {other}. How many {things} are left?",
            "A shop had {have} {things} and sold {gone}. How many {things} does it still have?",
            "Of {have} {things}, {name} lost {gone}. How many does {name} still have?",
            "{gone} of the {have} {things} in the house are broken. How many are not?",
        ),
    ),
    Family(
        name="groups",
        draw=_groups,
        templates=(
            "There are {count} {places} with {each} {things} each. How many {things} are there?",
            "{name} fills {count} {places} with {each} {things} each. How many {things} is that?",
            "{name} buys {each} {things} a day for {count} days. How many {things} does {name} buy?",
            "{count} friends bring {each} {things} each. How many {things} do they bring?",
        ),
    ),
    Family(
        name="gain-and-loss",
        draw=_gain_and_loss,
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
        draw=_groups_and_loose,
        templates=(
            "{name} has {count} {places} with {each} {things} each and {loose} more. How many {things} in all?",
            "There are {each} {things} in each of {count} {places}, and {loose} on the floor. How many are there?",
            "{name} buys {count} packs of {each} {things} and {loose} single ones. How many {things} is that?",
            "{loose} {things} lie on the table, and {count} {places} hold {each} each. How many {things} are there?",
        ),
    ),
    Family(
        name="together",
        draw=_together,
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
        draw=_three_steps,
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
        draw=_two_gains,
        held_out=True,
        templates=(
            "{name} had {have} {things}, bought {more} and found {again} more. How many {things} does {name} have?",
            "There are {have} {things} in the first box, {more} in the second and {again} in the third. "
            "How many in all?",
        ),
    ),
    Family(
        name="groups-and-loss",
        draw=_groups_and_loss,
        held_out=True,
        templates=(
            "{name} fills {count} {places} with {each} {things} each and then sells {gone}. "
            "How many {things} are left?",
            "There were {count} {places} of {each} {things}, and {gone} were stolen. How many {things} remain?",
        ),
    ),
)
