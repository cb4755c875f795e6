"""Stage 3: PPO. Four roles on one base: the policy learns, the reference stays, the reward scores, the value predicts.

    policy     a copy of the SFT adapter                                 trained
    reference  the SFT adapter                                           frozen: KL(policy, reference) starts at 0
    reward     the reward stage's adapter and head                       frozen
    value      a copy of the reward role, or else of the SFT adapter     trained

With `value.kind: shared` the value is a head on the policy's trunk.

Where the equations are, each with its source; docs/ppo.md explains every detail and names its tests:

    reward of a token, KL penalty, KL weight    ppo/maths/rewards.py       InstructGPT eq. 2, Ziegler et al. section 2
    advantages and returns                      ppo/maths/advantages.py    GAE eq. 11, 12 and 16; RLOO; GRPO
    losses of policy and value                  ppo/maths/losses.py        PPO eq. 7 and 9
    what a step adds up                         ppo/update.py              policy_losses, value_losses
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from data.card import write_card
from data.chat.conversations import Chat, EncodedPrompt
from onebase.inference.scoring import spread_of
from onebase.masked import masked_mean
from onebase.memory import Budget
from onebase.run import stages
from onebase.run.learning import state_bytes
from onebase.run.record import StageRecord
from onebase.run.session import Session
from onebase.seeding import generator
from onebase.tracking import usage
from onebase.tracking.profiling import profiled
from onebase.tracking.progress import track
from onebase.tracking.tracker import Tracker
from onebase.tracking.usage import Clock
from ppo.maths.losses import importance_ratio
from ppo.maths.rewards import next_kl_weight
from ppo.recipe.recipe import PpoRecipe
from ppo.rollout import Experience, PpoState, collect, require_zero_kl
from ppo.scores import PromptBatch
from ppo.start import PpoRun, batches, start
from ppo.update import update


def run(recipe: PpoRecipe, *, profile: bool = False) -> StageRecord:
    """Roll out, score, update, until the recipe's episodes are used up; then write the policy's record.

    profile: record a few steps with torch.profiler (`onebase.tracking.profiling`).
    """
    stages.require_one_process("ppo")
    ppo = start(recipe)
    with open_session(ppo) as session:
        write_card(recipe.out / "data", ppo.data.loaded, tokens=ppo.data.chat, limits=recipe.limits)
        restore(ppo, session)
        for step, prompts in steps_of(ppo, session.first_step, profile=profile):
            take_step(ppo, prompts, step, session)
        ppo.steering.finish()
        return finish(ppo, session)


def take_step(ppo: PpoRun, prompts: Sequence[EncodedPrompt], step: int, session: Session) -> None:
    """One step of the run: roll out, score, update, evaluate where it is due, log."""
    recipe, tracker = ppo.recipe, session.tracker
    with session.step(step, ppo.checkpoint, total=recipe.steps):
        clock = Clock(ppo.roles.base.device)
        experience, state = roll_out(ppo, prompts, step, session.budget, clock)
        if step == 1:
            measure_start(ppo, experience, state, session, clock)
        session.changing()
        learned = learn(ppo, experience, step, session, clock)
        evaluated = ppo.steering.after(step, tracker, clock, state.score_moments)
        ppo.metrics = describe(experience) | learned | usage.peaks() | evaluated
        ppo.state = next_state(state, recipe, step, kl=ppo.metrics["ppo/kl"])
        ppo.metrics |= describe_state(ppo.state, recipe) | clock.seconds("ppo/time/")
        tracker.log(step, ppo.metrics)
        ppo.steering.watch(step, ppo.metrics, tracker)
        if step in (1, recipe.steps):
            show_samples(ppo.data.chat, prompts, experience, tracker, step)


def open_session(ppo: PpoRun) -> Session:
    """Create the run's folder, or resume in it. A checkpoint holds what learns and what steers."""
    origin, recipe = ppo.origin, ppo.recipe
    return stages.open_session(
        origin,
        state_bytes=state_bytes(ppo.roles, list(ppo.learner.trained)) + ppo.steering.state_bytes,
        budget=Budget(tokens=recipe.train.tokens_per_microbatch, episodes=recipe.sampling.batch),
    )


def restore(ppo: PpoRun, session: Session) -> None:
    """Resume from the session's checkpoint, where there is one."""
    if session.resumed is not None:
        ppo.restore(session.resumed.state["stage"])
        session.restore_random()


def steps_of(ppo: PpoRun, first: int, *, profile: bool) -> Iterator[tuple[int, list[EncodedPrompt]]]:
    """The number and the prompts of every step from the first, with a progress bar."""
    recipe = ppo.recipe
    steps = range(first, recipe.steps + 1)
    prompts = itertools.islice(batches(ppo.data, recipe), first - 1, None)
    work = track(zip(steps, prompts, strict=True), total=len(steps), description="ppo")
    return profiled(work, total=len(steps), folder=recipe.out / "profile") if profile else work


def roll_out(
    ppo: PpoRun, prompts: Sequence[EncodedPrompt], step: int, budget: Budget, clock: Clock
) -> tuple[Experience, PpoState]:
    """The experience of a step, drawn by (seed, step) alone, and the state with its scores."""
    batch = PromptBatch(chat=ppo.data.chat, prompts=prompts)
    return budget.fit(
        lambda: collect(
            ppo.roles,
            batch,
            ppo.method,
            generator(ppo.recipe.seed, "rollout", step),
            budget,
            ppo.state,
            clock=clock,
        )
    )


def measure_start(ppo: PpoRun, experience: Experience, state: PpoState, session: Session, clock: Clock) -> None:
    """Before the first update: check that policy and reference are the same, and evaluate that policy."""
    temperature, tokens = ppo.recipe.sampling.temperature, session.budget.tokens
    error = require_zero_kl(ppo.roles, experience, temperature=temperature, tokens_per_microbatch=tokens)
    session.tracker.log(0, {"ppo/decoding_error": error})
    ppo.steering.measure_start(session.tracker, clock, state.score_moments)


def learn(ppo: PpoRun, experience: Experience, step: int, session: Session, clock: Clock) -> dict[str, float]:
    """The update on one experience, in an order drawn by (seed, step) alone; its metrics."""
    recipe, sequences = ppo.recipe, experience.episodes.sequences

    def accept(norms: Sequence[float], rows: Sequence[int]) -> bool:
        """Refuse a mini-batch with a gradient that is not finite; its episodes are kept for inspection."""
        return session.is_finite(step, *norms, batch=[sequences[row] for row in rows])

    metrics = update(
        ppo.roles,
        experience,
        ppo.learner,
        ppo.method,
        generator(recipe.seed, "update", step),
        accept,
        session.budget,
        ppo.steering.mix(step, clock),
        kl_weight=ppo.state.kl_weight if recipe.kl.estimator == "k3" else 0.0,
        learn_policy=step > recipe.value.warmup_steps,
        clock=clock,
    )
    return {f"ppo/{name}": value for name, value in metrics.items()}


def next_state(state: PpoState, recipe: PpoRecipe, step: int, *, kl: float) -> PpoState:
    """The state after a step. kl: nats a response, of this step's policy."""
    adaptive = recipe.kl.adaptive
    # A policy that waits cannot follow the weight: it adapts from the first step in which the policy learns.
    if adaptive is None or step <= recipe.value.warmup_steps:
        return state
    weight = next_kl_weight(
        state.kl_weight, kl, target=adaptive.target, horizon=adaptive.horizon, episodes=recipe.train.batch
    )
    return replace(state, kl_weight=weight)


def finish(ppo: PpoRun, session: Session) -> StageRecord:
    """The policy's adapter, and its record last."""
    metrics = {name: value for name, value in ppo.metrics.items() if "/time/" not in name}
    return stages.finish(ppo.origin, ppo.roles, "policy", metrics, session)


def describe(experience: Experience) -> dict[str, float]:
    """Metrics of a batch of episodes."""
    mask, scores, members = experience.episodes.mask, experience.scores, experience.members
    metrics = {
        "ppo/score": float(scores.mean()),
        "ppo/score_std": float(scores.std(correction=0)),
        "ppo/reward": float(experience.rewards.sum(dim=1).mean()),
        "ppo/kl": float(experience.kl.sum(dim=1).mean()),
        "ppo/response_length": float(mask.sum(dim=1).float().mean()),
        "ppo/stop_rate": float(experience.stopped.float().mean()),
        **{f"ppo/reward/{name}": float(scores.mean()) for name, scores in experience.terms.items()},
    }
    if len(members) > 1:
        metrics |= {f"ppo/score/{name}": float(scores.mean()) for name, scores in members.items()}
        metrics["ppo/score_spread"] = float(spread_of(torch.stack(list(members.values()))).mean())
    if experience.decoding_logprobs is not None:
        # How far training's log-probabilities are from decoding's, before any cap.
        ratio = importance_ratio(experience.logprobs, experience.decoding_logprobs, mask)
        metrics["ppo/sampling_ratio"] = float(masked_mean(ratio, mask))
        metrics["ppo/sampling_ratio_max"] = float(ratio.masked_fill(~mask, 0.0).max())
    return metrics


def describe_state(state: PpoState, recipe: PpoRecipe) -> dict[str, float]:
    """Metrics of what the next step starts from, where the recipe lets it change."""
    metrics = {} if recipe.kl.adaptive is None else {"ppo/next_kl_weight": state.kl_weight}
    if recipe.reward.whiten:
        moments = state.score_moments
        metrics["ppo/score_seen"] = moments.count
        metrics["ppo/score_running_mean"] = moments.mean
        metrics["ppo/score_running_variance"] = moments.variance
    return metrics


def show_samples(
    chat: Chat,
    prompts: Sequence[EncodedPrompt],
    experience: Experience,
    tracker: Tracker,
    step: int,
    shown: int = 8,
) -> None:
    """A few episodes of a step, for a person to read."""
    rows = []
    for row in range(min(shown, len(prompts))):
        response = experience.episodes.responses[row][experience.episodes.mask[row]].tolist()
        kl, score = float(experience.kl[row].sum()), float(experience.scores[row])
        rows.append([prompts[row].prompt.user_text, chat.text(response), round(score, 4), round(kl, 4)])
    tracker.table("samples", ["prompt", "response", "score", "kl"], rows, step=step)
