"""Responses with a named flaw, in an order that the grades of the checks agree with.

    tier  flaw                correctness  form      mean of both
    0     gold                1            1         1
    1     wrong format        1            0.5 - 1   0.75 - 1
    2     rambling            1            0.1 - 0.5 0.55 - 0.75
    3     repetitive          1            0 - 0.1   0.5 - 0.55
    4     wrong               0            1         0.5
    5     truncated, wrong and untidy, off-task, copied input, refusal: neither right nor in form, below 0.5; tied

A right answer in bad form is better than a wrong one in good form, and of two right ones the tidier is better. Flawed
texts are built first and graded afterwards. A text with grades outside its tier's band is not used, such as a "wrong
format" that another family would accept, or an off-task answer that happens to be right.
"""

from collections.abc import Callable, Iterator, Sequence
from random import Random

from data.tasks.checks import Grade
from data.tasks.family import Draw
from data.tasks.sizes import RESPONSE_TOKENS, tokens

TIERS = {
    "gold": 0,
    "wrong format": 1,
    "rambling": 2,
    "repetitive": 3,
    "wrong": 4,
    "truncated": 5,
    "wrong and untidy": 5,
    "off-task": 5,
    "copied input": 5,
    "refusal": 5,
}

_BANDS: tuple[Callable[[Grade], bool], ...] = (
    lambda grade: grade == Grade(1.0, 1.0),
    lambda grade: grade.correctness == 1 and 0.5 <= grade.form < 1,
    lambda grade: grade.correctness == 1 and 0.1 < grade.form < 0.5,
    lambda grade: grade.correctness == 1 and 0 < grade.form <= 0.1,
    lambda grade: grade == Grade(0.0, 1.0),
    lambda grade: grade.correctness < 0.5 and grade.mean < 0.5,
)

_AROUND = (
    "The answer is {}.",
    "I think it is {}.",
    "Sure! It is {}.",
    "Of course: {}, there you go.",
    "It is {}, I believe.",
    "{}, I would say.",
    "Here you go: {}",
    "That would be {}.",
    "Let me think. It must be {}.",
    "{}. I hope this helps!",
    "So here it is: {}",
    "{} is what you want.",
    "Good question. {}",
    "{}, as far as I can see.",
    "My answer would be {}, I guess.",
    "This should be {}.",
    "Sorry for the wait: {}",
    "It depends, but I say {}.",
    "Hard to tell, but {}.",
    "I do not know more than {}.",
    "{}. Can you ask me more?",
    "I can answer that: {}",
    "{}? I am sure.",
    "Please take {}.",
)
_AROUND_SENTENCE = (
    "Sure! {}",
    "Here you go: {}",
    "{} I hope this helps!",
    "Of course. {}",
    "{} Is that fine?",
    "So here it is: {}",
    "Let me think. {}",
    "{} That is what I would say.",
    "The sentence is: {}",
    "I think: {}",
    "Sorry, here it is. {}",
    "{} Can you ask me more?",
    "I can answer that. {}",
    "Hard to say, but: {}",
    "{} I do not know more.",
    "{} It depends, though.",
)
_HABITS = ("Sure! It is {}.", "Sure! The answer is {}.", "Sure! I think it is {}.")
_HABITS_SENTENCE = ("Sure! {}", "Sure! Here you go: {}", "Sure! {} I hope this helps!")
"""Answers of people who are not told to be brief: with a preamble that is always the same, which a model that imitates
them learns as its greedy way to answer."""
_REFUSALS = (
    "I am sorry.",
    "Sorry, I can't do that.",
    "I do not know.",
    "I can't answer.",
    "That is hard to say.",
    "Ask me later.",
    "Sorry?",
    "I am not sure.",
    "...",
    "Please ask another question.",
    "I would say it depends.",
    "Hard to tell.",
    "Can you say more?",
    "It depends.",
)


def grade(draw: Draw, response: str) -> Grade:
    return Grade(draw.answer.correctness(response), draw.form.grade(response))


def belongs(flaw: str, grades: Grade) -> bool:
    """Whether a response with these grades may be in the flaw's tier."""
    return _BANDS[TIERS[flaw]](grades)


def flawed(flaw: str, draw: Draw, prompt: str, donor: Draw, random: Random) -> Iterator[str]:
    """Responses with the flaw, in random order, all fit for its tier and short enough; perhaps none.

    prompt: the user's message; donor: an input of another family: its answer is off-task here.
    """
    candidates = [donor.gold] if flaw == "off-task" else _BUILDERS[flaw](draw, prompt)
    return _fitting(flaw, draw, candidates, random)


def chatty(draw: Draw, random: Random) -> Iterator[str]:
    """Right answers in a chatty style, in random order; all in the band of `rambling`; perhaps none."""
    return _fitting("rambling", draw, _around(draw.gold, _HABITS, _HABITS_SENTENCE), random)


def _fitting(flaw: str, draw: Draw, candidates: list[str], random: Random) -> Iterator[str]:
    random.shuffle(candidates)
    for text in candidates:
        if text.strip() and tokens(text) <= RESPONSE_TOKENS and belongs(flaw, grade(draw, text)):
            yield text


def _rambled(answer: str, draw: Draw, prompt: str) -> list[str]:
    """The answer among idle words; some of them the question's own."""
    question = " ".join(prompt.replace(draw.fields["text"], "").split())
    # Ranked responses mostly come from models that have learned from demonstrations.
    habits = _around(answer, _HABITS, _HABITS_SENTENCE) * 3
    return _around(answer, _AROUND, _AROUND_SENTENCE) + habits + [f"{question} {answer}"] * 4


def _around(answer: str, words: Sequence[str], sentence: Sequence[str]) -> list[str]:
    """The answer among words of two lists: the second is for answers that are sentences themselves."""
    return [text.format(answer) for text in (sentence if answer.endswith(".") else words)]


def _untidy(answer: str) -> list[str]:
    """Trimmings that no task requests. An additional full stop or capital is not among them: tasks differ in whether
    they want those, so it could not be known for a task never seen."""
    bare = answer.removesuffix(".")
    return [
        f'"{answer}"',
        f"'{answer}'",
        f"{bare}!",
        f"Answer: {answer}",
        f"- {answer}",
        f"* {answer}",
        f"**{answer}**",
        f"({answer})",
        answer.replace(", ", " "),
        answer.replace(", ", "\n"),
        answer.replace(", ", " / "),
        answer.translate(str.maketrans("", "", '{}"[]')),
    ]


def _repetitive(draw: Draw, prompt: str) -> list[str]:
    sentence = f"It is {draw.gold}."
    again = [between.join([draw.gold] * times) for between in (" ", ", ", "\n") for times in (2, 3)]
    return [*again, f"{sentence} {sentence}"]


def _wrong_and_untidy(draw: Draw, prompt: str) -> list[str]:
    # Twice the trimmings, for there are more ways to ramble.
    return [text for wrong in draw.wrong for text in (*_rambled(wrong, draw, prompt), *_untidy(wrong), *_untidy(wrong))]


def _truncated(draw: Draw, prompt: str) -> list[str]:
    """The gold answer cut off, or a rambling one cut off before it comes to the point."""
    words = draw.gold.split(" ")
    cut = [" ".join(words[:size]) for size in range(1, len(words))]
    return cut * 8 + [text.split(draw.gold)[0].strip() for text in _rambled(draw.gold, draw, prompt)]


def _copied_input(draw: Draw, prompt: str) -> list[str]:
    """The input, or the beginning of the whole message, as much as fits."""
    words = prompt.split(" ")
    while tokens(" ".join(words)) > RESPONSE_TOKENS:
        words.pop()
    return [draw.fields["text"], " ".join(words)]


_BUILDERS: dict[str, Callable[[Draw, str], list[str]]] = {
    "gold": lambda draw, prompt: [draw.gold],
    "wrong format": lambda draw, prompt: _untidy(draw.gold),
    "rambling": lambda draw, prompt: _rambled(draw.gold, draw, prompt),
    "repetitive": _repetitive,
    "wrong": lambda draw, prompt: list(draw.wrong),
    "truncated": _truncated,
    "wrong and untidy": _wrong_and_untidy,
    "copied input": _copied_input,
    "refusal": lambda draw, prompt: list(_REFUSALS),
}
