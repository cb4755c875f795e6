"""Weights & Biases beside `metrics.jsonl`: whatever it does, or fails to do, the run continues.

W&B's client retries for as long as it takes: its `finish` would wait for a lost server for days. Here it is waited for
while the server answers and given up soon after it does not. Its process on this machine may be missing, end at once or
hang: starting it has a time limit of its own.
"""

import contextlib
import netrc
import os
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from onebase.recipe.sections import TrackSection
from onebase.terminal import say
from onebase.tracking.watchdog import children, end_wandb, in_time, while_it_answers

INIT_SECONDS = 8
"""How long the start of an online run may take before it goes offline."""
START_SECONDS = 25.0
"""How long the start of a run may take with W&B's own process, which a slow machine loads for seconds."""
OFFLINE_SECONDS = 300.0
"""How long W&B's own process may take to write the rest of an offline run to the disk."""


class DashboardLostError(Exception):
    """W&B's server, or its process on this machine, is gone."""


class Dashboard:
    """One stage's W&B run, online when the user is logged in, else offline. Every method may raise DashboardLostError,
    after which only a new one is of use."""

    def __init__(
        self, folder: Path, stage: str, track: TrackSection, recipe: Mapping[str, Any], *, offline: bool = False
    ) -> None:
        """folder: the stage's. recipe: the resolved one, for the dashboard's config."""
        self.stage = stage
        self._artifact = artifact_name(folder, stage, track.group)
        self._run: Any = _start_in_time(folder, stage, track, recipe, offline=offline)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Values under their full names at the stage's own step."""
        self._try(lambda: self._run.log({f"{self.stage}/step": step, **values}))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Samples and the like."""

        def send() -> None:
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            self._run.log({f"{self.stage}/step": step, f"{self.stage}/{name}": table})

        # A table is an artifact, for which the server is asked.
        self._try(send, waits=True)

    def artifact(self, adapter: Path, *, version: str, parents: Mapping[str, str], details: Mapping[str, Any]) -> None:
        """The stage's adapter; online its parents are linked, and W&B draws the lineage.

        version: `version_of` the stage's record. parents: by role, `artifact_name:version` of each.
        """
        self._try(lambda: self._log_artifact(adapter, version, parents, details), waits=True)

    def _log_artifact(
        self, adapter: Path, version: str, parents: Mapping[str, str], details: Mapping[str, Any]
    ) -> None:
        import wandb

        artifact = wandb.Artifact(self._artifact, type="adapter", metadata={**details, "parents": dict(parents)})
        artifact.add_dir(str(adapter))
        for name in () if self._run.offline else parents.values():
            # A parent that was trained offline is not there. A server that is gone is told by what follows.
            with contextlib.suppress(Exception):
                self._run.use_artifact(name)
        self._run.log_artifact(artifact, aliases=["latest", version])

    def summarise(self, values: Mapping[str, float]) -> None:
        """Final numbers, as the run's summary."""
        self._try(lambda: self._run.summary.update(dict(values)))

    def alert(self, title: str, text: str) -> None:
        """A message to whoever has asked W&B for alerts, by mail or Slack."""
        self._try(lambda: self._run.alert(title=title, text=text))

    def finish(self, *, failed: bool) -> None:
        """Send the rest and close the run."""
        self._try(lambda: self._run.finish(exit_code=int(failed)), waits=True)

    def _try(self, work: Callable[[], object], *, waits: bool = False) -> None:
        """waits: it may ask the server, or W&B's own process, and wait for its answer."""
        try:
            if waits and not self._run.offline:
                while_it_answers(work, self._run.settings.base_url)
            elif waits:
                in_time(work, OFFLINE_SECONDS)
            else:
                work()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # W&B's own, a broken pipe, a timeout, a task that was cancelled: not the run's
            raise _lost(error) from error


def _lost(error: BaseException, others: Collection[psutil.Process] = ()) -> DashboardLostError:
    """What to raise for whatever W&B did. Its process is ended (see `end_wandb`)."""
    end_wandb(others)
    reason = (str(error).splitlines() or ["no reason given"])[0]
    return DashboardLostError(f"{type(error).__name__}: {reason}")


def run_name(folder: Path, stage: str) -> str:
    """A variant's runs and adapters go by the name of its folder (ppo-rloo), all others by their stage's."""
    name = folder.resolve().name
    return name if name.startswith(f"{stage}-") else stage


def artifact_name(folder: Path, stage: str, group: str | None) -> str:
    """Of a stage's adapter, in letters that W&B takes. group: the recipe's `track.group`."""
    return re.sub(r"[^\w.-]", "-", f"{group_of(folder, group)}-{run_name(folder, stage)}")


def version_of(sha256: str) -> str:
    """The alias of an adapter's artifact: by the hash of its stage record: a link is to this very one."""
    return f"stage-{sha256[:12]}"


def group_of(folder: Path, group: str | None) -> str:
    return group or folder.resolve().parent.name


def _start_in_time(folder: Path, stage: str, track: TrackSection, recipe: Mapping[str, Any], *, offline: bool) -> Any:
    """A W&B run; DashboardLostError where W&B cannot be imported, ends, or takes longer than START_SECONDS."""
    others, given_up = [psutil.Process(), *children()], threading.Event()
    start = partial(_start_wandb, folder, stage, track, recipe, offline=offline, given_up=given_up)
    try:
        return in_time(start, START_SECONDS)
    except BaseException as error:
        given_up.set()
        lost = _lost(error, others)
        if isinstance(error, KeyboardInterrupt):  # the user does not want to wait; nor would our exit wait
            raise
        raise lost from error


def _start_wandb(
    folder: Path,
    stage: str,
    track: TrackSection,
    recipe: Mapping[str, Any],
    *,
    offline: bool,
    given_up: threading.Event,
) -> Any:
    """given_up: nobody waits for the run any more, and no other process of W&B's may be started for it."""
    # Before wandb is imported: it reads them then.
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb
    from wandb.sdk import wandb_setup

    online = not offline and (track.wandb == "online" or (track.wandb == "auto" and logged_in()))
    # Of the environment, or of the files that `wandb offline` and `wandb disabled` write. Not wandb.setup(): it starts
    # W&B's process, and holds a lock meanwhile that giving it up would wait for.
    mode = wandb_setup.singleton().settings.mode
    if mode == "disabled":
        raise RuntimeError("`wandb disabled` has switched it off; `wandb enabled` takes that back")
    if mode in ("offline", "dryrun"):
        online = False

    start = partial(
        wandb.init,
        project=track.project,
        group=group_of(folder, track.group),
        name=run_name(folder, stage),
        job_type=stage,
        dir=str(folder),
        config=dict(recipe),
        settings=wandb.Settings(
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_meta=True,
            init_timeout=INIT_SECONDS,
            silent=True,
            # A run that was lost may still count as the active one.
            reinit="create_new",
        ),
    )

    try:
        run = start(mode="online" if online else "offline")
    except Exception as error:  # whatever the network does, the training goes on
        if given_up.is_set():  # W&B's process was ended, which is why
            raise
        say(f"W&B cannot be reached ({type(error).__name__}); this run is kept offline.")
        run = start(mode="offline")
    # Our own step: W&B's must only ever grow, and several things are logged at one of ours.
    run.define_metric(f"{stage}/step", hidden=True)
    run.define_metric("*", step_metric=f"{stage}/step")
    return run


def is_wanted(track: TrackSection) -> bool:
    """Whether W&B gets anything: not with `track.wandb: off`, nor where the user has switched W&B off everywhere."""
    return track.wandb != "off" and os.environ.get("WANDB_MODE") != "disabled"


def logged_in() -> bool:
    """Whether W&B has credentials here (their values are never read into ours)."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, ValueError, netrc.NetrcParseError):  # ValueError: it is no text
        return False
