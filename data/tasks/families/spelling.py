"""How words are written: case, plural, articles, opposites, initials, order of names."""

from functools import partial
from random import Random

from data.tasks.answers import Literal, OneOf, Pick
from data.tasks.family import Draw, Family
from data.tasks.forms import Form, listing, phrase
from data.tasks.words import (
    ANIMALS,
    CLOTHES,
    COLOURS,
    FOODS,
    NAMES,
    OPPOSITES,
    SURNAMES,
    THINGS,
    TOOLS,
    article,
    plural,
)

_NOUNS = tuple(dict.fromkeys(ANIMALS + FOODS + TOOLS + CLOTHES + THINGS))
_COUNTABLE = tuple(noun for noun in _NOUNS if plural(noun) != noun)


_VOWELS = tuple(noun for noun in _COUNTABLE if noun[0] in "aeiou")
_CONSONANTS = tuple(noun for noun in _COUNTABLE if noun[0] not in "aeiou")


def _other_case(random: Random, *, into_capitals: bool) -> Draw:
    colour, (noun, other) = random.choice(COLOURS), random.sample(_NOUNS, 2)
    adjective = random.choice(sorted(OPPOSITES))
    small, unlike = f"{adjective} {colour} {noun}", f"{adjective} {colour} {other}"
    text, gold = (small, small.upper()) if into_capitals else (small.upper(), small)
    wrong = (unlike.upper() if into_capitals else unlike, small.title())
    return Draw(fields={"text": text}, gold=gold, wrong=wrong, answer=Literal(gold, wrong), form=phrase(3))


def _plurals(random: Random) -> Draw:
    nouns = random.sample(_COUNTABLE, 2)
    right = [plural(noun) for noun in nouns]
    bad = [noun + ("es" if plural(noun) == noun + "s" else "s") for noun in nouns]
    return Draw(
        fields={"text": ", ".join(nouns)},
        gold=", ".join(right),
        wrong=(", ".join(bad), f"{right[0]}, {nouns[1]}"),
        answer=Pick(right, [*nouns, *bad]),
        form=listing(2),
    )


def _articles(random: Random) -> Draw:
    nouns = random.sample([random.choice(_VOWELS), *random.sample(_CONSONANTS, 2)], 3)
    right = [article(noun) for noun in nouns]
    bad = [("a " if noun[0] in "aeiou" else "an ") + noun for noun in nouns]
    return Draw(
        fields={"text": ", ".join(nouns)},
        gold=", ".join(right),
        wrong=(", ".join(bad), f"{right[0]}, {bad[1]}, {bad[2]}", f"{bad[0]}, {bad[1]}, {right[2]}"),
        answer=Pick(right, bad),
        form=Form(r"an? [a-z]+(?:, an? [a-z]+){2}", 6),
    )


def _opposite(random: Random) -> Draw:
    adjective, noun = random.choice(sorted(OPPOSITES)), random.choice(_NOUNS)
    right = OPPOSITES[adjective]
    others = [key for key in sorted(OPPOSITES) if key not in right and key != adjective]
    first, second = random.sample(others, 2)
    return Draw(
        fields={"text": f"the {adjective} {noun}"},
        gold=f"the {right[0]} {noun}",
        wrong=(f"the {first} {noun}", f"the {second} {noun}"),
        answer=OneOf(right, [adjective, first, second]),
        form=phrase(3),
    )


def _initials(random: Random) -> Draw:
    names = [*random.sample(NAMES, 2), random.choice(SURNAMES)]
    first, second, last = (name[0] for name in names)
    if len({first, second, last}) < 3:
        return _initials(random)
    wrong = (f"{last}.{first}.{second}.", f"{second}.{first}.{last}.", f"{last}.{second}.{first}.")
    return Draw(
        fields={"text": " ".join(names)},
        gold=f"{first}.{second}.{last}.",
        wrong=wrong,
        answer=Literal(
            f"{first}.{second}.{last}.", wrong, near=[f"{first}{second}{last}", f"{first}. {second}. {last}."]
        ),
        form=Form(r"[A-Z]\.[A-Z]\.[A-Z]\.", 3),
    )


def _surname_first(random: Random) -> Draw:
    (name, other), surname = random.sample(NAMES, 2), random.choice(SURNAMES)
    wrong = (f"{name}, {surname}", f"{surname}, {other}")
    return Draw(
        fields={"text": f"{name} {surname}"},
        gold=f"{surname}, {name}",
        wrong=wrong,
        answer=Literal(f"{surname}, {name}", wrong, near=[f"{surname},{name}"]),
        form=Form("[A-Z][a-z]+, [A-Z][a-z]+", 2),
    )


FAMILIES = (
    Family(
        name="capitals",
        draw=partial(_other_case, into_capitals=True),
        templates=(
            "Write in capital letters: {text}",
            "Change every letter to upper case: {text}",
            "Put this in capitals. {text}",
            "Make all letters capital: {text}",
            "Convert to upper case: {text}",
        ),
    ),
    Family(
        name="small-letters",
        held_out=True,
        draw=partial(_other_case, into_capitals=False),
        templates=(
            "Write in small letters: {text}",
            "Change every letter to lower case: {text}",
            "Put this in small letters. {text}",
            "Convert to lower case: {text}",
        ),
    ),
    Family(
        name="plurals",
        draw=_plurals,
        templates=(
            "Write the plurals, separated by a comma: {text}",
            "Make these words plural: {text}",
            "Give the plural of each word. {text}",
            "Turn each noun into its plural: {text}",
            "What are the plurals of these words? {text}",
        ),
    ),
    Family(
        name="articles",
        draw=_articles,
        templates=(
            'Put "a" or "an" before each word: {text}',
            "Add the right article, a or an, to each word. {text}",
            'Does each word take "a" or "an"? Write them with it: {text}',
            'Is it "a" or "an"? Add it to each word: {text}',
            "Give these words with the article, a or an, in front: {text}",
        ),
    ),
    Family(
        name="opposite",
        draw=_opposite,
        templates=(
            "Replace the adjective with its opposite: {text}",
            "Write the opposite: {text}",
            "Change the describing word to its opposite. {text}",
            "Say the contrary in three words: {text}",
            "Rewrite with an adjective that means the opposite: {text}",
        ),
    ),
    Family(
        name="initials",
        draw=_initials,
        templates=(
            "Write the initials with full stops: {text}",
            "Give the initials, each with a dot. {text}",
            "Shorten the name to its initials, like X.Y.Z.: {text}",
            "Initials, in the form A.B.C., of {text}",
            "What are the initials, with dots, of {text}?",
        ),
    ),
    Family(
        name="surname-first",
        draw=_surname_first,
        templates=(
            "Write the last name first, with a comma: {text}",
            'Rewrite the name as "Last, First": {text}',
            "Put the surname before the first name, with a comma. {text}",
            "How is this name listed, surname, first name? {text}",
            "Turn the name around (last name, comma, first name): {text}",
        ),
    ),
)
