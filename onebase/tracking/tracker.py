"""Metrics of a stage: `metrics.jsonl`, which is the truth, and Weights & Biases beside it.

W&B runs online when the user is logged in, else offline (`wandb sync` sends it later). Whatever the network does, the
run continues. Nothing secret passes through: no console capture, no argv.
"""

import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from onebase.errors import RecordError
from onebase.files.writing import atomic_stream, move_aside, sync
from onebase.recipe.sections import TrackSection
from onebase.terminal import say
from onebase.tracking.dashboard import Dashboard, DashboardLostError, is_wanted

METRICS = "metrics.jsonl"
FILES = (METRICS, "alarms.jsonl", "evaluation_samples.jsonl", "samples.jsonl")
"""All that a tracker writes, and so all that it cuts back."""


class Tracker:
    """Logs one stage's numbers and tables. Use as a context manager: leaving it closes everything."""

    def __init__(
        self,
        folder: Path,
        stage: str,
        track: TrackSection,
        recipe: Mapping[str, Any],
        *,
        kept: Mapping[str, int] | None = None,
    ) -> None:
        """folder: the stage's, which must exist. recipe: the resolved one, for the dashboard's config.

        kept: of a resumed run, the bytes of each file that its checkpoint knew (see `sizes`). What was written after
        that is cut off. The rest is sent to the new W&B run, which then holds every row once.
        """
        self.folder = folder
        self.stage = stage
        if kept is not None:
            _cut_back(folder, kept)
        self._stream = _open(folder / METRICS)
        self._started = time.monotonic()
        self._final: list[Callable[[Dashboard], None]] = []
        self._open = partial(Dashboard, folder, stage, track, recipe)
        self._dashboard = self._begin(again=False) if is_wanted(track) else None
        if kept is not None:
            self._tell(self._replay)

    def sizes(self) -> dict[str, int]:
        """Bytes of metrics and tables so far, by file name: what a checkpoint must know to cut them back."""
        return {path.name: path.stat().st_size for path in _own(self.folder)}

    def sync(self) -> None:
        """Make sure that every row so far, and the files themselves, are on the disk."""
        for path in _own(self.folder):
            sync(path)
        sync(self.folder)

    def _replay(self, dashboard: Dashboard) -> None:
        """Tell a new W&B run all that the files hold."""
        for row in _rows(self.folder / METRICS):
            step = row.pop("step")
            dashboard.log(step, {name: math.nan if value is None else value for name, value in row.items()})
        for path in _own(self.folder):
            if path.name == METRICS:
                continue
            for step, rows in groupby(_rows(path), key=itemgetter("step")):
                table = [{name: cell for name, cell in row.items() if name != "step"} for row in rows]
                dashboard.table(path.stem, list(table[0]), [list(row.values()) for row in table], step)

    def _begin(self, *, again: bool) -> Dashboard | None:
        """A W&B run. again: an offline one, in place of one that was lost. It gets everything so far."""
        try:
            dashboard = self._open(offline=again)
            for tell in (self._replay, *self._final) if again else ():
                tell(dashboard)
            return dashboard
        except Exception as error:  # what W&B may raise where it cannot start is not listed anywhere
            start = "start again" if again else "start"
            say(f"W&B does not {start} ({error}). The run continues without it; its numbers are in {METRICS}.")
            return None

    def _tell(self, what: Callable[[Dashboard], None]) -> None:
        """Tell the dashboard, if there is one; where it is lost, a new offline run takes its place."""
        if self._dashboard is None:
            return
        try:
            what(self._dashboard)
        except DashboardLostError as error:
            say(f"W&B is lost ({error}). The run continues, and is kept offline: `wandb sync` sends it.")
            self._dashboard = self._begin(again=True)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row: `step` is the stage's own, names are complete, such as `ppo/kl`. NaN becomes null."""
        row = {name: _finite(value) for name, value in values.items()}
        head = {"step": step, "time/elapsed": round(time.monotonic() - self._started, 3)}
        self._stream.write(json.dumps({**head, **row}, allow_nan=False) + "\n")
        self._stream.flush()
        self._tell(lambda dashboard: dashboard.log(step, values))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, step: int = 0) -> None:
        """Samples and the like: `<name>.jsonl` in the stage folder, and a W&B table. NaN becomes null in the file."""
        assert f"{name}.jsonl" in FILES, f"a resumed run would not cut {name}.jsonl back"
        with _open(self.folder / f"{name}.jsonl") as stream:
            for row in rows:
                cells = (_finite(cell) if isinstance(cell, float) else cell for cell in row)
                content = {"step": step, **dict(zip(columns, cells, strict=True))}
                stream.write(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
        self._tell(lambda dashboard: dashboard.table(name, columns, rows, step))

    def artifact(self, adapter: Path, *, version: str, parents: Mapping[str, str], details: Mapping[str, Any]) -> None:
        """Show the stage's adapter, and where it comes from, on the dashboard (see `Dashboard.artifact`)."""
        self._final.append(
            partial(Dashboard.artifact, adapter=adapter, version=version, parents=parents, details=details)
        )
        self._tell(self._final[-1])

    def alert(self, title: str, text: str, *, step: int) -> None:
        """Something that a person should look at: on stderr, as a row of `alarms.jsonl`, and as a W&B alert."""
        say(f"{self.stage}, step {step}: {title}: {text}")
        self.table("alarms", ["title", "text"], [[title, text]], step=step)
        self._tell(lambda dashboard: dashboard.alert(title, text))

    def summarise(self, values: Mapping[str, float]) -> None:
        """Final numbers, as the run's summary."""
        self._final.append(partial(Dashboard.summarise, values=values))
        self._tell(self._final[-1])

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        before = self._dashboard
        for _ in range(2):  # twice where the first dashboard is lost on the way
            self._tell(lambda dashboard: dashboard.finish(failed=error is not None))
            if self._dashboard is before:
                break


def _cut_back(folder: Path, kept: Mapping[str, int]) -> None:
    """Cut each of the tracker's files to the size it had; one that was not there yet is moved aside. RecordError where
    rows are lost."""
    kept = {name: size for name, size in kept.items() if name in FILES}
    for name, size in kept.items():
        there = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if there < size:
            raise RecordError(
                f"{folder / name}: has {there} bytes, and its checkpoint knows of {size}: rows are lost. "
                "Put the file back, or start again with --restart."
            )
    for path in _own(folder):
        if path.name not in kept:
            move_aside(path)
    for path in _own(folder):
        if path.stat().st_size > kept[path.name]:
            # In a new file of that name: the old one may have another name elsewhere, which keeps all of it.
            with path.open("rb") as whole, atomic_stream(path) as stream:
                stream.write(whole.read(kept[path.name]))


def _own(folder: Path) -> Iterator[Path]:
    """The tracker's files that are there; RecordError where one is a link, behind which lies somebody else's."""
    there = [path for path in (folder / name for name in FILES) if os.path.lexists(path)]
    for path in there:
        if path.is_symlink() or not path.is_file():
            raise RecordError(f"{path}: is a link or no file, and is left alone. Put the file itself in its place.")
    return iter(there)  # no list, for the reason that `step_folders` has


def _open(path: Path) -> TextIO:
    """To append to; RecordError where it is a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    try:
        return os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise RecordError(f"{path}: is a link, and is not written through. Put the file itself in its place.") from None


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    # Not splitlines(): a sampled text may hold U+2028 and its like, which end no line here.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
