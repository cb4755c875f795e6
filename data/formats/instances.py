"""One instruction and many inputs a row: self-instruct, Unnatural Instructions, (Super-)Natural Instructions."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from data.formats import fields
from data.formats.fields import attempt, part
from data.formats.format import Builder, Format, Options, Outcome, Row, Skipped
from data.formats.instructions import answers, prompts
from data.formats.meaning import is_learned
from data.records import Demonstration, Origin, Prompt, Ranking
from onebase.errors import DataError


def _each(
    kind: type,
    instances: list[dict[str, Any]],
    origin: Origin,
    asked: Callable[[Row, Origin], Prompt],
    answer: Callable[[Row, Origin], str],
) -> Iterator[Outcome]:
    """A prompt or a demonstration of each instance; its DataError in place of a bad one."""
    for index, one in enumerate(instances):
        place = part(origin, index)

        def make(one: Row = one, place: Origin = place) -> Prompt | Demonstration | Skipped:
            if kind is Demonstration and not is_learned(one, str(place)):
                return Skipped("an instance that is marked not to be imitated", place)
            prompt = asked(one, place)
            return prompt if kind is Prompt else Demonstration(prompt, answer(one, place))

        yield attempt(make)


def _output(one: Row, place: Origin) -> str:
    return fields.text(one, "output", place)


# --- self-instruct ---


def _self_instruct(kind: type) -> Builder:
    """Seeds: {id, name, instruction, instances: [{input, output}], is_classification}.

    Wang et al. 2022, https://arxiv.org/abs/2212.10560.
    """

    def build(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
        instruction = fields.filled(row, "instruction", origin)
        name = fields.optional_text(row, "name", origin)

        def asked(one: Row, place: Origin) -> Prompt:
            given = fields.optional_text(one, "input", place)
            return fields.asked(row, fields.joined(instruction, given), place, task=name)

        return _each(kind, fields.objects(row, "instances", origin), origin, asked, _output)

    return build


# --- Unnatural Instructions ---


def _is_unnatural(row: Row) -> bool:
    found = row["instances"]
    return isinstance(found, list) and any(isinstance(one, dict) and "instruction_with_input" in one for one in found)


def _is_self_instruct(row: Row) -> bool:
    return not _is_unnatural(row)


def _unnatural(kind: type) -> Builder:
    """{instruction, instances: [{instruction_with_input, input, constraints, output}], reformulations?: [...]}.

    The constraints stay out of the prompt. Reformulations, of the full data, are paraphrases with the input in them;
    they are numbered on after the instances. Honovich et al. 2022, https://arxiv.org/abs/2212.09689.
    """

    def asked(one: Row, place: Origin) -> Prompt:
        said = fields.text(one, "instruction_with_input", place)
        if "{INPUT}" in said:
            raise DataError(f"{place}: the instruction still holds the placeholder {{INPUT}}. Drop the row.")
        return fields.asked({}, said, place)

    def build(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
        instances = fields.objects(row, "instances", origin)
        if row.get("reformulations"):
            instances = instances + fields.objects(row, "reformulations", origin)
        return _each(kind, instances, origin, asked, _output)

    return build


# --- Natural Instructions, one task a row ---


def _definition(row: Row, origin: Origin) -> str:
    """A text (version 1), or a list of texts (version 2), of which the first is the task's."""
    if isinstance(row.get("Definition"), list):
        found = fields.texts(row, "Definition", origin)
        if not found:
            raise DataError(f"{origin}: 'Definition' is an empty list. Fill it in.")
        row = {"Definition": found[0]}
    return fields.filled(row, "Definition", origin)


def _examples(row: Row, key: str, origin: Origin) -> list[dict[str, Any]]:
    """Positive or negative examples; "-" says in version 1 that there are none."""
    if row.get(key) in (None, "-", ["-"], []):
        return []
    return fields.objects(row, key, origin)


def _right(row: Row, origin: Origin) -> list[dict[str, Any]]:
    """The positive examples and the instances, in this order."""
    return _examples(row, "Positive Examples", origin) + fields.objects(row, "Instances", origin)


def _first_output(one: Row, place: Origin) -> str:
    """The answer; where there are several references, the first."""
    if isinstance(one.get("output"), list):
        found = fields.texts(one, "output", place)
        if not found:
            raise DataError(f"{place}: 'output' is an empty list. Drop the instance.")
        one = {"output": found[0]}
    return fields.text(one, "output", place)


def _task_name(row: Row, origin: Origin) -> str:
    """Version 1 has a Title; task files of version 2 are named by their file."""
    for key in ("Title", "task_name", "name"):
        if isinstance(row.get(key), str):
            return row[key]
    return origin.source.replace("\\", "/").rsplit("/", 1)[-1].split(".", 1)[0]


def _task(row: Row, origin: Origin) -> Callable[[Row, Origin], Prompt]:
    definition, name = _definition(row, origin), _task_name(row, origin)

    def asked(one: Row, place: Origin) -> Prompt:
        return fields.asked({}, fields.joined(definition, fields.text(one, "input", place)), place, task=name)

    return asked


def _task_records(kind: type) -> Builder:
    """{Definition, Positive Examples, Negative Examples, Instances: [{input, output: [...]}], ...}.

    Mishra et al. 2021, https://arxiv.org/abs/2104.08773; Wang et al. 2022, https://arxiv.org/abs/2204.07705.
    """

    def build(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
        return _each(kind, _right(row, origin), origin, _task(row, origin), _first_output)

    return build


def _task_rankings(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
    """Rankings of the negative examples, each under the positive example or instance with the same input."""
    asked = _task(row, origin)
    right: dict[str, Mapping[str, Any]] = {}
    for one in _right(row, origin):
        if isinstance(one.get("input"), str):
            right.setdefault(one["input"], one)
    for index, wrong in enumerate(_examples(row, "Negative Examples", origin)):
        place = part(origin, index)
        better = right.get(wrong["input"]) if isinstance(wrong.get("input"), str) else None
        if better is None:
            yield Skipped("a negative example whose input has no right answer in the file", place)
            continue

        def make(wrong: Row = wrong, better: Row = better, place: Origin = place) -> Ranking:
            responses = (_first_output(better, place), _first_output(wrong, place))
            right_ones = better["output"] if isinstance(better.get("output"), list) else responses[:1]
            if responses[1] in right_ones:
                raise DataError(f"{place}: contradictory: a negative example is one of the right answers. Drop it.")
            return Ranking(asked(wrong, place), responses, (0, 1))

        yield attempt(make)


def _flat(row: Row, origin: Origin) -> Prompt:
    """One instance a row: {task_name, id, definition, inputs, targets}."""
    definition = fields.filled(row, "definition", origin)
    return fields.asked(row, fields.joined(definition, fields.text(row, "inputs", origin)), origin)


FORMATS = [
    Format(
        name="self-instruct",
        publisher="self-instruct seed tasks, https://arxiv.org/abs/2212.10560",
        keys=frozenset({"instruction", "instances"}),
        looks=_is_self_instruct,
        rows={Prompt: _self_instruct(Prompt), Demonstration: _self_instruct(Demonstration)},
        reads=frozenset({"history"}),
    ),
    Format(
        name="unnatural-instructions",
        publisher="Unnatural Instructions, core and full, https://arxiv.org/abs/2212.09689",
        keys=frozenset({"instruction", "instances"}),
        looks=_is_unnatural,
        rows={Prompt: _unnatural(Prompt), Demonstration: _unnatural(Demonstration)},
    ),
    Format(
        name="natural-instructions",
        publisher="(Super-)Natural Instructions task files, https://arxiv.org/abs/2204.07705",
        keys=frozenset({"Definition", "Instances"}),
        rows={Prompt: _task_records(Prompt), Demonstration: _task_records(Demonstration), Ranking: _task_rankings},
        reads=frozenset({"Reasoning"}),  # which kinds of it a task asks for
    ),
    Format(
        name="natural-instructions-rows",
        publisher="Super-Natural Instructions, one instance a row (Muennighoff/natural-instructions)",
        keys=frozenset({"definition", "inputs", "targets"}),
        rows={Prompt: prompts(_flat), Demonstration: answers(_flat, "targets")},
        reads=frozenset({"history"}),
    ),
]
