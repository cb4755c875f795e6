"""Which finished stage the user probably means by a path to one of its parts, to the run around it, or to the wrong
stage of the same run.

runs/x/sft/adapter, runs/x/sft/stage.json, runs/x  ->  Did you mean runs/x/sft?
"""

import contextlib
from pathlib import Path

from onebase.errors import RecordError
from onebase.files.json_file import read_object

FILE = "stage.json"
CHECKPOINTS = "checkpoints"
MARK = ".onebase.json"
"""What a stage writes into its folder first."""
ADAPTER = "adapter_config.json"
"""What PEFT, and many others, write beside an adapter's weights."""
SHOWN = 3
"""Folders that are proposed."""


def question(path: Path, stage: str | None) -> str:
    """' Did you mean ...?' with the finished stages (of this kind, or of any) that `path` may have meant; '' if
    there are not any."""
    folders = list(dict.fromkeys(map(str, _finished_near(path, stage))))[:SHOWN]
    return f" Did you mean {' or '.join(folders)}?" if folders else ""


def describe(path: Path, stage: str | None) -> str:
    """What to say of a path without a finished stage: what it is instead, and what was meant."""
    meant = question(path, stage)
    if not path.exists():
        return f"there is no such stage folder.{meant or ' Run that stage first, or check the path.'}"
    if meant:
        again = " Or run it again, to go on with it." if (path / CHECKPOINTS).is_dir() else ""
        return f"this is no folder of a finished stage: it holds no {FILE}.{meant}{again}"
    if not path.is_dir():
        return "this is a file. Pass the folder of a finished stage, such as runs/<name>/sft."
    if (path / ADAPTER).is_file():
        return (
            f"this is an adapter without the record of a stage ({FILE}) around it, so nothing says what it was trained "
            "on. Pass the folder of a stage that Onebase has finished, such as runs/<name>/sft."
        )
    if not (path / MARK).is_file() and not (path / CHECKPOINTS).is_dir():
        return f"this is no folder of a stage: it holds no {FILE}. Pass one such as runs/<name>/sft."
    return f"holds no {FILE}, so that stage has not finished. Run it again to go on with it."


def _finished_near(path: Path, stage: str | None) -> list[Path]:
    # The path itself and what it lies in, spelled as it was given where that is possible.
    around = [path, *path.parents, *path.absolute().parents]
    holder = next((folder for folder in around if _stage_in(folder) is not None), None)
    if holder is None:
        return _inside(path, stage)
    # A part of another stage: its neighbour, where the two are of one run.
    return [holder] if stage in (None, _stage_in(holder)) else _inside(holder.parent, stage)


def _inside(run: Path, stage: str | None) -> list[Path]:
    """A run's finished stages of this kind, its own first, then variants such as ppo-rloo."""
    folders = sorted(run.iterdir() if run.is_dir() else (), key=lambda path: (len(path.name), path.name))
    return [folder for folder in folders if (kind := _stage_in(folder)) is not None and stage in (None, kind)]


def _stage_in(folder: Path) -> str | None:
    """The kind of stage that has finished in a folder; its record is not verified."""
    kind = None
    with contextlib.suppress(RecordError):
        kind = read_object(folder / FILE)[0].get("stage")
    return kind if isinstance(kind, str) else None
