"""Stage 3: PPO. Four roles on one base: the policy learns, the reference stays, the reward scores, the value predicts.

policy     a copy of the SFT adapter            trained
reference  the SFT adapter                      frozen, so KL(policy, reference) starts at 0
reward     the reward stage's adapter and head  frozen
value      a copy of the reward role, or of the SFT adapter where there is none, trained; or with `value.kind: shared` a
           head on the policy's trunk
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from data.card import write_card
from data.chat.conversations import Chat, EncodedPrompt
from onebase.inference.ensemble import spread_of
from onebase.model.roles import Roles
from onebase.run import stages
from onebase.run.learning import learning_state, restore_learning, restoring, state_bytes
from onebase.run.record import StageRecord
from onebase.run.session import Session
from onebase.seeding import generator
from onebase.tokens import masked_mean
from onebase.tracking import usage
from onebase.tracking.profiling import profiled
from onebase.tracking.progress import track
from onebase.tracking.tracker import Tracker
from onebase.tracking.usage import Clock
from ppo.maths.kl_control import next_weight
from ppo.maths.losses import importance_ratio
from ppo.maths.whitening import Seen
from ppo.recipe.recipe import PpoRecipe
from ppo.rollout import Rollout, Targets, collect, compute_targets, require_zero_kl
from ppo.scores import Asked
from ppo.start import Started, batches, engine_of, start
from ppo.update import update

NEXT_KL_WEIGHT = "ppo/next_kl_weight"
"""The metric that the next step's KL weight is, where it adapts: each step reads it from the last one's metrics, a
resumed run from its checkpoint's."""


def run(recipe: PpoRecipe, *, profile: bool = False) -> StageRecord:
    """Roll out, score, update, until the recipe's episodes are used up; then write the policy's record.

    profile: look into a few steps with torch.profiler on the way (`onebase.tracking.profiling`).
    """
    stages.require_one_process("ppo")
    started = start(recipe)
    data, roles, steering = started.data, started.roles, started.steering
    with open_session(started) as session:
        write_card(recipe.out / "data", data.loaded, tokens=data.chat, limits=recipe.limits)
        tracker, metrics = session.tracker, restore(session, started)

        def last_metrics() -> dict[str, float]:
            return metrics

        def state() -> dict[str, Any]:
            return state_of(started, metrics)

        for step, prompts in steps_of(started, session, logged=last_metrics if profile else None):
            with session.step(step, state, total=recipe.steps), roles.shared_lower():
                clock = Clock(roles.base.device)
                rollout = roll_out(roles, Asked(chat=data.chat, prompts=prompts), recipe, step, session, clock)
                seen = Seen.of(metrics).with_more(rollout.scores)
                if step == 1:
                    measure_start(started, rollout, session, clock, seen)
                kl_weight = metrics.get(NEXT_KL_WEIGHT, recipe.kl.weight)
                targets = compute_targets(rollout, recipe, kl_weight=kl_weight, seen=seen)
                session.changing()
                learned = learn(started, rollout, targets, step, session, clock)
                metrics = describe(rollout, targets, learned) | steering.after(step, tracker, clock, seen)
                metrics |= carried_over(step, metrics, kl_weight, seen, recipe) | clock.seconds("ppo/time/")
                tracker.log(step, metrics)
                steering.watch(step, metrics, tracker)
                if step in (1, recipe.steps):
                    show_samples(data.chat, prompts, rollout, targets, tracker, step)
        steering.finish()
        return finish(started, metrics, session)


def open_session(started: Started) -> Session:
    """Told how large a checkpoint is, steering's part included."""
    origin, recipe = started.origin, started.recipe
    size = state_bytes(started.roles, list(started.learner.trained)) + started.steering.state_bytes
    return stages.open_session(
        recipe,
        "ppo",
        parents=origin.parents,
        data=origin.data,
        state_bytes=size,
        identity=origin.identity,
    )


def steps_of(
    started: Started, session: Session, *, logged: Callable[[], Mapping[str, float]] | None
) -> Iterator[tuple[int, list[EncodedPrompt]]]:
    """The number and the prompts of every step that is left, with a progress bar. logged: says the metrics of the
    last step, where some are to be profiled."""
    recipe, first = started.recipe, session.first_step
    steps = range(first, recipe.steps + 1)
    prompts = itertools.islice(batches(started.data, recipe), first - 1, None)
    work = track(zip(steps, prompts, strict=True), total=len(steps), description="ppo")
    if logged is None:
        return work
    return profiled(work, total=len(steps), folder=recipe.out / "profile", logged=logged)


def roll_out(roles: Roles, asked: Asked, recipe: PpoRecipe, step: int, session: Session, clock: Clock) -> Rollout:
    """The episodes of a step, drawn by (seed, step) alone."""
    ids, with_values = [one.ids for one in asked.prompts], not recipe.values_in_update
    return session.halving.fit(
        lambda count: collect(
            roles,
            ids,
            recipe.halved(count),
            generator(recipe.seed, "rollout", step),
            asked,
            clock,
            with_values=with_values,
            engine=engine_of(recipe),
        ),
        size=recipe.largest,
    )


def measure_start(started: Started, rollout: Rollout, session: Session, clock: Clock, seen: Seen) -> None:
    """Before the first update: that policy and reference are the same, and what the policy is worth held out."""
    smaller = started.recipe.halved(session.halving.count)
    error = require_zero_kl(started.roles, rollout, smaller)
    session.tracker.log(0, {"ppo/decoding_error": error})
    started.steering.measure_start(session.tracker, clock, seen)


def learn(
    started: Started, rollout: Rollout, targets: Targets, step: int, session: Session, clock: Clock
) -> dict[str, float]:
    """The update on one rollout, in an order drawn by (seed, step) alone."""
    recipe = started.recipe
    return update(
        started.roles,
        rollout,
        targets,
        started.learner,
        recipe,
        generator(recipe.seed, "update", step),
        guard(session, step, rollout),
        session.halving,
        started.steering.mix(step, clock),
        value_only=step <= recipe.value.warmup_steps,
        clock=clock,
    )


def guard(session: Session, step: int, rollout: Rollout) -> Callable[[Sequence[float], Sequence[int]], bool]:
    """Refuses a mini-batch whose gradient is not finite, and keeps its episodes for a look."""
    sequences = rollout.episodes.sequences
    return lambda norms, rows: session.is_finite(step, *norms, batch=[sequences[row] for row in rows])


def carried_over(
    step: int, metrics: Mapping[str, float], kl_weight: float, seen: Seen, recipe: PpoRecipe
) -> dict[str, float]:
    """What the next step reads from this one's metrics, where the recipe has it: the KL weight, the scores so far."""
    found = seen.metrics if recipe.reward.whiten else {}
    if recipe.kl.adaptive is None:
        return found
    # A policy that waits cannot follow the weight: it adapts from the first step in which the policy learns.
    waits = step <= recipe.value.warmup_steps
    return found | {NEXT_KL_WEIGHT: kl_weight if waits else next_weight(kl_weight, metrics["ppo/kl"], recipe)}


def state_of(started: Started, metrics: Mapping[str, float]) -> dict[str, Any]:
    """All of a run between two steps."""
    learner, steering = started.learner, started.steering
    learning = learning_state(started.roles, tuple(learner.trained), learner.optimizer, learner.schedule)
    return learning | {"metrics": metrics, "steering": steering.state()}


def restore(session: Session, started: Started) -> dict[str, float]:
    """Go on from the session's checkpoint, where there is one; returns the metrics of its step."""
    if session.resumed is None:
        return {}
    found, learner = session.resumed.state["stage"], started.learner
    restore_learning(found, started.roles, tuple(learner.trained), learner.optimizer, learner.schedule)
    with restoring("what steers the run"):
        started.steering.restore(found["steering"])
        metrics = dict(found["metrics"])
    session.restore_random()
    return metrics


def finish(started: Started, metrics: Mapping[str, float], session: Session) -> StageRecord:
    """The policy's adapter, and its record last."""
    origin = started.origin
    return stages.finish(
        stage="ppo",
        recipe=started.recipe,
        base=origin.base,
        roles=started.roles,
        role="policy",
        parents=origin.parents,
        data=origin.data,
        metrics={name: value for name, value in metrics.items() if "/time/" not in name},
        watch=origin.watch,
        session=session,
    )


def describe(rollout: Rollout, targets: Targets, learned: dict[str, float]) -> dict[str, float]:
    """Everything a step logs but its seconds."""
    scores = rollout.scores
    return {
        "ppo/score": float(scores.mean()),
        "ppo/score_std": float(scores.std(correction=0)),
        "ppo/reward": float(targets.rewards.sum(dim=1).mean()),
        "ppo/kl": float(targets.kl.sum(dim=1).mean()),
        "ppo/response_length": float(rollout.episodes.mask.sum(dim=1).float().mean()),
        "ppo/stop_rate": float(rollout.stopped.float().mean()),
        **{f"ppo/reward/{name}": float(scores.mean()) for name, scores in rollout.terms.items()},
        **describe_members(rollout),
        **describe_decoding(rollout),
        **{f"ppo/{name}": value for name, value in learned.items()},
        **usage.peaks(),
    }


def describe_members(rollout: Rollout) -> dict[str, float]:
    """The mean score of each reward model of an ensemble, and how far they are apart; nothing for a single one."""
    if len(rollout.members) < 2:
        return {}
    spread = spread_of(torch.stack(list(rollout.members.values())))
    each = {f"ppo/score/{name}": float(scores.mean()) for name, scores in rollout.members.items()}
    return {**each, "ppo/score_spread": float(spread.mean())}


def describe_decoding(rollout: Rollout) -> dict[str, float]:
    """How far training's log-probabilities are from decoding's, where both are known: the mean and the largest ratio
    of the two, before any cap."""
    if rollout.sampled is None:
        return {}
    mask = rollout.episodes.mask
    ratio = importance_ratio(rollout.logprobs, rollout.sampled, mask)
    largest = ratio.masked_fill(~mask, 0.0).max()
    return {"ppo/sampling_ratio": float(masked_mean(ratio, mask)), "ppo/sampling_ratio_max": float(largest)}


def show_samples(
    chat: Chat,
    prompts: Sequence[EncodedPrompt],
    rollout: Rollout,
    targets: Targets,
    tracker: Tracker,
    step: int,
    shown: int = 8,
) -> None:
    """A few episodes of a step, for a person to read."""
    rows = []
    for row in range(min(shown, len(prompts))):
        response = rollout.episodes.responses[row][rollout.episodes.mask[row]].tolist()
        kl = float(targets.kl[row].sum())
        score = float(rollout.scores[row])
        rows.append([prompts[row].prompt.user_text, chat.text(response), round(score, 4), round(kl, 4)])
    tracker.table("samples", ["prompt", "response", "score", "kl"], rows, step=step)
