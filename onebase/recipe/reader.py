"""Recipes: one YAML 1.2 file a stage, read into frozen models. Errors name the file and the line.

recipes/smoke/sft.yaml:7: train.stpes: unknown key; did you mean 'steps'?
"""

import difflib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.representer import SafeRepresenter

from onebase.errors import RecipeError
from onebase.recipe.sections import Section
from onebase.terminal import printable

R = TypeVar("R", bound=Section)

Place = tuple[str | int, ...]
"""Path of a value in a document."""

Lines = dict[Place, int]
"""Line of each key and list element."""

Origins = dict[Place, str]
"""The override that gave each value."""


class _Constructor(SafeConstructor):
    """Plain values. A date stays text: no recipe has one."""


class _Representer(SafeRepresenter):
    """Texts with control characters in double quotes, where YAML reads the codes that `printable` writes."""

    def represent_text(self, text: str) -> ScalarNode:
        style = None if printable(text) == text else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)
_Representer.add_representer(str, _Representer.represent_text)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor, yaml.Representer = _Constructor, _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared as None
    yaml.width = 2**20  # no line breaks within a text
    return yaml


def read(path: Path | str, model: type[R], overrides: Sequence[str] = ()) -> R:
    """The recipe in `path` with `key.sub=value` overrides applied; RecipeError with file and line where it is wrong."""
    path = Path(path)
    content, lines = _parse(path)
    origins: Origins = {}
    for override in overrides:
        place = _apply(content, override)
        # What stands there now, the file's lines and earlier overrides no longer say.
        lines = {key: line for key, line in lines.items() if key[: len(place)] != place}
        origins = {key: text for key, text in origins.items() if key[: len(place)] != place} | {place: override}
    try:
        return model.model_validate(content)
    except ValidationError as error:
        details = _without_consequences(error.errors())
        messages = [_explain(path, model, detail, lines, origins) for detail in details]
        raise RecipeError("\n".join(messages)) from None


def dump(recipe: Section) -> str:
    """The resolved recipe as YAML, every default written out; `read` takes it back. Printable, as `onebase.terminal`
    has it."""
    stream = io.StringIO()
    _yaml().dump(recipe.model_dump(mode="json"), stream)
    return printable(stream.getvalue())


def unknown_key(where: str, key: str, known: Sequence[str]) -> str:
    """The message for a key that does not exist."""
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(sorted(known))}"
    return f"{where}: unknown key '{key}'; {hint}"


def _parse(path: Path) -> tuple[dict[str, Any], Lines]:
    if not path.is_file():
        raise RecipeError(f"{path}: there is no such recipe. Pass a YAML file, such as recipes/demo/sft.yaml.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    if (directive := re.search(r"^%YAML[ \t]+(?!1\.2\s)", text, re.MULTILINE)) is not None:
        line = text.count("\n", 0, directive.start()) + 1
        raise RecipeError(f"{path}:{line}: a recipe is YAML 1.2, and this line asks for another version. Remove it.")
    lines: Lines = {}
    parser = _yaml()
    try:
        node = parser.compose(text)
        if not isinstance(node, MappingNode):
            raise RecipeError(
                f"{path}: expected keys and values at the top, found {'nothing' if node is None else node.id}."
            )
        _note_lines(path, node, (), lines)
        return parser.constructor.construct_document(node), lines
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: not valid YAML: {error.problem}.") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(
            f"{path}:{line}: not valid YAML: the character #x{error.character:04x} is not allowed."
        ) from None
    except (ValueError, AssertionError, LookupError) as error:  # such as 0x_ or !!bool maybe
        raise RecipeError(f"{path}: not valid YAML: {error}.") from None
    except RecursionError:
        raise RecipeError(f"{path}: nested too deeply, or an alias is inside what it names.") from None


def _note_lines(path: Path, node: Node, prefix: Place, lines: Lines) -> None:
    lines[prefix] = node.start_mark.line + 1
    if isinstance(node, MappingNode):
        for key, value in node.value:
            place = (*prefix, str(key.value))
            if place in lines:
                raise RecipeError(
                    f"{path}:{key.start_mark.line + 1}: the key '{key.value}' was given before, "
                    f"on line {lines[place]}. Remove one."
                )
            _note_lines(path, value, place, lines)
            lines[place] = key.start_mark.line + 1
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(path, value, (*prefix, index), lines)


def _apply(content: dict[str, Any], override: str) -> Place:
    """Put an override's value in its place; returns the place, or that of the outermost section that it made."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"override '{override}': expected key=value, such as train.learning_rate=1e-4.")
    try:
        value = _yaml().load(text) if text else None
    except (YAMLError, ValueError, AssertionError, LookupError, RecursionError):
        value = text
    place: Any = content
    *way, last = (int(part) if part.isdecimal() else part for part in key.split("."))
    made: Place | None = None
    for depth, part in enumerate(way, start=1):
        if isinstance(place, dict) and not isinstance(place.get(str(part)), dict | list):
            place[str(part)] = {}
            made = made or tuple(way[:depth])
        place = _inner(place, part, override)
    if isinstance(place, list):
        if not isinstance(last, int) or last >= len(place):
            raise RecipeError(f"override '{override}': the list has {len(place)} elements. Check the index.")
        place[last] = value
        return made or (*way, last)
    place[str(last)] = value
    return made or (*way, str(last))


def _inner(place: Any, part: str | int, override: str) -> Any:
    """The section or list element at `part`."""
    if isinstance(place, dict) and isinstance(part, str):
        return place[part]
    if isinstance(place, list) and isinstance(part, int) and part < len(place):
        return place[part]
    raise RecipeError(f"override '{override}': there is no '{part}' to go into. Check the path.")


def _without_consequences(details: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """pydantic counts a list's elements without the wrong ones: it says of a list with one, wrong element that it is
    empty."""
    outer = {tuple(detail["loc"][:length]) for detail in details for length in range(len(detail["loc"]))}
    return [detail for detail in details if detail["type"] != "too_short" or tuple(detail["loc"]) not in outer]


def _explain(
    path: Path,
    model: type[BaseModel],
    detail: ErrorDetails,
    lines: Lines,
    origins: Origins,
) -> str:
    """One line for one error: where (file:line or the override), which key, what is wrong, what was found."""
    place = tuple(detail["loc"])
    where = _where(path, place, lines, origins)
    if isinstance(detail["input"], dict | list | tuple):
        where += _overrides_within(place, detail, origins)
    key = ".".join(map(str, place))
    if detail["type"] == "extra_forbidden":
        parent = ".".join(map(str, place[:-1]))
        owner = _model_at(model, place[:-1])
        known = list(owner.model_fields) if owner is not None else []
        return unknown_key(f"{where}{': ' + parent if parent else ''}", str(place[-1]), known)
    if detail["type"] == "missing":
        return f"{where}: {key}: missing; this key has no default"
    message = detail["msg"].removeprefix("Value error, ")
    value = "" if not place or isinstance(detail["input"], dict) else f", found {_shown(detail['input'])}"
    return f"{where}: {key + ': ' if key else ''}{message[:1].lower() + message[1:]}{value}"


def _where(path: Path, place: tuple[str | int, ...], lines: Lines, origins: Origins) -> str:
    for length in range(len(place), 0, -1):
        if place[:length] in origins:
            return f"override '{origins[place[:length]]}'"
        if place[:length] in lines:
            return f"{path}:{lines[place[:length]]}"
    return str(path)


def _overrides_within(place: Place, detail: ErrorDetails, origins: Origins) -> str:
    """The overrides of parts of a section or list that is wrong as a whole: of a section, those that the message names
    by their keys, such as train.batch=7, 'function' or data:."""

    def is_named(key: str) -> bool:
        end = r"(?!\w)" if "." in key else r"(?=['=:])"
        return re.search(rf"(?<![\w.]){re.escape(key)}{end}", detail["msg"]) is not None

    whole = not isinstance(detail["input"], dict)
    return "".join(
        f", override '{override}'"
        for key, override in origins.items()
        if len(key) > len(place)
        and key[: len(place)] == place
        and (whole or is_named(".".join(map(str, key[len(place) :]))))
    )


def _shown(value: Any) -> str:
    """As the recipe has it, or nearly so."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _model_at(model: type[BaseModel], place: Sequence[str | int]) -> type[BaseModel] | None:
    """The section that holds the key at `place`."""
    current: type[BaseModel] | None = model
    for part in place:
        if isinstance(part, int):
            continue
        if current is None or part not in current.model_fields:
            return None
        current = _section_in(current.model_fields[part].annotation)
    return current


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((section for inner in get_args(annotation) if (section := _section_in(inner)) is not None), None)
