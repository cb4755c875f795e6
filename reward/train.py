"""Stage 2: the reward model. The SFT adapter and a fresh scalar head learn to score better responses higher.

InstructGPT's loss: all pairs of a prompt's ranking as one element, averaged over its pairs. Each response goes through
the model once, however many pairs it is in, and where it saves work the prompt of a ranking goes through once as well.
"""

import functools
import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data.card import write_card
from data.chat.conversations import (
    Chat,
    EncodedDemonstration,
    EncodedRanking,
    Limiter,
    encode_demonstrations,
    encode_rankings,
)
from data.records import Demonstration, Ranking
from data.select.contamination import require_apart
from data.select.labelers import divide
from data.select.room import require_limits
from data.select.sources import LoadedRecords
from data.select.sources import load as load_records
from evaluation.reward_model.measure import encode_left_out, reward_report
from evaluation.reward_model.pairs import accuracy, of_each_prompt, pairs_of
from evaluation.reward_model.verdict import verdict_of
from onebase.files.writing import canonical, replace_file
from onebase.inference.scoring import Ensemble, batches_of_rankings, candidate_scores, score
from onebase.inference.soundness import require_sound
from onebase.memory import Budget
from onebase.model import base as bases
from onebase.model.base import Base
from onebase.model.roles import Roles
from onebase.run import stages
from onebase.run.identity import RunIdentity
from onebase.run.learning import learning_rate_factor, learning_state, restore_learning, state_bytes
from onebase.run.record import DataIdentity, FinishedStage, StageRecord
from onebase.run.session import Session
from onebase.seeding import generator, seed_everything
from onebase.terminal import say
from onebase.tracking import usage
from onebase.tracking.progress import track
from onebase.tracking.usage import Stopwatch
from reward.losses import LOSSES, RankingLoss, centering_penalty, ranked_right
from reward.recipe import LossSection, RewardRecipe
from reward.scale import center, rescale


@dataclass(frozen=True, kw_only=True)
class Data:
    chat: Chat
    training: list[EncodedRanking]
    held_out: list[EncodedRanking]
    demonstrations: list[EncodedDemonstration]
    left_out: list[EncodedRanking]
    """Of labelers who are held out (`labelers`)."""
    loaded: LoadedRecords[Ranking]
    """The rankings as they were read, those of held-out labelers included: for the data card."""
    identities: list[DataIdentity]


def run(recipe: RewardRecipe) -> StageRecord:
    """Train on rankings, measure on held-out ones, shift demonstrations to a mean score of 0, write the record."""
    watch = Stopwatch()
    stages.require_one_process("reward")
    identity = stages.identify(recipe.base, recipe.chat)
    parents = {"sft": stages.read_parent(recipe.parents.sft, "sft", identity)}
    data = read_data(recipe)
    seed_everything(recipe.seed)
    base = bases.load(recipe.base, recipe.chat)
    roles = start_roles(base, parents["sft"], recipe)
    origin = stages.Origin(stage="reward", recipe=recipe, base=base, parents=parents, data=data.identities, watch=watch)
    budget = Budget(tokens=recipe.train.tokens_per_microbatch)
    with stages.open_session(origin, state_bytes=state_bytes(roles, ["reward"]), budget=budget) as session:
        write_card(recipe.out / "data", data.loaded, tokens=data.chat, limits=recipe.limits)
        train(roles, data.training, recipe, session)
        metrics, report = measure(roles, data, recipe, session.budget)
        replace_file(recipe.out / "report.json", canonical(report))
        session.tracker.log(steps(data.training, recipe), metrics)
        show_samples(roles, data.held_out, session)
        finished = stages.finish(origin, roles, "reward", metrics, session)
    say(f"reward: verdict: {verdict_of(report).text}.")
    return finished


def identify(recipe: RewardRecipe) -> RunIdentity:
    """What a run of this recipe goes by today, without a weight loaded."""
    identity = stages.identify(recipe.base, recipe.chat)
    parents = {"sft": stages.read_parent(recipe.parents.sft, "sft", identity)}
    return stages.run_identity(identity.base, identity.tokenizer, parents, read_data(recipe).identities)


def read_data(recipe: RewardRecipe) -> Data:
    """Rankings and demonstrations as tokens; DataError before anything is written."""
    require_limits(recipe.limits, bases.reach(recipe.base))
    chat = Chat(*bases.load_tokenizer(recipe.base, recipe.chat), recipe.chat)
    limiter = Limiter(recipe.limits)
    training = load_records(recipe.data, Ranking, seed=recipe.seed)
    held_out = load_records(recipe.evaluation.rankings, Ranking, seed=recipe.seed)
    require_apart("evaluation.rankings", held_out.records, training.records)
    demonstrations = load_records(recipe.evaluation.demonstrations, Demonstration, seed=recipe.seed)
    divided = divide(training.records, recipe.labelers)
    return Data(
        chat=chat,
        training=encode_rankings(chat, divided.training, limiter),
        held_out=encode_rankings(chat, held_out.records, limiter),
        demonstrations=encode_demonstrations(chat, demonstrations.records, limiter),
        left_out=encode_left_out(chat, divided.held_out, limiter),
        loaded=training,
        identities=[
            *(*training.identities, *held_out.identities, *demonstrations.identities),
            *limiter.settle("reward"),
        ],
    )


def start_roles(base: Base, sft: FinishedStage, recipe: RewardRecipe) -> Roles:
    """The SFT adapter with a fresh head: weights from N(0, 1 / (hidden + 1)), as in lm-human-preferences."""
    roles = Roles(base)
    require_sound(roles)
    roles.load("reward", sft.adapter)
    head = roles.add_head("reward")
    drawn = torch.randn(head.weight.shape, generator=generator(recipe.seed, "reward", "head"))
    head.weight.data.copy_(drawn / (len(drawn) + 1) ** 0.5)
    roles.train("reward")
    # The ranking losses see differences of scores only and cannot tell what the bias should be: `center` sets it.
    head.bias.requires_grad_(False)
    if recipe.train.activation_checkpointing:
        roles.forwards.enable_checkpointing()
    if recipe.train.shared_prompt == "off":
        roles.forwards.can_pack = False
    elif not roles.forwards.can_pack:
        say("reward: this model's attention takes no packed rows, so each response goes with a prompt of its own.")
    return roles


def train(roles: Roles, rankings: Sequence[EncodedRanking], recipe: RewardRecipe, session: Session) -> None:
    """One optimiser step for every `rankings_per_step` rankings; resumes where a stopped run was."""
    parameters = [parameter for parameter in roles.parameters("reward") if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.train.learning_rate, weight_decay=0.0)
    total, first = steps(rankings, recipe), session.first_step
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, total, recipe.train.warmup_steps, recipe.train.schedule)
    )
    loss_of, budget = choose_loss(recipe.loss), session.budget

    def state() -> dict[str, Any]:
        return learning_state(roles, ("reward",), optimizer, schedule)

    def gradients(batch: Sequence[EncodedRanking]) -> tuple[float, float]:
        optimizer.zero_grad(set_to_none=True)
        return backward(roles, batch, tokens_per_microbatch=budget.tokens, loss_of=loss_of)

    if session.resumed is not None:
        restore_learning(session.resumed.state["stage"], roles, ("reward",), optimizer, schedule)
        session.restore_random()
    batches = itertools.islice(batch_rankings(rankings, recipe), first - 1, None)
    for step, batch in enumerate(track(batches, total=total - first + 1, description="reward"), start=first):
        with session.step(step, state, total=total):
            loss, right = budget.fit(functools.partial(gradients, batch))
            norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.train.max_grad_norm)
            if not session.is_finite(step, loss, norm.item(), batch=[ranking.sequences for ranking in batch]):
                continue
            session.changing()
            optimizer.step()
            session.tracker.log(
                step,
                {
                    "reward/loss": loss,
                    "reward/accuracy": right,
                    "reward/grad_norm": norm.item(),
                    "reward/learning_rate": float(schedule.get_last_lr()[0]),
                    **usage.peaks(),
                },
            )
            schedule.step()


def choose_loss(section: LossSection) -> RankingLoss:
    """The recipe's loss of a ranking, the centring penalty included where it has a weight."""
    loss = functools.partial(LOSSES[section.kind], **section.numbers)
    if section.centering == 0.0:
        return loss
    return lambda scores, tiers: loss(scores, tiers) + section.centering * centering_penalty(scores, tiers)


def steps(rankings: Sequence[EncodedRanking], recipe: RewardRecipe) -> int:
    """Optimiser steps in the run; the last one of an epoch may be smaller."""
    return recipe.train.epochs * -(-len(rankings) // recipe.train.rankings_per_step)


def batch_rankings(rankings: Sequence[EncodedRanking], recipe: RewardRecipe) -> Iterator[list[EncodedRanking]]:
    """Every epoch sees every ranking once, in an order of its own."""
    for epoch in range(recipe.train.epochs):
        order = torch.randperm(len(rankings), generator=generator(recipe.seed, "reward", "order", epoch)).tolist()
        for start in range(0, len(order), recipe.train.rankings_per_step):
            yield [rankings[index] for index in order[start : start + recipe.train.rankings_per_step]]


def backward(
    roles: Roles, rankings: Sequence[EncodedRanking], *, tokens_per_microbatch: int, loss_of: RankingLoss
) -> tuple[float, float]:
    """Add the gradients of the mean loss over these rankings to `.grad`; returns mean loss and pair accuracy.

    A ranking's loss needs all its scores at once, so micro-batches hold whole rankings.
    """
    losses, accuracies = [], []
    groups = [ranking.sequences for ranking in rankings]
    for rows in batches_of_rankings(roles, groups, tokens=tokens_per_microbatch):
        with roles.forwards.checkpointed():
            scores = candidate_scores(roles, "reward", [groups[row] for row in rows])
        tiers = [torch.tensor(rankings[row].ranking.tiers, device=roles.base.device) for row in rows]
        share = torch.stack([loss_of(*ranked) for ranked in zip(scores, tiers, strict=True)])
        share.sum().div(len(rankings)).backward()
        losses += share.tolist()
        accuracies += [float(ranked_right(row.detach(), order)) for row, order in zip(scores, tiers, strict=True)]
    return statistics.fmean(losses), statistics.fmean(accuracies)


def measure(roles: Roles, data: Data, recipe: RewardRecipe, budget: Budget) -> tuple[dict[str, float], dict[str, Any]]:
    """Bring the scores to their scale, then measure them on held-out data; the metrics and the report.

    The metrics are mean loss and pair accuracy (with its 95 % interval) on held-out rankings, a prompt counting as one.
    The loss is that of the scores before they were divided by the scale.
    """
    shift = budget.fit(lambda: center(roles, data.demonstrations, tokens_per_microbatch=budget.tokens))
    scale = 1.0
    if recipe.scale == "unit":
        scale = budget.fit(lambda: rescale(roles, data.held_out, tokens_per_microbatch=budget.tokens))
    scored, report = budget.fit(
        lambda: reward_report(
            roles,
            data.held_out,
            data.demonstrations,
            [ranking.ranking for ranking in data.training],
            tokens_per_microbatch=budget.tokens,
            seed=recipe.seed,
            ensemble=Ensemble(),
            log_odds=scale,
            labelers=recipe.labelers,
            left_out=data.left_out,
        )
    )
    loss_of, right = choose_loss(recipe.loss), accuracy(pairs_of(scored), seed=recipe.seed)
    losses = of_each_prompt(
        scored, lambda row: float(loss_of(scale * torch.tensor(row.scores), torch.tensor(row.tiers)))
    )
    metrics = {
        "reward/eval_loss": statistics.fmean(losses),
        "reward/eval_accuracy": right.mean,
        "reward/eval_accuracy_low": right.low,
        "reward/eval_accuracy_high": right.high,
        **verdict_of(report).metrics,
        "reward/shift": shift,
        "reward/scale": scale,
    }
    return metrics, report


def show_samples(roles: Roles, rankings: Sequence[EncodedRanking], session: Session, *, shown: int = 4) -> None:
    """A few held-out rankings with their scores, for a person to read."""
    rows = []
    for encoded in rankings[:shown]:
        ranking = encoded.ranking
        scores = score(roles, "reward", encoded.sequences, tokens_per_microbatch=session.budget.tokens)
        ranked = zip(ranking.responses, ranking.tiers, scores.tolist(), strict=True)
        rows += [[ranking.prompt.user_text, *cells] for cells in ranked]
    session.tracker.table("samples", ["prompt", "response", "tier", "score"], rows)
