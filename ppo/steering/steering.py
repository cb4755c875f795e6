"""What watches and steers a PPO run: evaluation, the best adapter so far, the moving average, ptx, and alarms.

`ppo/start.py`, for the first three, and `ppo/train.py` call it at these places:

    held = read_steering_data(recipe, ...)          before a weight is loaded
    steering = Steering(roles, held, ...)           when the roles are loaded
    steering.restore(state)                         where the run resumes
    steering.measure_start(...)                     before the first update
    update(..., mix=steering.mix(step, clock))      texts for the mini-batches of a step
    metrics |= steering.after(step)                 when the step's update is done
    steering.watch(step, metrics)                   when they are logged
    steering.finish()                               before the record is written

All of its state is in the checkpoint. It changes between `session.changing()` and the end of a step only: a step
that is interrupted before can be repeated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from data.chat.conversations import Chat, EncodedPrompt
from data.select.room import require_pieces
from data.select.texts import Piece, load_pieces
from onebase.errors import DataError
from onebase.memory import Budget
from onebase.model import base as bases
from onebase.model.roles import Roles
from onebase.run.learning import restore_weights
from onebase.run.record import DataIdentity
from onebase.run.stages import Origin
from onebase.tracking.tracker import Tracker
from onebase.tracking.usage import Clock
from ppo.maths.rewards import ScoreMoments
from ppo.method import Method
from ppo.recipe.recipe import PpoRecipe
from ppo.steering import ema, side_stages
from ppo.steering import frontier as frontiers
from ppo.steering.alarms import AlarmError, raised, remember
from ppo.steering.evaluate import COLUMNS, Answers, HeldOutData, Measurement, evaluate, read_held_out
from ppo.steering.frontier import Point, best_of
from ppo.steering.pretraining import Pretraining
from ppo.update import Mix

PREFIXES = {"policy": "ppo/eval", "ema": "ppo/eval_ema"}
"""Prefixes of the metrics of each role that is evaluated."""

SHORTEST_OVERLAP = 16
"""Tokens: what two texts have in common in less than that, such as the last words of a piece, is chance."""


@dataclass(frozen=True, kw_only=True)
class SteeringData:
    """What is read besides the prompts that are trained on."""

    held_out: HeldOutData | None
    pieces: list[Piece]
    """Texts of the pretraining mix."""
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
    trained = {(context + predicted)[:tokens] for context, predicted in training}
    both = sum(
        len(context + predicted) >= least and (context + predicted)[:tokens] in trained
        for context, predicted in held_out
    )
    if both:
        raise DataError(
            f"evaluation.texts: {both} of {len(held_out)} pieces of text are in pretraining.data as well: the loss "
            "measured on them has no information. Give another split or source."
        )


class Steering:
    """One run's. Without any of its sections it only keeps rows for the alarms."""

    def __init__(
        self,
        roles: Roles,
        data: SteeringData,
        origin: Origin[PpoRecipe],
        method: Method,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._roles = roles
        self._method = method
        self._held_out = data.held_out
        self._origin = origin
        self._recipe = origin.recipe
        if self._recipe.ema is not None:
            ema.start(roles, self._recipe.ema, optimizer)
        section = self._recipe.pretraining
        train, seed = self._recipe.train, self._recipe.seed
        self._pretraining = None if section is None else Pretraining(roles, data.pieces, section, train, seed=seed)
        self._budget = Budget(tokens=train.tokens_per_microbatch, episodes=self._recipe.sampling.batch)
        """Evaluation's own: what it cannot fit must not change training's micro-batches."""
        self._rows: list[dict[str, float]] = []
        self._raised: set[str] = set()
        self._points: list[Point] = []
        self._start: list[Measurement] = []
        """The evaluation before the first update, until that update is done."""
        self._best: Measurement | None = None

    # --- state ------------------------------------------------------------------------------------------------------

    @property
    def state_bytes(self) -> int:
        """What it adds to a checkpoint: the average, and the best weights so far."""
        weights = sum(weight.numel() * weight.element_size() for weight in self._roles.parameters("policy"))
        return weights * ((self._recipe.ema is not None) + (self._held_out is not None))

    def state(self) -> dict[str, Any]:
        best = self._best
        return {
            "ema": {} if self._recipe.ema is None else {ema.ROLE: list(self._roles.parameters(ema.ROLE))},
            "rows": self._rows,
            "raised": sorted(self._raised),
            "points": [vars(point) for point in self._points],
            "best": None if best is None else vars(best.point),
            "best_answers": None if best is None else vars(best.answers),
            "best_weights": [] if best is None else list(best.weights),
            "halvings": self._budget.halvings,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        if self._recipe.ema is not None:
            restore_weights(state["ema"], self._roles, [ema.ROLE])
        self._rows = [dict(row) for row in state["rows"]]
        self._raised = set(state["raised"])
        self._points = [Point(**point) for point in state["points"]]
        self._best = None
        if state["best"] is not None:
            point, answers = Point(**state["best"]), Answers(**state["best_answers"])
            self._best = Measurement(point=point, answers=answers, weights=state["best_weights"])
        self._budget.halvings = int(state["halvings"])

    # --- at each step -----------------------------------------------------------------------------------------------

    def measure_start(self, tracker: Tracker, clock: Clock, moments: ScoreMoments) -> None:
        """The SFT policy, before the first update: what every later evaluation is compared with. moments: of the
        scores of the first rollout."""
        if self._held_out is None:
            return
        with clock.part("evaluation"):
            self._start = self._evaluate(0, ("policy",), tracker, moments)
            tracker.log(0, _metrics(*(each.point for each in self._start)))

    def mix(self, step: int, clock: Clock) -> Mix:
        """What is added to the gradients of each mini-batch of a step."""
        if self._pretraining is None:
            return lambda minibatch, tokens: None
        return clock.part("train_ptx")(self._pretraining.begin(step).add_gradients)

    def after(self, step: int, tracker: Tracker, clock: Clock, moments: ScoreMoments) -> dict[str, float]:
        """Evaluation where it is due; what there is to log of the step. moments: of the scores of the run up to now."""
        if self._start:
            self._rows = remember(self._rows, _metrics(*(each.point for each in self._start)))
            with clock.part("evaluation"):
                self._add(self._start[0], moments)
            self._start = []
        metrics = {} if self._pretraining is None else self._pretraining.metrics
        section = self._recipe.evaluation
        if section is None or (step % section.every and step != self._recipe.steps):
            return metrics
        with clock.part("evaluation"):
            names = ("policy",) if self._recipe.ema is None else ("policy", ema.ROLE)
            measurements = self._evaluate(step, names, tracker, moments)
            for measurement in measurements:
                self._add(measurement, moments)
            best = None if self._best is None else self._best.point
            frontiers.write(self._points, best, self._recipe.out / "plots", kl_budget=section.kl_budget)
        return metrics | _metrics(*(each.point for each in measurements))

    def watch(self, step: int, metrics: Mapping[str, float], tracker: Tracker) -> None:
        """Report every alarm that is newly raised; AlarmError where the recipe says that it ends the run."""
        section = self._recipe.alarms
        if self._recipe.train.batch == 1:  # a single number has no deviation
            metrics = {name: value for name, value in metrics.items() if name != "ppo/score_std"}
        self._rows = remember(self._rows, metrics)
        alarms = raised(self._rows, section)
        for name in [name for name in alarms if name not in self._raised]:
            tracker.alert(name, alarms[name], step=step)
        self._raised = set(alarms)
        if alarms and section.stop:
            raise AlarmError(
                f"step {step}: {'; '.join(f'{name}: {text}' for name, text in alarms.items())} The run ends here "
                "because of alarms.stop=true. The step is saved: the same command with alarms.stop=false resumes."
            )

    def finish(self) -> None:
        """Make sure that `best/` and `ema/` are there."""
        best, folder = self._best, self._recipe.out / "best"
        if best is not None and not side_stages.is_finished(folder, _record_metrics(best.point)):
            self._write_best(best)
        if self._recipe.ema is not None:
            last = [point for point in self._points if point.role == ema.ROLE]
            side_stages.write("ema", self._roles, ema.ROLE, self._origin, _record_metrics(last[-1]) if last else {})

    # --- parts of it ------------------------------------------------------------------------------------------------

    def _evaluate(
        self, step: int, names: tuple[str, ...], tracker: Tracker, moments: ScoreMoments
    ) -> list[Measurement]:
        held_out = self._held_out
        assert held_out is not None
        settings = (held_out, self._method, self._budget, moments)
        measurements = [
            self._budget.fit(partial(evaluate, self._roles, role, *settings, step=step, seed=self._recipe.seed))
            for role in names
        ]
        tracker.table("evaluation_samples", COLUMNS, [row for each in measurements for row in each.rows], step=step)
        return measurements

    def _add(self, measurement: Measurement, moments: ScoreMoments) -> None:
        """One more evaluation, which is kept where it is the best. It and the best so far are compared by the whitening
        of now."""
        assert self._recipe.evaluation is not None
        self._points.append(measurement.point)
        both = [each.on_scale(self._method.reward, moments) for each in (self._best, measurement) if each is not None]
        if best_of(both, kl_budget=self._recipe.evaluation.kl_budget) is both[-1]:
            self._best = measurement
            self._write_best(measurement)

    def _write_best(self, best: Measurement) -> None:
        role = best.point.role
        with side_stages.holding(self._roles, role, best.weights):
            side_stages.write("best", self._roles, role, self._origin, _record_metrics(best.point))


def _metrics(*points: Point) -> dict[str, float]:
    return {f"{PREFIXES[point.role]}/{name}": value for point in points for name, value in point.metrics.items()}


def _record_metrics(point: Point) -> dict[str, float]:
    """What the record of `best/` or `ema/` says: what was measured of this very adapter, and at which step."""
    return {"ppo/step": float(point.step), **_metrics(point)}
