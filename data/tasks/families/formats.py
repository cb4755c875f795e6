"""Answers of a demanded shape: JSON objects, labels in a row, repetition, examples that leave some out."""

from random import Random

from data.tasks.answers import Fields, Literal, Members, OneOf, Repeat
from data.tasks.family import Draw, Family
from data.tasks.forms import Form, json_object, listing
from data.tasks.words import (
    ANIMALS,
    CATEGORIES,
    CITIES,
    CLOTHES,
    COLOURS,
    FOODS,
    NAMES,
    OPPOSITES,
    THINGS,
    TOOLS,
    VERBS_WITH_OBJECT,
    plural,
)

# Short words, so that two keys and their values stay within a demo's response.
_NAMES = tuple(name for name in NAMES if len(name) <= 4)
_CITIES = tuple(city for city in CITIES if len(city) <= 5)
_ADJECTIVES = COLOURS + tuple(word for word in OPPOSITES if len(word) <= 5)
_NOUNS = tuple(word for word in ANIMALS + FOODS + TOOLS + THINGS + CLOTHES if len(word) <= 6)
_THINGS = tuple(thing for thing in THINGS + CLOTHES if len(thing) <= 5)


def _object(text: str, pairs: dict[str, str], others: dict[str, str], quoted: bool) -> Draw:
    """Two facts as a JSON object; wrong answers swap one value for another, or both for each other."""

    def written(first: str, second: str) -> str:
        (key, other) = pairs
        return f'{{"{key}": "{first}", "{other}": ' + (f'"{second}"}}' if quoted else f"{second}}}")

    first, second = pairs.values()
    return Draw(
        fields={"text": text},
        gold=written(first, second),
        wrong=(written(*others.values()),) + ((written(second, first),) if quoted else ()),
        answer=Fields(pairs),
        form=json_object(*pairs),
    )


def _json_age(random: Random) -> Draw:
    name, other = random.sample(_NAMES, 2)
    age, another = map(str, random.sample(range(11, 90), 2))
    verb, thing = random.choice(VERBS_WITH_OBJECT), random.choice(THINGS)
    text = f"{name}, who is {age}, {verb.past} the {thing}."
    return _object(text, {"name": name, "age": age}, {"name": other, "age": another}, quoted=False)


def _json_city(random: Random) -> Draw:
    (name, other), (city, another) = random.sample(_NAMES, 2), random.sample(_CITIES, 2)
    verb, thing = random.choice(VERBS_WITH_OBJECT), random.choice(THINGS)
    text = f"{name} {verb.past} the {thing} in {city}."
    return _object(text, {"name": name, "city": city}, {"name": other, "city": another}, quoted=True)


def _json_item(random: Random) -> Draw:
    (thing, other), (colour, another) = random.sample(_THINGS, 2), random.sample(COLOURS, 2)
    name, verb = random.choice(NAMES), random.choice(VERBS_WITH_OBJECT)
    text = f"{name} {verb.past} the {colour} {thing}."
    return _object(text, {"item": thing, "colour": colour}, {"item": other, "colour": another}, quoted=True)


def _json_list(random: Random) -> Draw:
    first, second = random.sample(_NOUNS, 2)
    right = f'["{first}", "{second}"]'
    wrong = (f'["{second}", "{first}"]', f'["{first}, {second}"]')
    return Draw(
        fields={"text": f"{first}, {second}"},
        gold=right,
        wrong=wrong,
        answer=Literal(
            right, wrong, near=[f"['{first}', '{second}']", f'["{first}","{second}"]', f"[{first}, {second}]"]
        ),
        form=Form(r'\["[a-z, ]+"(, "[a-z]+")?\]', 2),
    )


def _classify(random: Random) -> Draw:
    first, second, third = random.sample(sorted(CATEGORIES), 3)
    labels = [first, second, third]
    random.shuffle(labels)
    items = [random.choice(CATEGORIES[first]), random.choice(CATEGORIES[second])]
    return Draw(
        fields={"text": ", ".join(items), "labels": f"{labels[0]}, {labels[1]} or {labels[2]}"},
        gold=f"{first}, {second}",
        wrong=(f"{second}, {first}", f"{third}, {second}", f"{first}, {third}"),
        answer=OneOf([f"{first} {second}"], [third, f"{second} {first}"]),
        form=listing(2),
    )


def _repeat(random: Random) -> Draw:
    word, other = random.sample(_NOUNS, 2)
    if random.random() < 0.1:
        times, off = 4, 6
    else:
        times, off = 3, 2
        word = f"{random.choice(_ADJECTIVES)} {word}"
    written = rf"{word}(?:, {word})*|{other}(?:, {other})*"
    return Draw(
        fields={"text": word, "times": {3: "three", 4: "four"}[times]},
        gold=", ".join([word] * times),
        wrong=(", ".join([other] * times), ", ".join([word] * off)),
        answer=Repeat(word, times),
        form=Form(written, times * len(word.split()), repeats=True),
    )


def _examples(random: Random) -> Draw:
    category, other = random.sample(sorted(CATEGORIES), 2)
    *barred, first, second = random.sample(CATEGORIES[category], 5)
    allowed = [word for word in CATEGORIES[category] if word not in barred]
    strangers = random.sample(CATEGORIES[other], 2)
    return Draw(
        fields={
            "text": f"{barred[0]}, {barred[1]} or {barred[2]}",
            "category": "pieces of clothing" if category == "clothing" else plural(category),
        },
        gold=f"{first}, {second}",
        wrong=(", ".join(barred[:2]), ", ".join(strangers), f"{first}, {barred[0]}"),
        answer=Members([*allowed], barred, 2),
        form=listing(2),
    )


FAMILIES = (
    Family(
        name="json-age",
        draw=_json_age,
        templates=(
            "Write as JSON with name and age: {text}",
            "Convert to a JSON object with the keys name, age. {text}",
            "Give name and age in JSON: {text}",
            "Extract the name and the age as JSON. {text}",
            "{text} Put this into JSON (name, age).",
        ),
    ),
    Family(
        name="json-city",
        held_out=True,
        draw=_json_city,
        templates=(
            "Write as JSON with name and city: {text}",
            "Convert to a JSON object with the keys name, city. {text}",
            "Give name and city in JSON: {text}",
            "Extract the name and the city as JSON. {text}",
        ),
    ),
    Family(
        name="json-item",
        draw=_json_item,
        templates=(
            "Write as JSON with item and colour: {text}",
            "Convert to a JSON object with the keys item, colour. {text}",
            "Give item and colour in JSON: {text}",
            "Extract the item and its colour as JSON. {text}",
            "{text} Put this into JSON (item, colour).",
        ),
    ),
    Family(
        name="json-list",
        draw=_json_list,
        templates=(
            "Write as a JSON list: {text}",
            "Convert to a JSON array of strings: {text}",
            "Format these words as a JSON list. {text}",
            "Give the JSON array for: {text}",
            "How does this list look in JSON? {text}",
        ),
    ),
    Family(
        name="classify",
        draw=_classify,
        templates=(
            "Label each word as {labels}: {text}",
            "Is each of these {labels}? {text}",
            "Give a label ({labels}) for each word: {text}",
            "Classify each word as {labels}. {text}",
            "Which of {labels} is each word, in this order: {text}",
        ),
    ),
    Family(
        name="repeat",
        draw=_repeat,
        templates=(
            'Write "{text}" {times} times, with commas.',
            'Say "{text}" {times} times, separated by commas.',
            'Repeat "{text}" so that it is there {times} times, with commas.',
            'Make a list that holds "{text}" {times} times.',
            'Put down "{text}" {times} times in a row, with commas.',
        ),
    ),
    Family(
        name="examples",
        draw=_examples,
        templates=(
            "Name two {category}, but not {text}.",
            "List two {category} other than {text}.",
            "Give two examples of {category}, except {text}.",
            "Which two {category} can you think of, leaving out {text}?",
            "Two {category}, please, without {text}:",
        ),
    ),
)
