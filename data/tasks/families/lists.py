"""Lists of items: put in order, thinned out, searched, counted, written in another way."""

from itertools import permutations
from random import Random

from data.tasks.answers import Number, OneOf, Order, Pick
from data.tasks.family import Draw, Family
from data.tasks.forms import Form, digits, listing, phrase
from data.tasks.words import ANIMALS, CATEGORIES, CLOTHES, COLOURS, FOODS, NAMES, PLACES, THINGS, TOOLS, plural

_MIXED = tuple(dict.fromkeys(ANIMALS + FOODS + TOOLS + CLOTHES + THINGS + COLOURS + PLACES))
_PLACE = {1: "first", 2: "second", 3: "third"}


def _ordered(listed: list[str], right: list[str], random: Random, **fields: str) -> Draw:
    """A list to be brought into an order; wrong answers have no item where it belongs."""
    wrong = [
        ", ".join(order)
        for order in permutations(right)
        if list(order) != listed and all(mine != theirs for mine, theirs in zip(order, right, strict=True))
    ]
    random.shuffle(wrong)
    return Draw(
        fields={"text": ", ".join(listed), **fields},
        gold=", ".join(right),
        wrong=tuple(wrong[:3]),
        answer=Order(right, listed),
        form=listing(len(right)),
    )


def _sort_numbers(random: Random) -> Draw:
    listed = [str(number) for number in random.sample(range(1, 100), random.choice([3, 3, 4]))]
    right = sorted(listed, key=int)
    return _sort_numbers(random) if listed == right else _ordered(listed, right, random)


def _sort_words(random: Random) -> Draw:
    listed = random.sample(_MIXED, 3)
    if listed == sorted(listed) or len({word[0] for word in listed}) < 3:
        return _sort_words(random)
    return _ordered(listed, sorted(listed), random)


def _reverse(random: Random) -> Draw:
    listed = random.sample(_MIXED, random.choice([3, 3, 4]))
    return _ordered(listed, listed[::-1], random)


def _deduplicate(random: Random) -> Draw:
    right = random.sample(_MIXED, 3)
    listed = list(right)
    listed.insert(random.randint(2, 3), random.choice(right[:2]))
    if listed[1] == listed[2]:
        return _deduplicate(random)
    return _ordered(listed, list(dict.fromkeys(listed)), random)


def _remove(random: Random) -> Draw:
    listed = random.sample(_MIXED, random.choice([3, 4]))
    out = random.choice(listed)
    kept = [item for item in listed if item != out]
    wrong = [", ".join(item for item in listed if item != other) for other in kept]
    return Draw(
        fields={"text": ", ".join(listed), "out": out},
        gold=", ".join(kept),
        wrong=tuple(wrong),
        answer=OneOf([" ".join(kept)], [out]),
        form=listing(len(kept)),
    )


def _one_of_list(items: list[str], right: str, **fields: str) -> Draw:
    wrong = tuple(item for item in items if item != right)
    return Draw(
        fields={"text": ", ".join(items), **fields},
        gold=right,
        wrong=wrong,
        answer=OneOf([right], wrong),
        form=phrase(1),
    )


def _odd_one_out(random: Random) -> Draw:
    common, odd = random.sample(sorted(CATEGORIES), 2)
    right = random.choice(CATEGORIES[odd])
    items = [*random.sample(CATEGORIES[common], 3), right]
    random.shuffle(items)
    return _one_of_list(items, right)


def _first_item(random: Random) -> Draw:
    items = random.sample(_MIXED, random.choice([3, 4]))
    return _one_of_list(items, items[0])


def _nth_item(random: Random) -> Draw:
    items = random.sample(_MIXED, random.choice([3, 4]))
    place = random.choice([2, 3])
    return _one_of_list(items, items[place - 1], place=_PLACE[place])


def _starts_with(random: Random) -> Draw:
    items = random.sample(_MIXED, 3)
    if len({item[0] for item in items}) < 3:
        return _starts_with(random)
    right = random.choice(items)
    return _one_of_list(items, right, letter=right[0])


def _pick(random: Random) -> Draw:
    wanted, other = random.sample(sorted(CATEGORIES), 2)
    right, wrong = random.sample(CATEGORIES[wanted], 2), random.sample(CATEGORIES[other], 2)
    items = [*right, *wrong]
    random.shuffle(items)
    right, wrong = [item for item in items if item in right], [item for item in items if item in wrong]
    return Draw(
        fields={"text": ", ".join(items), "category": wanted if wanted == "clothing" else plural(wanted)},
        gold=", ".join(right),
        wrong=(", ".join(wrong), f"{right[0]}, {wrong[1]}", f"{wrong[0]}, {right[1]}"),
        answer=Pick(right, wrong),
        form=listing(2),
    )


def _count(random: Random) -> Draw:
    count = random.randint(2, 6)
    wrong = random.sample([number for number in range(2, 8) if number != count], 2)
    return Draw(
        fields={"text": ", ".join(random.sample(_MIXED, count))},
        gold=str(count),
        wrong=tuple(map(str, wrong)),
        answer=Number(count),
        form=digits(),
    )


def _join_with_and(random: Random) -> Draw:
    first, second, third = random.sample(random.choice([_MIXED, NAMES]), 3)
    wrong = (f"{third}, {first} and {second}", f"{first}, {third} and {second}", f"{second}, {third} and {first}")
    gold = f"{first}, {second} and {third}"
    return Draw(
        fields={"text": f"{first}, {second}, {third}"},
        gold=gold,
        wrong=wrong,
        answer=OneOf(
            [gold, f"{first} {second}, and {third}"], [f"and {first}", f"and {second}"], near=[f"{second} and {third}"]
        ),
        form=Form(r"[A-Za-z]+, [A-Za-z]+ and [A-Za-z]+", 4),
    )


FAMILIES = (
    Family(
        name="sort-numbers",
        draw=_sort_numbers,
        templates=(
            "Sort these numbers from small to large: {text}",
            "Put the numbers in order, smallest first: {text}",
            "Order these numbers, lowest to highest. {text}",
            "Arrange in ascending order: {text}",
            "List these numbers again, starting with the smallest: {text}",
        ),
    ),
    Family(
        name="sort-words",
        draw=_sort_words,
        templates=(
            "Sort these words by the alphabet: {text}",
            "Put the words in alphabetical order: {text}",
            "Order alphabetically, with commas. {text}",
            "Arrange these words from A to Z: {text}",
            "How would a dictionary order these words? {text}",
        ),
    ),
    Family(
        name="reverse",
        draw=_reverse,
        templates=(
            "Reverse this list: {text}",
            "Write the list backwards, last item first: {text}",
            "Turn the order of the items around. {text}",
            "List these in reverse order: {text}",
            "Repeat the items, but from last to first: {text}",
        ),
    ),
    Family(
        name="deduplicate",
        draw=_deduplicate,
        templates=(
            "Remove the duplicate: {text}",
            "Write each item only once: {text}",
            "One item comes twice. List them without the repetition: {text}",
            "Delete repeated words from the list. {text}",
            "Give the list of different items: {text}",
        ),
    ),
    Family(
        name="remove",
        draw=_remove,
        templates=(
            'Remove "{out}" from the list: {text}',
            "Write the list without {out}: {text}",
            "Take {out} out of this list. {text}",
            'Delete the item "{out}": {text}',
            "List everything but {out}: {text}",
        ),
    ),
    Family(
        name="odd-one-out",
        draw=_odd_one_out,
        templates=(
            "Which word does not belong? {text}",
            "Find the odd one out: {text}",
            "Three of these go together. Name the other one: {text}",
            "Which one is different from the rest? {text}",
            "Name the item of another kind: {text}",
        ),
    ),
    Family(
        name="first-item",
        draw=_first_item,
        templates=(
            "What is the first item? {text}",
            "Write only the first word of the list: {text}",
            "Which item comes first? {text}",
            "Answer with the first of these: {text}",
            "Which word does this list begin with? {text}",
        ),
    ),
    Family(
        name="nth-item",
        draw=_nth_item,
        templates=(
            "What is the {place} item? {text}",
            "Write only the {place} word of the list: {text}",
            "Which item comes {place}? {text}",
            "Answer with the {place} of these: {text}",
            "Copy nothing but the {place} item: {text}",
        ),
    ),
    Family(
        name="starts-with",
        draw=_starts_with,
        templates=(
            'Which word starts with "{letter}"? {text}',
            'Find the word that begins with "{letter}": {text}',
            'Answer with the word whose first letter is "{letter}". {text}',
            'Pick the word with "{letter}" at the start: {text}',
            'One of these words begins with "{letter}". Which? {text}',
        ),
    ),
    Family(
        name="pick",
        draw=_pick,
        templates=(
            "Which of these are {category}? {text}",
            "List only the {category}: {text}",
            "Pick out the {category}, separated by a comma. {text}",
            "Copy the {category} from this list: {text}",
            "Keep only the {category}: {text}",
        ),
    ),
    Family(
        name="count",
        draw=_count,
        templates=(
            "How many items are in this list? {text}",
            "Count the words and answer with a number: {text}",
            "How many words are here? {text}",
            "Number of items, in digits: {text}",
            "Say how long this list is, as a number: {text}",
        ),
    ),
    Family(
        name="join-with-and",
        draw=_join_with_and,
        templates=(
            'Write "and" before the last item instead of a comma: {text}',
            'Join with commas and a final "and": {text}',
            'Turn the list into words with "and" at the end. {text}',
            'Connect the last two with "and": {text}',
            'Say this list with "and" before its last word: {text}',
        ),
    ),
)
