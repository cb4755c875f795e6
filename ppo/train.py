"""Stage 3: PPO. Four roles on one base: the policy learns, the reference stays, the reward scores, the value predicts.

policy     a copy of the SFT adapter            trained
reference  the SFT adapter                      frozen, so KL(policy, reference) starts at 0
reward     the reward stage's adapter and head  frozen
value      a copy of the reward role, trained; or with `value.kind: shared` a head on the policy's trunk
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data.card import write_card
from data.chat import Chat, EncodedPrompt, Limiter, encode_prompts
from data.records import Prompt
from data.sources import Loaded
from data.sources import load as load_records
from onebase import base as bases
from onebase import record, stages
from onebase.base import Base
from onebase.clock import Clock
from onebase.ensemble import FIRST, load_members, read_members, spread_of
from onebase.functions import load_function
from onebase.generation import Engine, sample
from onebase.learning import learning_rate_factor, learning_state, restore_learning, state_bytes
from onebase.profiling import profiled
from onebase.progress import track
from onebase.record import DataIdentity, Found, StageRecord
from onebase.roles import Roles
from onebase.seeding import generator, seed_everything
from onebase.session import Session
from onebase.stages import Stopwatch
from onebase.tracking import Tracker, peak_rss_bytes
from ppo.kl_control import next_weight
from ppo.recipe import PpoRecipe
from ppo.rollout import Rollout, Targets, collect, compute_targets, require_zero_kl
from ppo.scores import TERMS, Asked
from ppo.side_stages import Origin
from ppo.steering import Steering, read_steering_data
from ppo.update import Learner, update
from ppo.whitening import Seen

NEXT_KL_WEIGHT = "ppo/next_kl_weight"
"""The metric that the next step's KL weight is, where it adapts; a resumed run reads it from its checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Data:
    chat: Chat
    prompts: list[EncodedPrompt]
    loaded: Loaded[Prompt]
    """The prompts as they were read, for the data card."""

    @property
    def identities(self) -> list[DataIdentity]:
        return self.loaded.identities


def run(recipe: PpoRecipe, *, profile: bool = False) -> StageRecord:
    """Roll out, score, update, until the recipe's episodes are used up; then write the policy's record.

    profile: look into a few steps with torch.profiler on the way (`onebase.profiling`).
    """
    watch = Stopwatch()
    stages.require_one_process("ppo")
    parents = read_parents(recipe)
    data = read_data(recipe)
    steered = read_steering_data(recipe, data.chat, data.prompts)
    identities = [*data.identities, *steered.identities]
    seed_everything(recipe.seed)
    base = bases.load(recipe.base, recipe.chat)
    roles = start_roles(base, parents, recipe)
    learner = start_learner(roles, recipe)
    origin = Origin(recipe=recipe, base=base, parents=parents, data=identities, watch=watch)
    steering = Steering(roles, steered, origin, learner.optimizer)
    size = state_bytes(roles, list(learner.trained)) + steering.state_bytes
    with stages.open_session(recipe, "ppo", recipe, parents=parents, data=identities, state_bytes=size) as session:
        write_card(recipe.out / "data", data.loaded, tokens=data.chat, limits=recipe.limits)
        tracker, metrics = session.tracker, restore(session, roles, learner, steering)
        kl_weight, seen = metrics.get(NEXT_KL_WEIGHT, recipe.kl.weight), Seen.of(metrics)
        steps = range(session.first_step, recipe.steps + 1)
        prompts_of = itertools.islice(batches(data, recipe), session.first_step - 1, None)

        def state() -> dict[str, Any]:
            return learning_state(roles, tuple(learner.trained), learner.optimizer, learner.schedule) | {
                "metrics": metrics,
                "steering": steering.state(),
            }

        work = track(zip(steps, prompts_of, strict=True), total=len(steps), description="ppo")
        if profile:
            work = profiled(work, total=len(steps), folder=recipe.out / "profile", logged=lambda: metrics)
        for step, prompts in work:
            with session.step(step, state, total=recipe.steps), roles.shared_lower():
                clock = Clock(base.device)
                rollout = roll_out(roles, Asked(chat=data.chat, prompts=prompts), recipe, step, session, clock)
                if step == 1:
                    smaller = recipe.halved(session.halving.count)
                    tracker.log(0, {"ppo/decoding_error": require_zero_kl(roles, rollout, smaller)})
                    steering.measure_start(tracker, clock)
                seen = seen.with_more(rollout.scores)
                targets = compute_targets(rollout, recipe, kl_weight=kl_weight, seen=seen)
                session.changing()
                draw = generator(recipe.seed, "update", step)
                accept = guard(session, step, rollout)
                waits = {"value_only": step <= recipe.value.warmup_steps}
                mix = steering.mix(step, clock)
                learned = update(
                    roles, rollout, targets, learner, recipe, draw, accept, session.halving, mix, clock=clock, **waits
                )
                metrics = describe(rollout, targets, learned) | steering.after(step, tracker, clock)
                kl_weight = next_weight(kl_weight, metrics["ppo/kl"], recipe)
                metrics |= {} if recipe.kl.adaptive is None else {NEXT_KL_WEIGHT: kl_weight}
                metrics |= seen.metrics if recipe.reward.whiten else {}
                metrics |= clock.seconds("ppo/time/")
                tracker.log(step, metrics)
                steering.watch(step, metrics, tracker)
                if step in (1, recipe.steps):
                    show_samples(data.chat, prompts, rollout, targets, tracker, step)
        steering.finish()
        return stages.finish(
            stage="ppo",
            recipe=recipe,
            config=recipe,
            base=base,
            roles=roles,
            role="policy",
            parents=parents,
            data=identities,
            metrics={name: value for name, value in metrics.items() if "/time/" not in name},
            watch=watch,
            tracker=tracker,
        )


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


def engine_of(recipe: PpoRecipe) -> Engine:
    """What draws the responses: the recipe's own, or this process."""
    name = recipe.sampling.engine
    return sample if name is None else load_function(name, "sampling.engine")


def guard(session: Session, step: int, rollout: Rollout) -> Callable[[Sequence[float], Sequence[int]], bool]:
    """Refuses a mini-batch whose gradient is not finite, and keeps its episodes for a look."""
    sequences = rollout.episodes.sequences
    return lambda norms, rows: session.is_finite(step, *norms, batch=[sequences[row] for row in rows])


def restore(session: Session, roles: Roles, learner: Learner, steering: Steering) -> dict[str, float]:
    """Go on from the session's checkpoint, where there is one; returns the metrics of its step."""
    if session.resumed is None:
        return {}
    found = session.resumed.state["stage"]
    restore_learning(found, roles, tuple(learner.trained), learner.optimizer, learner.schedule)
    steering.restore(found["steering"])
    session.restore_random()
    return dict(found["metrics"])


def read_parents(recipe: PpoRecipe) -> dict[str, Found]:
    """The SFT and reward stages, verified; every reward model must come from this very SFT stage."""
    for term in recipe.reward.terms:
        if term.function is not None:
            load_function(term.function, TERMS)  # refused before a weight is loaded
    engine_of(recipe)
    identity = stages.identify(recipe)
    sft = stages.read_parent(recipe.parents.sft, "sft", identity)
    rewards = read_members(recipe.parents.rewards, lambda folder: stages.read_parent(folder, "reward", identity))
    for reward in rewards.values():
        record.require_descends(reward, "sft", sft)
    return {"sft": sft, **rewards}


def read_data(recipe: PpoRecipe) -> Data:
    chat = Chat(*bases.load_tokenizer(recipe.base, recipe.chat), recipe.chat)
    limiter = Limiter(recipe.limits)
    loaded = load_records(recipe.data, Prompt, seed=recipe.seed)
    return Data(chat=chat, prompts=encode_prompts(chat, loaded.records, limiter), loaded=loaded)


def start_roles(base: Base, parents: dict[str, Found], recipe: PpoRecipe) -> Roles:
    """All of them, each from its file. LoRA dropout is 0 for every one, whatever SFT used."""
    roles = Roles(base)
    roles.load("policy", parents["sft"].adapter)
    roles.load("reference", parents["sft"].adapter)
    load_members(roles, {name: found for name, found in parents.items() if name != "sft"})
    if not recipe.has_value:
        roles.train("policy")
    elif recipe.value.kind == "adapter":
        roles.copy(FIRST, "value").train("policy", "value")
    else:
        # A head of zeros: it predicts 0, the mean score of demonstrations, until it has learned better.
        roles.add_head("policy")
        roles.train("policy")
    if recipe.train.activation_checkpointing:
        roles.enable_checkpointing()
    return roles


def start_learner(roles: Roles, recipe: PpoRecipe) -> Learner:
    """AdamW over the trained roles; eps 1e-5 as in OpenAI baselines, for second moments are tiny at the start."""
    trained = {role: roles.parameters(role) for role in ("policy", "value") if role in roles.names}
    value_rate = recipe.value.learning_rate or recipe.train.learning_rate
    rates = {"policy": recipe.train.learning_rate, "value": value_rate}
    groups = [{"params": parameters, "lr": rates[role]} for role, parameters in trained.items()]
    optimizer = torch.optim.AdamW(groups, eps=1e-5, weight_decay=0.0, fused=True)
    # While the value function learns alone, the policy's own warm-up has not begun.
    alone = recipe.value.warmup_steps * recipe.optimizer_steps // recipe.steps
    warmup, kind = recipe.train.warmup_steps, recipe.train.schedule

    def after(waits: int) -> Callable[[int], float]:
        total = recipe.optimizer_steps - waits
        return lambda step: learning_rate_factor(max(0, step - waits), total, warmup, kind)

    factors = [after(alone if role == "policy" else 0) for role in trained]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
    return Learner(optimizer=optimizer, schedule=schedule, trained=trained)


def batches(data: Data, recipe: PpoRecipe) -> Iterator[list[EncodedPrompt]]:
    """Prompts of each step, each one repeated for its responses. All prompts are seen before one comes again."""
    queue: list[int] = []
    passes = itertools.count()
    for _ in range(recipe.steps):
        while len(queue) < recipe.prompts_per_step:
            order = generator(recipe.seed, "prompts", next(passes))
            queue += torch.randperm(len(data.prompts), generator=order).tolist()
        chosen, queue = queue[: recipe.prompts_per_step], queue[recipe.prompts_per_step :]
        yield [data.prompts[index] for index in chosen for _ in range(recipe.sampling.responses_per_prompt)]


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
        **{f"ppo/{name}": value for name, value in learned.items()},
        "memory/peak": float(peak_rss_bytes()),
        **({"memory/cuda_peak": float(stages.peak_gpu_bytes())} if torch.cuda.is_available() else {}),
    }


def describe_members(rollout: Rollout) -> dict[str, float]:
    """The mean score of each reward model of an ensemble, and how far they are apart; nothing for a single one."""
    if len(rollout.members) < 2:
        return {}
    spread = spread_of(torch.stack(list(rollout.members.values())))
    each = {f"ppo/score/{name}": float(scores.mean()) for name, scores in rollout.members.items()}
    return {**each, "ppo/score_spread": float(spread.mean())}


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
