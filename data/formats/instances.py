"""One instruction and many inputs a row: self-instruct, Unnatural Instructions, (Super-)Natural Instructions."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from data.formats import fields
from data.formats.format import Options, Outcome, Part, PromptReader, Row, RowBuilder, Skipped, format_of
from data.formats.meaning import is_learned
from data.records import Demonstration, Origin, Prompt, Ranking
from onebase.errors import DataError


def _part(origin: Origin, index: int) -> Origin:
    """The place of the instance with this index (from 0) in a row."""
    return Part(origin.source, origin.line, index + 1)


def _attempt(make: Callable[[], Outcome]) -> Outcome:
    """What `make` gives, or its DataError as a value: one bad instance does not take the others with it."""
    try:
        return make()
    except DataError as error:
        return error


def _each(
    kind: type,
    instances: list[dict[str, Any]],
    origin: Origin,
    prompt_of: PromptReader,
    answer_of: Callable[[Row, Origin], str],
) -> Iterator[Outcome]:
    """A prompt or a demonstration of each instance; its DataError in place of a bad one."""
    for index, instance in enumerate(instances):
        place = _part(origin, index)

        def make(instance: Row = instance, place: Origin = place) -> Outcome:
            if kind is Demonstration and not is_learned(instance, str(place)):
                return Skipped("an instance that is marked not to be imitated", place)
            prompt = prompt_of(instance, place)
            return prompt if kind is Prompt else Demonstration(prompt, answer_of(instance, place))

        yield _attempt(make)


def _both(builder: Callable[[type], RowBuilder]) -> dict[type, RowBuilder]:
    return {kind: builder(kind) for kind in (Prompt, Demonstration)}


def _output(instance: Row, place: Origin) -> str:
    return fields.text(instance, "output", place)


# --- self-instruct ---


def _self_instruct(kind: type) -> RowBuilder:
    """Seeds: {id, name, instruction, instances: [{input, output}], is_classification}.

    Wang et al. 2022, https://arxiv.org/abs/2212.10560.
    """

    def build(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
        instruction = fields.filled(row, "instruction", origin)
        name = fields.optional_text(row, "name", origin)

        def prompt_of(instance: Row, place: Origin) -> Prompt:
            content = fields.joined(instruction, fields.optional_text(instance, "input", place))
            return fields.user_prompt(row, content, place, task=name)

        return _each(kind, fields.objects(row, "instances", origin), origin, prompt_of, _output)

    return build


# --- Unnatural Instructions ---


def _is_unnatural(row: Row) -> bool:
    instances = row["instances"]
    return isinstance(instances, list) and any(
        isinstance(instance, dict) and "instruction_with_input" in instance for instance in instances
    )


def _is_self_instruct(row: Row) -> bool:
    return not _is_unnatural(row)


def _unnatural(kind: type) -> RowBuilder:
    """{instruction, instances: [{instruction_with_input, input, constraints, output}], reformulations?: [...]}.

    The constraints stay out of the prompt. Reformulations, of the full data, are paraphrases with the input in them;
    they are numbered after the instances. Honovich et al. 2022, https://arxiv.org/abs/2212.09689.
    """

    def prompt_of(instance: Row, place: Origin) -> Prompt:
        content = fields.text(instance, "instruction_with_input", place)
        if "{INPUT}" in content:
            raise DataError(f"{place}: the instruction still holds the placeholder {{INPUT}}. Remove the row.")
        return fields.user_prompt({}, content, place)

    def build(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
        instances = fields.objects(row, "instances", origin)
        if row.get("reformulations"):
            instances = instances + fields.objects(row, "reformulations", origin)
        return _each(kind, instances, origin, prompt_of, _output)

    return build


# --- Natural Instructions, one task a row ---


def _definition(row: Row, origin: Origin) -> str:
    """A text (version 1), or a list of texts (version 2), of which the first is the task's."""
    if isinstance(row.get("Definition"), list):
        definitions = fields.texts(row, "Definition", origin)
        if not definitions:
            raise DataError(f"{origin}: 'Definition' is an empty list. Fill it in.")
        row = {"Definition": definitions[0]}
    return fields.filled(row, "Definition", origin)


def _examples(row: Row, key: str, origin: Origin) -> list[dict[str, Any]]:
    """Positive or negative examples; in version 1 "-" means an empty list."""
    if row.get(key) in (None, "-", ["-"], []):
        return []
    return fields.objects(row, key, origin)


def _right_examples(row: Row, origin: Origin) -> list[dict[str, Any]]:
    """The positive examples and the instances, in this order."""
    return _examples(row, "Positive Examples", origin) + fields.objects(row, "Instances", origin)


def _first_output(instance: Row, place: Origin) -> str:
    """The answer; where there are several references, the first."""
    if isinstance(instance.get("output"), list):
        outputs = fields.texts(instance, "output", place)
        if not outputs:
            raise DataError(f"{place}: 'output' is an empty list. Remove the instance.")
        instance = {"output": outputs[0]}
    return fields.text(instance, "output", place)


def _task_name(row: Row, origin: Origin) -> str:
    """Version 1 has a Title; task files of version 2 are named by their file."""
    for key in ("Title", "task_name", "name"):
        if isinstance(row.get(key), str):
            return row[key]
    return origin.source.replace("\\", "/").rsplit("/", 1)[-1].split(".", 1)[0]


def _task_prompt(row: Row, origin: Origin) -> PromptReader:
    definition, name = _definition(row, origin), _task_name(row, origin)

    def prompt_of(instance: Row, place: Origin) -> Prompt:
        content = fields.joined(definition, fields.text(instance, "input", place))
        return fields.user_prompt({}, content, place, task=name)

    return prompt_of


def _task_records(kind: type) -> RowBuilder:
    """{Definition, Positive Examples, Negative Examples, Instances: [{input, output: [...]}], ...}.

    Mishra et al. 2021, https://arxiv.org/abs/2104.08773; Wang et al. 2022, https://arxiv.org/abs/2204.07705.
    """

    def build(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
        return _each(kind, _right_examples(row, origin), origin, _task_prompt(row, origin), _first_output)

    return build


def _task_rankings(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
    """Rankings of the negative examples, each under the positive example or instance with the same input."""
    prompt_of = _task_prompt(row, origin)
    right: dict[str, Mapping[str, Any]] = {}
    for example in _right_examples(row, origin):
        if isinstance(example.get("input"), str):
            right.setdefault(example["input"], example)
    for index, wrong in enumerate(_examples(row, "Negative Examples", origin)):
        place = _part(origin, index)
        better = right.get(wrong["input"]) if isinstance(wrong.get("input"), str) else None
        if better is None:
            yield Skipped("a negative example whose input has no right answer in the file", place)
            continue

        def make(wrong: Row = wrong, better: Row = better, place: Origin = place) -> Outcome:
            responses = (_first_output(better, place), _first_output(wrong, place))
            right_answers = better["output"] if isinstance(better.get("output"), list) else responses[:1]
            if responses[1] in right_answers:
                raise DataError(f"{place}: contradictory: a negative example is one of the right answers. Remove it.")
            return Ranking(prompt_of(wrong, place), responses, (0, 1))

        yield _attempt(make)


def _flat_prompt(row: Row, origin: Origin) -> Prompt:
    """One instance a row: {task_name, id, definition, inputs, targets}."""
    definition = fields.filled(row, "definition", origin)
    return fields.user_prompt(row, fields.joined(definition, fields.text(row, "inputs", origin)), origin)


FORMATS = [
    format_of(
        "self-instruct",
        "self-instruct seed tasks, https://arxiv.org/abs/2212.10560",
        "instruction instances",
        looks=_is_self_instruct,
        rows=_both(_self_instruct),
        reads="history",
    ),
    format_of(
        "unnatural-instructions",
        "Unnatural Instructions, core and full, https://arxiv.org/abs/2212.09689",
        "instruction instances",
        looks=_is_unnatural,
        rows=_both(_unnatural),
    ),
    format_of(
        "natural-instructions",
        "(Super-)Natural Instructions task files, https://arxiv.org/abs/2204.07705",
        "Definition Instances",
        rows={**_both(_task_records), Ranking: _task_rankings},
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
