"""Questions about a short passage: who, what, where, yes or no, and what it does not say; sentiment and topic."""

from random import Random

from data.tasks.answers import OneOf
from data.tasks.family import Draw, Family
from data.tasks.forms import option, phrase
from data.tasks.words import BLAME, CITIES, COLOURS, NAMES, PRAISE, REVIEWED, THINGS, TOPICS, VERBS_WITH_OBJECT


def _choice(text: str, right: str, *wrong: str, also_wrong: tuple[str, ...] = (), **fields: str) -> Draw:
    """One word of the passage is the answer, others are not."""
    return Draw(
        fields={"text": text, **fields},
        gold=right,
        wrong=wrong,
        answer=OneOf([right], [*wrong, *also_wrong]),
        form=phrase(1),
    )


def _label(text: str, right: str, *wrong: str, **fields: str) -> Draw:
    """One of a fixed set of labels is the answer."""
    return Draw(
        fields={"text": text, **fields},
        gold=right,
        wrong=wrong,
        answer=OneOf([right], wrong),
        form=option(right, *wrong),
    )


def _who(random: Random) -> Draw:
    people, things = random.sample(NAMES, 2), random.sample(THINGS, 2)
    verb = random.choice(VERBS_WITH_OBJECT)
    chosen = random.randrange(2)
    return _choice(
        f"{people[0]} {verb.past} the {things[0]} and {people[1]} the {things[1]}.",
        people[chosen],
        people[1 - chosen],
        verb=verb.past,
        thing=things[chosen],
    )


def _where(random: Random) -> Draw:
    people, cities = random.sample(NAMES, 2), random.sample(CITIES, 2)
    chosen = random.randrange(2)
    return _choice(
        f"{people[0]} lives in {cities[0]} and {people[1]} in {cities[1]}.",
        cities[chosen],
        cities[1 - chosen],
        also_wrong=(people[1 - chosen],),
        name=people[chosen],
    )


def _colour(random: Random) -> Draw:
    things, colours = random.sample(THINGS, 2), random.sample(COLOURS, 2)
    chosen = random.randrange(2)
    return _choice(
        f"The {things[0]} is {colours[0]} and the {things[1]} is {colours[1]}.",
        colours[chosen],
        colours[1 - chosen],
        thing=things[chosen],
    )


def _yes_no(random: Random) -> Draw:
    name, verb = random.choice(NAMES), random.choice(VERBS_WITH_OBJECT)
    bought, other, third = random.sample(THINGS, 3)
    yes = random.random() < 0.5
    return _label(
        f"{name} {verb.past} the {bought} and the {third}.",
        *(("yes", "no") if yes else ("no", "yes")),
        name=name,
        verb=verb.base,
        past=verb.past,
        thing=bought if yes else other,
    )


def _unknown(random: Random) -> Draw:
    (name, other), verb = random.sample(NAMES, 2), random.choice(VERBS_WITH_OBJECT)
    bought, missing = random.sample(THINGS, 2)
    text = f"{name} {verb.past} the {bought} while {other} slept."
    if random.random() < 0.4:
        return _choice(text, name, other, "unknown", verb=verb.past, thing=bought)
    return Draw(
        fields={"text": text, "verb": verb.past, "thing": missing},
        gold="unknown",
        wrong=(name, other),
        answer=OneOf(["unknown"], [name, other], near=["not said", "not say", "not known", "not know"]),
        form=phrase(1),
    )


def _sentiment(random: Random) -> Draw:
    positive = random.random() < 0.5
    thing, feeling = random.choice(REVIEWED), random.choice(PRAISE if positive else BLAME)
    name = random.choice(NAMES)
    opening = random.choice([f"{name} said the", f"{name} thought the", f"{name} and I found the", "The"])
    verb = {"The": "was"}.get(opening, "" if "found" in opening else "was")
    text = " ".join(f"{opening} {thing} {verb} {feeling}.".split())
    return _label(text, *(("positive", "negative") if positive else ("negative", "positive")))


def _topic(random: Random) -> Draw:
    topic = random.choice(sorted(TOPICS))
    subjects, events = TOPICS[topic]
    owner = random.choice([*(f"{name}'s" for name in NAMES), "The"]) if topic != "weather" else "The"
    place = random.choice(CITIES)
    text = f"{owner} {random.choice(subjects)} in {place} {random.choice(events)}."
    others = [other for other in sorted(TOPICS) if other != topic]
    random.shuffle(others)
    return _label(text, topic, *others)


def _extract_name(random: Random) -> Draw:
    name, city, thing = random.choice(NAMES), random.choice(CITIES), random.choice(THINGS)
    verb, day = random.choice(VERBS_WITH_OBJECT), random.choice(["Monday", "Tuesday", "Friday", "Sunday"])
    return _choice(f"On {day} in {city}, {name} {verb.past} the {thing}.", name, city, thing, day)


def _extract_city(random: Random) -> Draw:
    name, city, thing = random.choice(NAMES), random.choice(CITIES), random.choice(THINGS)
    verb = random.choice(VERBS_WITH_OBJECT)
    year = str(random.randint(1900, 2020))
    return _choice(f"In {year} {name} {verb.past} the {thing} in {city}.", city, name, year, thing)


def _extract_year(random: Random) -> Draw:
    name, city, thing = random.choice(NAMES), random.choice(CITIES), random.choice(THINGS)
    verb, year = random.choice(VERBS_WITH_OBJECT), random.randint(1900, 2020)
    text = f"{name} {verb.past} the {thing} in {city} in {year}."
    return _choice(text, str(year), name, city, str(year + random.choice([-10, 10, 3, -3])))


FAMILIES = (
    Family(
        name="who",
        draw=_who,
        templates=(
            "{text} Who {verb} the {thing}? Answer with the name only.",
            "Answer with one name. {text} Who {verb} the {thing}?",
            "Who {verb} the {thing}? {text}",
            "Read this: {text} Which person {verb} the {thing}?",
            "{text} Give the name of the one who {verb} the {thing}.",
        ),
    ),
    Family(
        name="where",
        draw=_where,
        templates=(
            "{text} Where does {name} live? Answer with the city only.",
            "Answer with one word. {text} Where does {name} live?",
            "In which city does {name} live? {text}",
            "{text} Name the city of {name}.",
            "Read this: {text} Which city is {name} in?",
        ),
    ),
    Family(
        name="colour",
        draw=_colour,
        templates=(
            "{text} What colour is the {thing}? Answer with one word.",
            "Answer with the colour only. {text} Which colour has the {thing}?",
            "What is the colour of the {thing}? {text}",
            "{text} Name the colour of the {thing}.",
            "Read this: {text} The {thing} is of which colour?",
        ),
    ),
    Family(
        name="yes-no",
        draw=_yes_no,
        templates=(
            "{text} Did {name} {verb} the {thing}? Answer yes or no.",
            "Answer yes or no. {text} Did {name} {verb} the {thing}?",
            "Yes or no: did {name} {verb} the {thing}? {text}",
            "{text} Is it true that {name} {past} the {thing}? yes or no",
            "Did {name} {verb} the {thing}? Say yes or no. {text}",
        ),
    ),
    Family(
        name="unknown",
        draw=_unknown,
        templates=(
            '{text} Who {verb} the {thing}? Say "unknown" if it is not said.',
            'Answer with a name or "unknown". {text} Who {verb} the {thing}?',
            "Name or unknown: who {verb} the {thing}? {text}",
            'If the text does not say, answer "unknown". {text} Who {verb} the {thing}?',
            '{text} Who {verb} the {thing}, or is it "unknown"?',
        ),
    ),
    Family(
        name="sentiment",
        draw=_sentiment,
        templates=(
            "Is this positive or negative? {text}",
            "Answer with positive or negative: {text}",
            "Sentiment of the sentence (positive or negative): {text}",
            "Classify as positive or negative. {text}",
            "{text} Does this sound positive or negative?",
        ),
    ),
    Family(
        name="topic",
        draw=_topic,
        templates=(
            "Topic (sport, music, cooking or weather)? {text}",
            "Is this about sport, music, cooking or weather? {text}",
            "Classify as sport, music, cooking or weather: {text}",
            "{text} Which topic is it: sport, music, cooking, weather?",
            "Choose the topic from sport, music, cooking, weather. {text}",
        ),
    ),
    Family(
        name="extract-name",
        draw=_extract_name,
        templates=(
            "Extract the person's name: {text}",
            "Which person is named here? Answer with the name. {text}",
            "Find the name of the person. {text}",
            "Give only the person's name from this sentence: {text}",
            "{text} Who is the person mentioned?",
        ),
    ),
    Family(
        name="extract-city",
        held_out=True,
        draw=_extract_city,
        templates=(
            "Extract the city: {text}",
            "Which city is named here? Answer with the city. {text}",
            "Find the name of the city. {text}",
            "Give only the city from this sentence: {text}",
        ),
    ),
    Family(
        name="extract-year",
        held_out=True,
        draw=_extract_year,
        templates=(
            "Extract the year: {text}",
            "Which year is named here? Answer with the year. {text}",
            "Find the year. {text}",
            "Give only the year from this sentence: {text}",
        ),
    ),
)
