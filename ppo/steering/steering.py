"""What watches and steers a PPO run: evaluation, the best adapter so far, the moving average, ptx, and alarms.

`ppo/start.py`, for the first two, and `ppo/train.py` call it at these places:

    held = read_steering_data(recipe, ...)          before a weight is loaded
    steering = Steering(roles, held, ...)           when the roles stand
    steering.restore(state)                         where the run goes on
    steering.measure_start(...)                     before the first update
    update(..., mix=steering.mix(step, clock))      texts for the mini-batches of a step
    metrics |= steering.after(step)                 when the step's update is done
    steering.watch(step, metrics)                   when they are logged
    steering.finish()                               before the record is written

All of its state is in the checkpoint. It changes between `session.changing()` and the end of a step only, so that a
step that is interrupted before can be repeated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from data.chat.conversations import Chat, EncodedPrompt
from data.select.room import require_pieces
from data.select.texts import Piece, load_pieces
from onebase.errors import DataError, RecordError
from onebase.memory import Halving
from onebase.model import base as bases
from onebase.model.roles import Roles
from onebase.run.learning import restore_weights
from onebase.run.record import DataIdentity
from onebase.tracking.tracker import Tracker
from onebase.tracking.usage import Clock
from ppo.maths.whitening import Seen
from ppo.recipe.recipe import PpoRecipe
from ppo.steering import ema, side_stages
from ppo.steering import frontier as frontiers
from ppo.steering.alarms import AlarmError, remember, ringing
from ppo.steering.evaluate import COLUMNS, HeldOut, evaluate, read_held_out
from ppo.steering.frontier import Point, best_of
from ppo.steering.objective import OBJECTIVE, Answers
from ppo.steering.pretraining import Pretraining
from ppo.steering.side_stages import Origin

PREFIXES = {"policy": "ppo/eval", "ema": "ppo/eval_ema"}
"""Of the metrics of each role that is evaluated."""

SHORTEST_OVERLAP = 16
"""Tokens: what two texts have in common in less than that, such as the last words of a piece, is chance."""

Mix = Callable[[int, PpoRecipe], None]
"""Adds gradients to those of a mini-batch: (its number in the step, the recipe with micro-batches that fit)."""


@dataclass(frozen=True, kw_only=True)
class SteeringData:
    """What is read besides the prompts that are trained on."""

    held_out: HeldOut | None
    pieces: list[Piece]
    """Of the pretraining mix."""
    identities: list[DataIdentity]


def read_steering_data(recipe: PpoRecipe, chat: Chat, training: list[EncodedPrompt]) -> SteeringData:
    held_out = read_held_out(recipe, chat, training)
    pieces, identities = list[Piece](), list[DataIdentity]()
    if recipe.pretraining is not None:
        section = recipe.pretraining
        pieces, identities = load_pieces(section.data, chat, tokens=section.tokens, seed=recipe.seed)
        require_pieces(pieces, bases.reach(recipe.base), key="pretraining.tokens")
        if recipe.evaluation is not None and held_out is not None:
            _require_apart(held_out.pieces, pieces, tokens=min(section.tokens, recipe.evaluation.text_tokens))
    held = [] if held_out is None else held_out.identities
    return SteeringData(held_out=held_out, pieces=pieces, identities=[*held, *identities])


def _require_apart(held_out: Sequence[Piece], training: Sequence[Piece], *, tokens: int) -> None:
    """DataError where a held-out text begins with the same tokens as one that is trained on."""
    least = min(tokens, SHORTEST_OVERLAP)
    trained = {(given + predicted)[:tokens] for given, predicted in training}
    both = sum(
        len(given + predicted) >= least and (given + predicted)[:tokens] in trained for given, predicted in held_out
    )
    if both:
        raise DataError(
            f"evaluation.texts: {both} of {len(held_out)} pieces of text are in pretraining.data as well: the loss "
            "that is measured on them says nothing. Give another split or source."
        )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One role at one step, and what its objective is made of."""

    point: Point
    answers: Answers

    def on_scale(self, recipe: PpoRecipe, seen: Seen | None) -> Point:
        """With the objective as it is by the whitening of now."""
        metrics = self.point.metrics | {OBJECTIVE: self.answers.objective(recipe, seen)}
        return replace(self.point, metrics=metrics)


class Steering:
    """One run's. Without any of its sections it only keeps rows for the alarms."""

    def __init__(self, roles: Roles, data: SteeringData, origin: Origin, optimizer: torch.optim.Optimizer) -> None:
        self._roles = roles
        self._held_out = data.held_out
        self._origin = origin
        self._recipe = origin.recipe
        if self._recipe.ema is not None:
            ema.start(roles, self._recipe.ema, optimizer)
        section = self._recipe.pretraining
        self._pretraining = None if section is None else Pretraining(roles, data.pieces, self._recipe, section)
        self._halving = Halving()
        """Evaluation's own: what it cannot fit must not change training's micro-batches."""
        self._rows: list[dict[str, float]] = []
        self._ringing: set[str] = set()
        self._points: list[Point] = []
        self._start: list[Measured] = []
        """The evaluation before the first update, until that update is done; with it the weights of then."""
        self._start_weights: list[torch.Tensor] = []
        self._best: Measured | None = None
        self._best_weights: list[torch.Tensor] = []

    # --- state ------------------------------------------------------------------------------------------------------

    @property
    def state_bytes(self) -> int:
        """What it adds to a checkpoint: the average, and the best weights so far."""
        weights = sum(one.numel() * one.element_size() for one in self._roles.parameters("policy"))
        return weights * ((self._recipe.ema is not None) + (self._held_out is not None))

    def state(self) -> dict[str, Any]:
        return {
            "ema": {} if self._recipe.ema is None else {ema.ROLE: list(self._roles.parameters(ema.ROLE))},
            "rows": self._rows,
            "ringing": sorted(self._ringing),
            "points": [one.as_state() for one in self._points],
            "best": None if self._best is None else self._best.point.as_state(),
            "best_answers": None if self._best is None else self._best.answers.as_state(),
            "best_weights": self._best_weights,
            "halvings": self._halving.count,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        if self._recipe.ema is not None:
            restore_weights(state["ema"], self._roles, [ema.ROLE])
        self._rows = [dict(row) for row in state["rows"]]
        self._ringing = set(state["ringing"])
        if state["best"] is not None and "best_answers" not in state:
            raise RecordError(
                "ppo: this checkpoint is of another Onebase, which chose `best/` by the reward without penalties. "
                "Go on with that one, or start anew with --restart."
            )
        self._points = [Point(**one) for one in state["points"]]
        self._best = None
        if state["best"] is not None:
            self._best = Measured(point=Point(**state["best"]), answers=Answers.of(state["best_answers"]))
        self._best_weights = list(state["best_weights"])
        self._halving = Halving(int(state["halvings"]))

    # --- at each step -----------------------------------------------------------------------------------------------

    def measure_start(self, tracker: Tracker, clock: Clock, seen: Seen | None = None) -> None:
        """The SFT policy, before the first update: what every later evaluation is compared with. seen: the scores of
        the first rollout, by which rewards are whitened."""
        if self._held_out is None:
            return
        with clock.part("evaluation"):
            self._start = self._evaluate(0, ("policy",), tracker, seen)
            self._start_weights = side_stages.weights_of(self._roles, "policy")
            tracker.log(0, _metrics(_points(self._start)))

    def mix(self, step: int, clock: Clock) -> Mix:
        """What is added to the gradients of each mini-batch of a step."""
        if self._pretraining is None:
            return lambda minibatch, recipe: None
        return clock.part("train_ptx")(self._pretraining.begin(step).add_gradients)

    def after(self, step: int, tracker: Tracker, clock: Clock, seen: Seen | None = None) -> dict[str, float]:
        """Evaluation where it is due; what there is to log of the step. seen: the scores of the run up to now."""
        if self._start:
            self._rows = remember(self._rows, _metrics(_points(self._start)))
            with clock.part("evaluation"):
                self._add(self._start[0], self._start_weights, seen)
            self._start, self._start_weights = [], []
        own = {} if self._pretraining is None else self._pretraining.metrics
        section = self._recipe.evaluation
        if section is None or (step % section.every and step != self._recipe.steps):
            return own
        with clock.part("evaluation"):
            found = self._evaluate(step, self._evaluated, tracker, seen)
            for measured in found:
                self._add(measured, side_stages.weights_of(self._roles, measured.point.role), seen)
            self._draw()
        return own | _metrics(_points(found))

    def watch(self, step: int, metrics: Mapping[str, float], tracker: Tracker) -> None:
        """Tell of every alarm that begins to ring; AlarmError where the recipe says that it ends the run."""
        section = self._recipe.alarms
        if self._recipe.train.batch == 1:  # one number has no deviation: it says nothing of equal rewards
            metrics = {name: value for name, value in metrics.items() if name != "ppo/score_std"}
        self._rows = remember(self._rows, metrics)
        said = ringing(self._rows, section)
        begun = [name for name in said if name not in self._ringing]
        self._ringing = set(said)
        for name in begun:
            tracker.alert(name, said[name], step=step)
        if said and section.stop:
            raise AlarmError(
                f"step {step}: {'; '.join(f'{name}: {text}' for name, text in said.items())} The run ends here because "
                "of alarms.stop=true. The step is saved: the same command with alarms.stop=false goes on."
            )

    def finish(self) -> None:
        """Make sure that `best/` and `ema/` are there."""
        best, folder = self._best, self._origin.recipe.out / "best"
        if best is not None and not side_stages.stands(folder, _record_metrics(best.point)):
            self._write_best()
        if self._recipe.ema is not None and self._recipe.ema.exported:
            last = [one for one in self._points if one.role == ema.ROLE]
            side_stages.write("ema", self._roles, ema.ROLE, self._origin, _record_metrics(last[-1]) if last else {})

    # --- parts of it ------------------------------------------------------------------------------------------------

    @property
    def _evaluated(self) -> tuple[str, ...]:
        average = self._recipe.ema
        return ("policy", ema.ROLE) if average is not None and average.evaluated else ("policy",)

    def _evaluate(self, step: int, names: tuple[str, ...], tracker: Tracker, seen: Seen | None) -> list[Measured]:
        held_out = self._held_out
        if held_out is None:
            return []
        measured, rows = list[Measured](), list[list[Any]]()
        for role in names:
            found = self._halving.fit(
                lambda count, role=role: evaluate(self._roles, role, held_out, self._recipe.halved(count), seen),
                size=self._recipe.largest,
            )
            point = Point(step=step, role=role, metrics=found.metrics)
            measured.append(Measured(point=point, answers=found.answers))
            rows += found.rows
        tracker.table("evaluation_samples", COLUMNS, rows, step=step)
        return measured

    def _add(self, measured: Measured, weights: list[torch.Tensor], seen: Seen | None) -> None:
        """One more evaluation and the weights that it was made of, which are kept where it is the best. It and the
        best so far are compared by the whitening of now."""
        assert self._recipe.evaluation is not None
        self._points.append(measured.point)
        both = [one.on_scale(self._recipe, seen) for one in (self._best, measured) if one is not None]
        if best_of(both, kl_budget=self._recipe.evaluation.kl_budget) is not both[-1]:
            return
        self._best, self._best_weights = measured, weights
        self._write_best()

    def _write_best(self) -> None:
        best = self._best
        assert best is not None
        role = best.point.role
        with side_stages.holding(self._roles, role, self._best_weights):
            side_stages.write("best", self._roles, role, self._origin, _record_metrics(best.point))

    def _draw(self) -> None:
        assert self._recipe.evaluation is not None
        folder, budget = self._origin.recipe.out / "plots", self._recipe.evaluation.kl_budget
        best = None if self._best is None else self._best.point
        frontiers.write(self._points, best, folder, kl_budget=budget)


def _points(measured: Sequence[Measured]) -> list[Point]:
    return [one.point for one in measured]


def _metrics(points: list[Point]) -> dict[str, float]:
    return {f"{PREFIXES[one.role]}/{name}": value for one in points for name, value in one.metrics.items()}


def _record_metrics(point: Point) -> dict[str, float]:
    """What the record of `best/` or `ema/` says: what was measured of this very adapter, and at which step."""
    return {"ppo/step": float(point.step), **_metrics([point])}
