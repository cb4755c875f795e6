"""Sentences said in another way: tense, negation, pronouns, replaced words."""

from collections.abc import Sequence
from functools import partial
from random import Random

from data.tasks.answers import Rewrite, words_of
from data.tasks.family import Draw, Family
from data.tasks.forms import sentence
from data.tasks.words import GIRLS, NAMES, PLACES, THINGS, VERBS_OF_MOTION, VERBS_WITH_OBJECT, Verb

_ANYWHERE = {"the", "a", "an", "of", "to", "is", "it", "and", "this", "that"}
"""Words that may surround an answer ("this is the sentence: ..."), so they never spoil one."""


def _rewritten(text: str, gold: str, *wrong: str, **fields: str) -> Draw:
    """New words of the gold answer have to come; those of the input and of wrong answers that it lacks have to go."""
    before, after = words_of(text), words_of(gold)
    need = [word for word in after if word not in before]
    avoid = sorted({*before, *words_of(" ".join(wrong))} - set(after) - _ANYWHERE)
    size = len(gold.split())
    return Draw(
        fields={"text": text, **fields},
        gold=gold,
        wrong=wrong,
        answer=Rewrite(gold, need, avoid),
        form=sentence(max(3, size - 2), size + 1),
    )


def _rephrased(verbs: Sequence[Verb], nouns: Sequence[str], patterns: Sequence[str], random: Random) -> Draw:
    """A sentence of a person, a verb and a noun. patterns: of the text, the gold answer and wrong ones."""
    name, verb, noun = random.choice(NAMES), random.choice(verbs), random.choice(nouns)
    pronoun, other = ("She", "He") if name in GIRLS else ("He", "She")
    words = {"name": name, "noun": noun, "pronoun": pronoun, "other": other, **vars(verb)}
    return _rewritten(*(pattern.format(**words) for pattern in patterns))


_PAST = (
    "{name} {third} to the {noun}.",
    "{name} {past} to the {noun}.",
    "{name} will {base} to the {noun}.",
    "{name} can {base} to the {noun}.",
)
_FUTURE = (
    "{name} {third} the {noun}.",
    "{name} will {base} the {noun}.",
    "{name} {past} the {noun}.",
    "{name} did {base} the {noun}.",
)
_NEGATION = (
    "{name} {third} the {noun}.",
    "{name} does not {base} the {noun}.",
    "{name} always {third} the {noun}.",
    "{name} did {base} the {noun}.",
)
_PRONOUN = (
    "{name} {past} the {noun}.",
    "{pronoun} {past} the {noun}.",
    "{other} {past} the {noun}.",
    "They {past} the {noun}.",
)


def _replace(random: Random) -> Draw:
    name, verb = random.choice(NAMES), random.choice(VERBS_WITH_OBJECT)
    old, new, other, another = random.sample(THINGS, 4)
    return _rewritten(
        f"{name} {verb.past} the {old}.",
        f"{name} {verb.past} the {new}.",
        f"{name} {verb.past} the {other}.",
        f"{name} {verb.past} the {another}.",
        old=old,
        new=new,
    )


def _rename(random: Random) -> Draw:
    (old, new, other), verb, thing = random.sample(NAMES, 3), random.choice(VERBS_WITH_OBJECT), random.choice(THINGS)
    return _rewritten(
        f"{old} {verb.past} the {thing}.",
        f"{new} {verb.past} the {thing}.",
        f"{other} {verb.past} the {thing}.",
        f"They {verb.past} the {thing}.",
        new=new,
    )


FAMILIES = (
    Family(
        name="past-tense",
        draw=partial(_rephrased, VERBS_OF_MOTION, PLACES, _PAST),
        templates=(
            "Rewrite in the past tense: {text}",
            "Put this sentence into the past tense. {text}",
            "Say this as if it happened yesterday, in the past tense: {text}",
            "Change the verb to the past tense: {text}",
            "What is the past tense of this sentence? {text}",
        ),
    ),
    Family(
        name="future-tense",
        held_out=True,
        draw=partial(_rephrased, VERBS_WITH_OBJECT, THINGS, _FUTURE),
        templates=(
            'Rewrite in the future tense with "will": {text}',
            'Put this sentence into the future tense, using "will". {text}',
            'Say that this will happen tomorrow; use "will": {text}',
            'Change the verb to the future with "will": {text}',
        ),
    ),
    Family(
        name="negation",
        draw=partial(_rephrased, VERBS_WITH_OBJECT, THINGS, _NEGATION),
        templates=(
            'Make this sentence negative with "does not": {text}',
            'Rewrite with "does not": {text}',
            'Say the opposite, using "does not". {text}',
            'Turn this into a negative sentence ("does not"). {text}',
            'Deny this sentence with "does not": {text}',
        ),
    ),
    Family(
        name="pronoun",
        draw=partial(_rephrased, VERBS_WITH_OBJECT, THINGS, _PRONOUN),
        templates=(
            "Replace the name with He or She: {text}",
            "Rewrite with a pronoun instead of the name. {text}",
            "Use He or She for the person: {text}",
            "Put He or She where the name is. {text}",
            "Say this without the name, with He or She: {text}",
        ),
    ),
    Family(
        name="replace",
        draw=_replace,
        templates=(
            'Replace "{old}" with "{new}": {text}',
            'Change "{old}" to "{new}" in this sentence. {text}',
            'Put "{new}" in place of "{old}": {text}',
            'Write the sentence with "{new}" and not "{old}". {text}',
            'Swap the word "{old}" for "{new}": {text}',
        ),
    ),
    Family(
        name="rename",
        held_out=True,
        draw=_rename,
        templates=(
            'Replace the name with "{new}": {text}',
            'Change the person to "{new}" in this sentence. {text}',
            'Put "{new}" where the name is: {text}',
            "Say this of {new}: {text}",
        ),
    ),
)
