"""Metrics of a stage: `metrics.jsonl`, which is the truth, and Weights & Biases beside it.

W&B runs online when the user is logged in, else offline (`wandb sync` sends it later). Whatever the network does, the
run goes on. Nothing secret passes through: no console capture, no argv.
"""

import json
import math
import netrc
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from onebase.disk import sync
from onebase.errors import RecordError
from onebase.recipes import TrackSection

METRICS = "metrics.jsonl"
INIT_SECONDS = 8
"""How long the start of an online run may take before it goes offline."""


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

        kept: of a run that goes on, the bytes of each file that its checkpoint knew (see `sizes`). What was written
        after that is cut off, and the rest is told to the new W&B run, so that it holds every row once.
        """
        self.folder = folder
        self.stage = stage
        if kept is not None:
            _cut_back(folder, kept)
        self._stream = (folder / METRICS).open("a", encoding="utf-8")
        self._started = time.monotonic()
        self._run = _start_wandb(folder, stage, track, recipe) if track.wandb != "off" else None
        if kept is not None:
            self._replay()

    def sizes(self) -> dict[str, int]:
        """Bytes of metrics and tables so far, by file name: what a checkpoint must know to cut them back."""
        return {path.name: path.stat().st_size for path in sorted(self.folder.glob("*.jsonl"))}

    def sync(self) -> None:
        """Make sure that every row so far, and the files themselves, are on the disk."""
        for path in sorted(self.folder.glob("*.jsonl")):
            sync(path)
        sync(self.folder)

    def _replay(self) -> None:
        if self._run is None:
            return
        for row in _rows(self.folder / METRICS):
            self._send(row.pop("step"), {name: math.nan if value is None else value for name, value in row.items()})
        for path in sorted(self.folder.glob("*.jsonl")):
            if path.name == METRICS:
                continue
            by_step: dict[int, list[dict[str, Any]]] = {}
            for row in _rows(path):
                by_step.setdefault(row.pop("step"), []).append(row)
            for step, rows in by_step.items():
                self._send_table(path.stem, list(rows[0]), [list(row.values()) for row in rows], step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One row: `step` is the stage's own, names are complete, such as `ppo/kl`. NaN becomes null."""
        row = {name: _finite(value) for name, value in values.items()}
        head = {"step": step, "time/elapsed": round(time.monotonic() - self._started, 3)}
        self._stream.write(json.dumps({**head, **row}, allow_nan=False) + "\n")
        self._stream.flush()
        self._send(step, values)

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        if self._run is not None:
            self._run.log({f"{self.stage}/step": step, **values})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, step: int = 0) -> None:
        """Samples and the like: `<name>.jsonl` in the stage folder, and a W&B table. NaN becomes null in the file."""
        with (self.folder / f"{name}.jsonl").open("a", encoding="utf-8") as stream:
            for row in rows:
                cells = (_finite(cell) if isinstance(cell, float) else cell for cell in row)
                content = {"step": step, **dict(zip(columns, cells, strict=True))}
                stream.write(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
        self._send_table(name, columns, rows, step)

    def _send_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        if self._run is not None:
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            self._run.log({f"{self.stage}/step": step, f"{self.stage}/{name}": table})

    def artifact(self, adapter: Path, *, parents: Mapping[str, str], details: Mapping[str, Any]) -> None:
        """Log the stage's adapter as an artifact; online its parents are linked, so that W&B draws the lineage."""
        if self._run is None:
            return
        import wandb

        group = self._run.group or "onebase"
        artifact = wandb.Artifact(
            f"{group}-{self.stage}", type="adapter", metadata={**details, "parents": dict(parents)}
        )
        artifact.add_dir(str(adapter))
        if not self._run.offline:
            for stage in parents:
                self._run.use_artifact(f"{group}-{stage}:latest")
        self._run.log_artifact(artifact)

    def summarise(self, values: Mapping[str, float]) -> None:
        """Final numbers, as the run's summary."""
        if self._run is not None:
            self._run.summary.update(dict(values))

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        if self._run is not None:
            self._run.finish(exit_code=0 if error is None else 1)


def _cut_back(folder: Path, kept: Mapping[str, int]) -> None:
    """Cut each file to the size it had; one that was not there yet is removed. RecordError where rows are lost."""
    for name, size in kept.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if found < size:
            raise RecordError(
                f"{folder / name}: has {found} bytes, and its checkpoint knows of {size}: rows are lost. "
                "Put the file back, or start anew with --restart."
            )
    for path in folder.glob("*.jsonl"):
        if path.name not in kept:
            path.unlink()
            continue
        with path.open("r+b") as stream:
            stream.truncate(kept[path.name])
            stream.flush()
            os.fsync(stream.fileno())


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    # Not splitlines(): a sampled text may hold U+2028 and its like, which end no line here.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def peak_rss_bytes() -> int:
    """The most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _start_wandb(folder: Path, stage: str, track: TrackSection, recipe: Mapping[str, Any]) -> Any:
    # Before wandb is imported: it reads them then.
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    online = track.wandb == "online" or (track.wandb == "auto" and logged_in())
    if os.environ.get("WANDB_MODE") in {"offline", "disabled"}:
        online = False

    def start(mode: Literal["online", "offline"]) -> Any:
        return wandb.init(
            project=track.project,
            group=track.group or folder.resolve().parent.name,
            name=stage,
            job_type=stage,
            dir=str(folder),
            config=dict(recipe),
            mode=mode,
            settings=wandb.Settings(
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_stats=True,
                x_disable_meta=True,
                init_timeout=INIT_SECONDS,
                silent=True,
            ),
        )

    try:
        run = start("online" if online else "offline")
    except Exception as error:  # whatever the network does, the training goes on
        print(f"W&B cannot be reached ({type(error).__name__}); this run is kept offline.", file=sys.stderr)
        run = start("offline")
    # Our own step: W&B's must only ever grow, and several things are logged at one of ours.
    run.define_metric(f"{stage}/step", hidden=True)
    run.define_metric("*", step_metric=f"{stage}/step")
    return run


def logged_in() -> bool:
    """Whether W&B has credentials here (their values are never read into ours)."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
