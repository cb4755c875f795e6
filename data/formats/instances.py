"""One instruction and many inputs a row: self-instruct, Unnatural Instructions, (Super-)Natural Instructions."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from data.formats import fields
from data.formats.demonstrations import Question
from data.formats.format import Options, Outcome, Part, PromptReader, Row, RowBuilder, Skipped, format_of
from data.formats.meaning import is_learned
from data.records import Demonstration, Origin, Prompt, Ranking
from onebase.errors import DataError

Task = tuple[list[dict[str, Any]], PromptReader]
"""The instances of a row, and what reads the prompt of one."""


def _each(
    read: Callable[[Row, Origin], Task],
    answer_of: Callable[[Row, Origin], str],
    kind: type,
    row: Row,
    origin: Origin,
    options: Options,
) -> Iterator[Outcome]:
    """A prompt or a demonstration of each instance; its DataError in place of a bad one."""
    instances, prompt_of = read(row, origin)
    for index, instance in enumerate(instances):
        place = Part(origin.source, origin.line, index + 1)
        try:
            if kind is Demonstration and not is_learned(instance, str(place)):
                yield Skipped("an instance that is marked not to be imitated", place)
                continue
            prompt = prompt_of(instance, place)
            yield prompt if kind is Prompt else Demonstration(prompt, answer_of(instance, place))
        except DataError as error:
            yield error


def _both(read: Callable[[Row, Origin], Task], answer_of: Callable[[Row, Origin], str]) -> dict[type, RowBuilder]:
    return {kind: partial(_each, read, answer_of, kind) for kind in (Prompt, Demonstration)}


def _output(instance: Row, place: Origin) -> str:
    return fields.text(instance, "output", place)


# --- self-instruct and Unnatural Instructions ---


def _self_instruct(row: Row, origin: Origin) -> Task:
    """Seeds: {id, name, instruction, instances: [{input, output}], is_classification}.

    Wang et al. 2022, https://arxiv.org/abs/2212.10560.
    """
    instruction = fields.filled(row, "instruction", origin)
    name = fields.optional_text(row, "name", origin)

    def prompt_of(instance: Row, place: Origin) -> Prompt:
        content = fields.joined(instruction, fields.optional_text(instance, "input", place))
        return fields.prompt_of(row, content, place, task=name)

    return fields.objects(row, "instances", origin), prompt_of


UNNATURAL = Question(
    "instruction_with_input",
    refused=(
        re.compile("{INPUT}").search,
        "the instruction still holds the placeholder {{INPUT}}. Remove the row.",
    ),
)


def _unnatural(row: Row, origin: Origin) -> Task:
    """{instruction, instances: [{instruction_with_input, input, constraints, output}], reformulations?: [...]}.

    The constraints stay out of the prompt. Reformulations, of the full data, are paraphrases with the input in them;
    they are numbered after the instances. Honovich et al. 2022, https://arxiv.org/abs/2212.09689.
    """
    instances = fields.objects(row, "instances", origin)
    if row.get("reformulations"):
        instances = instances + fields.objects(row, "reformulations", origin)
    key = UNNATURAL.key
    return instances, lambda instance, place: UNNATURAL({key: instance.get(key)}, place)


def _is_unnatural(row: Row) -> bool:
    instances = row["instances"]
    return isinstance(instances, list) and any(
        isinstance(instance, dict) and "instruction_with_input" in instance for instance in instances
    )


# --- Natural Instructions, one task a row ---


def _first_text(row: Row, key: str, origin: Origin, advice: str) -> str:
    """A text, or the first of a list of texts. advice: what to do about an empty list."""
    if not isinstance(row.get(key), list):
        return fields.text(row, key, origin)
    texts = fields.texts(row, key, origin)
    fields.require(texts, origin, f"'{key}' is an empty list. {advice}.")
    return texts[0]


def _first_output(instance: Row, place: Origin) -> str:
    """The answer; where there are several references, the first."""
    return _first_text(instance, "output", place, "Remove the instance")


def _examples(row: Row, key: str, origin: Origin) -> list[dict[str, Any]]:
    """Positive or negative examples; in version 1 "-" means an empty list."""
    return [] if row.get(key) in (None, "-", ["-"], []) else fields.objects(row, key, origin)


def _task_name(row: Row, origin: Origin) -> str:
    """Version 1 has a Title; task files of version 2 are named by their file."""
    titles = [row[key] for key in ("Title", "task_name", "name") if isinstance(row.get(key), str)]
    return titles[0] if titles else origin.source.replace("\\", "/").rsplit("/", 1)[-1].split(".", 1)[0]


def _task(row: Row, origin: Origin) -> Task:
    """{Definition, Positive Examples, Negative Examples, Instances: [{input, output: [...]}], ...}. Positive examples
    come before the instances. The definition is a text (version 1), or a list, of which the first is the task's.

    Mishra et al. 2021, https://arxiv.org/abs/2104.08773; Wang et al. 2022, https://arxiv.org/abs/2204.07705.
    """
    right = _examples(row, "Positive Examples", origin) + fields.objects(row, "Instances", origin)
    definition = _first_text(row, "Definition", origin, "Fill it in")
    definition, name = fields.filled({"Definition": definition}, "Definition", origin), _task_name(row, origin)

    def prompt_of(instance: Row, place: Origin) -> Prompt:
        content = fields.joined(definition, fields.text(instance, "input", place))
        return fields.prompt_of({}, content, place, task=name)

    return right, prompt_of


def _task_rankings(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
    """Rankings of the negative examples, each under the positive example or instance with the same input."""
    examples, prompt_of = _task(row, origin)
    # Of several examples with the same input the first counts.
    right = {example["input"]: example for example in reversed(examples) if isinstance(example.get("input"), str)}
    for index, wrong in enumerate(_examples(row, "Negative Examples", origin)):
        place = Part(origin.source, origin.line, index + 1)
        better = right.get(wrong["input"]) if isinstance(wrong.get("input"), str) else None
        if better is None:
            yield Skipped("a negative example whose input has no right answer in the file", place)
            continue
        try:
            responses = (_first_output(better, place), _first_output(wrong, place))
            right_answers = better["output"] if isinstance(better.get("output"), list) else responses[:1]
            fields.require(
                responses[1] not in right_answers,
                place,
                "contradictory: a negative example is one of the right answers. Remove it.",
            )
            yield Ranking(prompt_of(wrong, place), responses, (0, 1))
        except DataError as error:
            yield error


def _flat_prompt(row: Row, origin: Origin) -> Prompt:
    """One instance a row: {task_name, id, definition, inputs, targets}."""
    definition, task_input = fields.filled(row, "definition", origin), fields.text(row, "inputs", origin)
    return fields.prompt_of(row, fields.joined(definition, task_input), origin)


FORMATS = [
    format_of(
        "self-instruct",
        "self-instruct seed tasks, https://arxiv.org/abs/2212.10560",
        "instruction instances",
        looks=lambda row: not _is_unnatural(row),
        rows=_both(_self_instruct, _output),
        reads="history",
    ),
    format_of(
        "unnatural-instructions",
        "Unnatural Instructions, core and full, https://arxiv.org/abs/2212.09689",
        "instruction instances",
        looks=_is_unnatural,
        rows=_both(_unnatural, _output),
    ),
    format_of(
        "natural-instructions",
        "(Super-)Natural Instructions task files, https://arxiv.org/abs/2204.07705",
        "Definition Instances",
        rows={**_both(_task, _first_output), Ranking: _task_rankings},
        reads="Reasoning",  # which kinds of it a task needs
    ),
    format_of(
        "natural-instructions-rows",
        "Super-Natural Instructions, one instance a row (Muennighoff/natural-instructions)",
        "definition inputs targets",
        prompt=_flat_prompt,
        answer="targets",
        reads="history",
    ),
]
