"""A stage at work: its folder, lock, metrics, checkpoints, and what happens when it has to stop.

    with Session(recipe, "ppo") as session:
        if session.resumed: restore(session.resumed.state)
        for step in range(session.first_step, steps + 1):
            with session.step(step, state):      # a signal in here saves the state that the step started from ...
                rollout = collect(...)
                session.changing()               # ... but not from here on: then the last checkpoint stands
                update(...)
                session.tracker.log(step, ...)

A checkpoint is a step boundary. Batches depend on (seed, step) alone, so a step that is repeated gives the same bits.
"""

import contextlib
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from onebase.errors import DivergedError, EndedError, InputError, Interrupted, RecordError
from onebase.files.disk import as_disk_error
from onebase.files.writing import replace_file
from onebase.memory import Budget
from onebase.recipe.sections import PARENTS, CheckpointSection, TrackSection
from onebase.run import folders
from onebase.run.checkpoint import Checkpoint, Checkpoints
from onebase.run.identity import FAILURE, RunIdentity, note_failure
from onebase.run.learning import restoring
from onebase.seeding import random_state, set_random_state
from onebase.terminal import say
from onebase.tracking.tracker import Tracker

State = Mapping[str, Any]

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Session:
    """Use as a context manager; from its start on there is something to lose."""

    def __init__(
        self,
        folder: Path,
        stage: str,
        *,
        track: TrackSection,
        checkpoint: CheckpointSection,
        recipe: Mapping[str, Any],
        state_bytes: int,
        identity: RunIdentity | None = None,
        budget: Budget | None = None,
    ) -> None:
        """recipe: the resolved one; checkpoints of another recipe are refused. state_bytes: of one save, which must fit
        on the disk.

        identity: what else decides the result; a run is not resumed where that has changed. budget: sizes that are
        halved when memory runs out.
        """
        folders.require_own(folder, stage)
        folders.hold(folder)
        self.folder = folder
        # Where the identity has the parents' hashes, it does not matter where they lie: a run can be moved.
        counted = {key: value for key, value in recipe.items() if identity is None or key != PARENTS}
        self.checkpoints = Checkpoints(folder / folders.CHECKPOINTS, checkpoint, recipe=counted)
        self.resumed: Checkpoint | None = _whole(self.checkpoints.newest())
        self.identity = identity
        if identity is not None and self.resumed is None:
            identity.begin()
        elif identity is not None and self.resumed is not None:
            fixed = (folder / FAILURE).is_file()
            identity.resume(self.resumed.state.get("identity"), self.resumed.step, fixed=fixed, stage=stage)
        self.checkpoints.probe(state_bytes)
        folders.claim(folder, stage, self.checkpoints.recipe)
        kept = None if self.resumed is None else self.resumed.state["files"]
        self.tracker = Tracker(folder, stage, track, recipe, kept=kept)
        self.strikes = 0 if self.resumed is None else int(self.resumed.state["strikes"])
        """Batches so far with a loss or gradient that was not finite."""
        self.budget = budget or Budget()
        self.budget.halvings = 0 if self.resumed is None else int(self.resumed.state["halvings"])
        self._allowed = checkpoint.strikes
        self._changed = False
        self._saving = False
        self._pending: int | None = None
        self._previous: dict[int, Any] = {}
        if self.resumed is not None:
            say(f"{stage}: resuming after step {self.resumed.step} from {self.resumed.folder}")

    @property
    def first_step(self) -> int:
        """The step to begin with; steps count from 1."""
        return 1 if self.resumed is None else self.resumed.step + 1

    # --- state ------------------------------------------------------------------------------------------------------

    def restore_random(self) -> None:
        """Put the global random number generators where they were when the checkpoint was made."""
        if self.resumed is not None:
            with restoring("the state of the random number generators"):
                set_random_state(self.resumed.state["random"])

    def save(
        self,
        step: int,
        state: State,
        *,
        random: State | None = None,
        files: Mapping[str, int] | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """Save now. A signal that comes meanwhile is honoured afterwards; a full disk leaves the last save standing."""
        whole = {
            "stage": state,
            "random": random if random is not None else random_state(),
            "files": dict(files if files is not None else self.tracker.sizes()),
            "strikes": self.strikes,
            "halvings": self.budget.halvings,
            "identity": None if self.identity is None else self.identity.model_dump(mode="json"),
        }
        self._saving = True
        try:
            self.tracker.sync()  # the checkpoint counts on these bytes
            self.checkpoints.save(step, whole, extra=extra)
            (self.folder / FAILURE).unlink(missing_ok=True)
        except OSError as failure:
            error = as_disk_error(failure, self.folder) or failure
            kept = [
                path.name for path in folders.step_folders(self.checkpoints.folder) if path.name != f"step-{step:08d}"
            ]
            last = f"{kept[-1]} still stands" if kept else "there is no earlier one"
            say(f"checkpoint of step {step} was not written ({error}); {last}.")
        finally:
            self._saving = False
        if self._pending is not None:
            raise Interrupted(self._pending)

    @contextlib.contextmanager
    def step(self, number: int, state: Callable[[], State], *, total: int) -> Iterator[None]:
        """One step. Saved when it is due or the last. A signal or a user's mistake before `changing()` saves what was
        before the step, EndedError what the step came to."""
        self._changed = False
        # What is logged within the step must not survive where the step is repeated.
        before, random, strikes = self.tracker.sizes(), random_state(), self.strikes
        try:
            yield
        except EndedError:
            self.save(number, state())
            raise
        except DivergedError:
            raise  # what stands is from before the strikes
        except (Interrupted, InputError) as error:
            # Of a mistake in the first step there is nothing to save yet, and another recipe may fix it.
            if not self._changed and (isinstance(error, Interrupted) or number > self.first_step):
                self.strikes = strikes  # the step that is repeated counts its own
                self.save(number - 1, state(), random=random, files=before)
            # A custom function's error is an InputError: only after one may the function be fixed.
            if isinstance(error, InputError) and self.identity is not None and self.identity.functions:
                note_failure(self.folder, number, error, self.identity.functions)
            raise
        self._changed = False
        if number == total or self.checkpoints.due(number):
            self.save(number, state())

    def is_finite(self, step: int, *values: float, batch: Any) -> bool:
        """Whether loss and gradient are finite; if not, the batch is kept in `nonfinite/` and the step to be skipped.

        DivergedError at the last strike. batch: token ids, or whatever JSON tells which rows it was.
        """
        if all(map(math.isfinite, values)):
            return True
        self.strikes += 1
        place = self.folder / "nonfinite" / f"step-{step:08d}-{self.strikes}.json"
        place.parent.mkdir(exist_ok=True)
        replace_file(place, json.dumps({"step": step, "values": [str(value) for value in values], "batch": batch}))
        what = f"step {step}: loss or gradient is not finite ({', '.join(map(str, values))}); its batch is in {place}"
        if self.strikes >= self._allowed:
            raise DivergedError(
                f"{what}. That was strike {self.strikes} of {self._allowed}: training diverged. Look at these "
                f"batches. checkpoint.strikes={2 * self._allowed} lets the same run skip more of them; a lower "
                "learning rate makes it another run, which --restart begins."
            )
        say(f"{what}. The step is skipped; strike {self.strikes} of {self._allowed}.")
        self.tracker.log(step, {f"{self.tracker.stage}/nonfinite": float(self.strikes)})
        return False

    def changing(self) -> None:
        """From here to the end of the step the weights are neither the old nor the new ones."""
        self._changed = True

    # --- signals ----------------------------------------------------------------------------------------------------

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # A second SIGHUP is ignored: a terminal that is closed sends one, and so does its shell.
        for other in self._previous:
            signal.signal(other, signal.SIG_IGN if other == signal.SIGHUP else signal.SIG_DFL)
        say(f"{signal.Signals(number).name}: stopping; a second one leaves at once")
        if self._saving:
            self._pending = number
            return
        raise Interrupted(number)

    def __enter__(self) -> "Session":
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                # Under `nohup` SIGHUP is ignored, and stays so.
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self.tracker.__exit__(kind, error, trace)
        folders.release(self.folder)


HOLDS: Mapping[str, type] = {"stage": dict, "random": dict, "files": dict, "strikes": int, "halvings": int}
"""What a checkpoint's state holds for a session, beside the identity, which says itself what is wrong with it."""


def _whole(saved: Checkpoint | None) -> Checkpoint | None:
    """RecordError where a checkpoint with the right hashes does not hold what `Session.save` writes."""
    for name, kind in HOLDS.items():
        value = None if saved is None else saved.state.get(name)
        counts = value.values() if isinstance(value, dict) and name == "files" else [value] if kind is int else []
        whole = isinstance(value, kind) and all(isinstance(number, int) and number >= 0 for number in counts)
        if saved is not None and not whole:
            raise RecordError(
                f"{saved.folder}: its state has no '{name}' as this Onebase writes it: by another Onebase, or edited. "
                "Use the Onebase that wrote it, or start again with --restart."
            )
    return saved
