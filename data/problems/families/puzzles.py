"""Small puzzles with one answer: letters, order, sequences, days."""

from random import Random

from data.problems.solution import known, worked
from data.tasks.family import Draw, Family
from data.tasks.words import ANIMALS, COLOURS, FOODS, NAMES, THINGS

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _letters(random: Random) -> Draw:
    text = random.choice((*ANIMALS, *FOODS, *THINGS))
    # Once or several times with equal chance: else "1" would nearly always do.
    times = random.choice(sorted({text.count(letter) for letter in text}))
    letter = random.choice(sorted({letter for letter in text if text.count(letter) == times}))
    return known(str(times), text=text, letter=letter, name=random.choice(NAMES))


def _sort(random: Random) -> Draw:
    numbers = random.sample(range(1, 21), 3)
    return known(", ".join(map(str, sorted(numbers))), text=", ".join(map(str, numbers)))


def _sequence(random: Random) -> Draw:
    start, by = random.randint(1, 12), random.randint(1, 4)
    shown = [start + by * place for place in range(4)]
    return worked((shown[-1], "+", by), text=", ".join(map(str, shown)), name=random.choice(NAMES))


def _largest(random: Random) -> Draw:
    numbers = random.sample(range(10, 100), 3)
    return known(str(max(numbers)), text=", ".join(map(str, numbers)))


def _day_after(random: Random) -> Draw:
    today, days = random.randrange(7), random.randint(1, 3)
    name = random.choice(NAMES)
    plural = "s" if days > 1 else ""
    return known(DAYS[(today + days) % 7], today=DAYS[today], days=str(days), s=plural, name=name)


def _words(random: Random) -> Draw:
    items = [random.choice(COLOURS[:4]) for _ in range(random.randint(4, 6))]
    return known(str(items.count(items[0])), text=", ".join(items), item=items[0], name=random.choice(NAMES))


FAMILIES = (
    Family(
        name="letters",
        draw=_letters,
        templates=(
            '{name} writes "{text}". How often is the letter {letter} in it?',
            '{name} counts the letter {letter} in "{text}". How many are there?',
            'How many times does "{text}", which {name} says, have the letter {letter}?',
            'Look at the word "{text}" of {name}. How many of its letters are {letter}?',
        ),
    ),
    Family(
        name="sort",
        draw=_sort,
        templates=(
            "Sort from smallest to largest: {text}",
            "Put these numbers in order, smallest first: {text}",
            "Sort these numbers: {text}",
            "{text}: write these numbers so that each is larger than the one before.",
        ),
    ),
    Family(
        name="sequence",
        draw=_sequence,
        templates=(
            "{name} counts: {text}. What comes next?",
            "Which number is next when {name} counts {text}?",
            "{name} wrote {text}. Continue with one number.",
            "The numbers of {name} follow a rule: {text}. Give the next one.",
        ),
    ),
    Family(
        name="largest",
        draw=_largest,
        templates=(
            "Which number is the largest? {text}",
            "Find the largest of {text}.",
            "Of the numbers {text}, which is the greatest?",
            "{text}: which of them is larger than all others?",
        ),
    ),
    Family(
        name="day-after",
        draw=_day_after,
        templates=(
            "Today is {today}. {name} travels in {days} day{s}. Which day is that?",
            "{name} starts on {today} and needs {days} day{s}. On which day is {name} done?",
            "It is {today}. The party of {name} is {days} day{s} later. On which day?",
            "{days} day{s} after {today}, {name} comes back. Which day of the week is it then?",
        ),
    ),
    Family(
        name="words",
        draw=_words,
        held_out=True,
        templates=(
            "{name} wrote: {text}. How often did {name} write {item}?",
            "Count the word {item}, as {name} says it: {text}",
        ),
    ),
)
