"""Small puzzles with one answer: letters, order, sequences, days."""

from random import Random

from data.problems.solution import known, worked
from data.tasks.family import Draw, Family
from data.tasks.words import ANIMALS, COLOURS, FOODS, NAMES, THINGS

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _letters(random: Random) -> Draw:
    text = f"{random.choice(COLOURS)} {random.choice((*ANIMALS, *FOODS, *THINGS))}"
    letter = random.choice(text.replace(" ", ""))  # more often one that is there several times
    return known(str(text.count(letter)), text=text, letter=letter)


def _sort(random: Random) -> Draw:
    numbers = random.sample(range(2, 100), random.choice([3, 4]))
    return known(", ".join(map(str, sorted(numbers))), text=", ".join(map(str, numbers)))


def _sequence(random: Random) -> Draw:
    start, by = random.randint(1, 40), random.randint(2, 9)
    shown = [start + by * place for place in range(4)]
    return worked((shown[-1], "+", by), text=", ".join(map(str, shown)))


def _largest(random: Random) -> Draw:
    numbers = random.sample(range(10, 1000), 4)
    return known(str(max(numbers)), text=", ".join(map(str, numbers)))


def _day_after(random: Random) -> Draw:
    today, days = random.randrange(7), random.randint(2, 6)
    name = random.choice(NAMES)
    return known(DAYS[(today + days) % 7], today=DAYS[today], days=str(days), name=name)


def _words(random: Random) -> Draw:
    items = [random.choice(COLOURS[:4]) for _ in range(random.randint(4, 6))]
    return known(str(items.count(items[0])), text=", ".join(items), item=items[0], name=random.choice(NAMES))


FAMILIES = (
    Family(
        name="letters",
        draw=_letters,
        templates=(
            'How often is the letter {letter} in "{text}"?',
            'Count the letter {letter} in "{text}".',
            'How many times does "{text}" have the letter {letter}?',
            'Look at "{text}". How many of its letters are {letter}?',
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
            "What comes next? {text}",
            "Which number is next in the sequence {text}?",
            "Continue with one number: {text}",
            "The numbers {text} follow a rule. Give the next one.",
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
            "Today is {today}. {name} travels in {days} days. Which day is that?",
            "{name} starts on {today} and needs {days} days. On which day is {name} done?",
            "It is {today}. The party of {name} is {days} days later. On which day?",
            "{days} days after {today}, {name} comes back. Which day of the week is it then?",
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
