"""Stage 3, the other way: DPO. The SFT adapter learns from pairs of responses, no reward model; TRL does the loop.

default  the SFT adapter                trained
ref      a copy of it, made by TRL      frozen: at step 0 the loss is log 2 and every margin 0

Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 7.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from data.card import write_card
from data.chat.conversations import Chat, EncodedRanking, Limiter, encode_rankings
from data.records import Ranking
from data.select.contamination import require_apart
from data.select.room import require_limits
from data.select.sources import LoadedRecords
from data.select.sources import load as load_records
from dpo.recipe import DpoRecipe, Pairing
from evaluation.compare.responses import greedy
from onebase.inference.soundness import require_sound
from onebase.model import base as bases
from onebase.model.roles import Roles
from onebase.run import stages
from onebase.run.identity import RunIdentity
from onebase.run.learning import state_bytes
from onebase.run.record import DataIdentity, StageRecord
from onebase.run.session import Session
from onebase.seeding import seed_everything, stream
from onebase.tracking.tracker import Tracker
from onebase.tracking.usage import Stopwatch
from onebase.trl import trainers
from onebase.trl.arguments import padded_to
from onebase.trl.resumable import ROLE, Resumable

METRICS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "num_tokens": "tokens",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "logps/chosen": "logprob_chosen",
    "logps/rejected": "logprob_rejected",
    "eval_loss": "eval_loss",
    "eval_rewards/margins": "eval_margin",
    "eval_rewards/accuracies": "eval_accuracy",
}
"""What TRL calls it, and what we do (`dpo/...`). The margin is beta times the difference of log-ratios, in nats."""

TOLERANCE = 1e-5
"""How far loss and margin may be from log 2 and 0 at step 0: policy and reference run the same forward."""


@dataclass(frozen=True, kw_only=True)
class Data:
    chat: Chat
    training: list[EncodedRanking]
    held_out: list[EncodedRanking]
    loaded: LoadedRecords[Ranking]
    """What is trained on, as it was read: for the data card."""
    identities: list[DataIdentity]


class TokenPairTrainer(Resumable, DPOTrainer):
    """TRL's trainer with our checkpoints, on pairs that are tokens already: re-tokenised text is often other tokens."""

    def _prepare_dataset(self, dataset: Any, *arguments: Any, **options: Any) -> Any:
        return dataset

    def rows_of(self, inputs: Mapping[str, Any]) -> int:
        return len(inputs["input_ids"]) // 2

    def select_rows(self, inputs: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
        """Pairs: the chosen ones are the first half of the rows, the rejected ones the second; what TRL precomputes
        has one row a pair."""
        size = self.rows_of(inputs)
        both = [*rows, *(size + row for row in rows)]
        return {
            name: value[both if len(value) == 2 * size else list(rows)] if torch.is_tensor(value) else value
            for name, value in inputs.items()
        }


def run(recipe: DpoRecipe) -> StageRecord:
    """Check that policy and reference agree, train on pairs, measure on held-out ones, write the record."""
    watch = Stopwatch()
    stages.require_one_process("dpo")
    identity = stages.identify(recipe.base, recipe.chat)
    parents = {"sft": stages.read_parent(recipe.parents.sft, "sft", identity)}
    data = read_data(recipe)
    seed_everything(recipe.seed)
    base = bases.load(recipe.base, recipe.chat)
    roles = Roles(base)
    require_sound(roles)
    roles.load(ROLE, parents["sft"].adapter)
    trainers.rehearse(configure(roles, recipe), roles)
    origin = stages.Origin(stage="dpo", recipe=recipe, base=base, parents=parents, data=data.identities, watch=watch)
    with stages.open_session(origin, state_bytes=state_bytes(roles, [ROLE])) as session:
        write_card(recipe.out / "data", data.loaded, tokens=data.chat, limits=recipe.limits)
        trainer = build_trainer(roles, data, recipe, session)
        trainers.measure_and_train(trainer, check=lambda metrics: require_log_two(metrics, recipe))
        show_samples(roles, data, recipe, session.tracker)
        return stages.finish(origin, roles, ROLE, trainer.latest, session)


def identify(recipe: DpoRecipe) -> RunIdentity:
    """The identity of a run of this recipe today, without loading a weight."""
    identity = stages.identify(recipe.base, recipe.chat)
    parents = {"sft": stages.read_parent(recipe.parents.sft, "sft", identity)}
    return stages.run_identity(identity.base, identity.tokenizer, parents, read_data(recipe).identities)


def read_data(recipe: DpoRecipe) -> Data:
    """Rankings as tokens; DataError before anything is written."""
    require_limits(recipe.limits, bases.reach(recipe.base), multiple=padded_to(recipe.trl))
    chat = Chat(*bases.load_tokenizer(recipe.base, recipe.chat), recipe.chat)
    limiter = Limiter(recipe.limits)
    training = load_records(recipe.data, Ranking, seed=recipe.seed)
    held_out = load_records(recipe.evaluation.rankings, Ranking, seed=recipe.seed)
    require_apart("evaluation.rankings", held_out.records, training.records)
    return Data(
        chat=chat,
        training=encode_rankings(chat, training.records, limiter),
        held_out=encode_rankings(chat, held_out.records, limiter),
        loaded=training,
        identities=[*training.identities, *held_out.identities, *limiter.settle("dpo")],
    )


def configure(roles: Roles, recipe: DpoRecipe) -> DPOConfig:
    return trainers.configure(DPOConfig, recipe.trl, roles, folder=recipe.out / "checkpoints", seed=recipe.seed)


def build_trainer(roles: Roles, data: Data, recipe: DpoRecipe, session: Session) -> TokenPairTrainer:
    """TRL's trainer on the SFT adapter as it is in its file; TRL makes the reference from it."""
    rows = [to_pairs(part, recipe.pairs, recipe.seed) for part in (data.training, data.held_out)]
    return trainers.construct(TokenPairTrainer, configure(roles, recipe), roles, rows, session=session, names=METRICS)


def choose_pairs(ranking: Ranking, pairing: Pairing, draw: Random) -> list[tuple[int, int]]:
    """(better, worse) indices of the responses that a ranking sets against each other."""
    if pairing == "all":
        return ranking.pairs
    tiers = ranking.tiers
    best = tiers.index(min(tiers))
    if pairing == "best-random":
        return [(best, draw.choice([worse for better, worse in ranking.pairs if better == best]))]
    return [(best, len(tiers) - 1 - tiers[::-1].index(max(tiers)))]


def to_pairs(rankings: Sequence[EncodedRanking], pairing: Pairing, seed: int) -> list[dict[str, list[int]]]:
    """(chosen, rejected) as tokens. What is drawn for a ranking depends on the seed and its place alone."""
    rows = []
    for index, encoded in enumerate(rankings):
        prompt, responses = list(encoded.prompt_ids), encoded.responses_ids
        for better, worse in choose_pairs(encoded.ranking, pairing, Random(stream(seed, "dpo", "pairs", index))):
            chosen, rejected = list(responses[better]), list(responses[worse])
            rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return rows


def require_log_two(metrics: Mapping[str, float], recipe: DpoRecipe) -> None:
    """Before the first update policy and reference are the same adapter: -log sigmoid(0) = log 2."""
    margin, loss = metrics["dpo/eval_margin"], metrics["dpo/eval_loss"]
    block = recipe.trl.arguments()
    weighted = any(block.get(key) for key in ("use_weighting", "loss_weights", "router_aux_loss_coef"))
    plain = block.get("loss_type", "sigmoid") in ("sigmoid", ["sigmoid"]) and not weighted
    if abs(margin) > TOLERANCE or (plain and abs(loss - math.log(2)) > TOLERANCE):
        raise RuntimeError(
            f"DPO starts with a loss of {loss:.6g} and a margin of {margin:.3g} where log 2 and 0 are expected. "
            "Policy and reference are not the same adapter, so this run would optimise the wrong objective."
        )


def show_samples(roles: Roles, data: Data, recipe: DpoRecipe, tracker: Tracker) -> None:
    """Held-out prompts with the greedy answers before and after, for a person to read."""
    chosen = data.held_out[: recipe.evaluation.samples]
    prompts = [encoded.prompt_ids for encoded in chosen]
    roles.base.model.eval()
    answers = [
        greedy(roles, role, data.chat, prompts, max_new_tokens=recipe.limits.response_tokens) for role in ("ref", ROLE)
    ]
    rows = [[encoded.ranking.prompt.user_text, *both] for encoded, *both in zip(chosen, *answers, strict=True)]
    tracker.table("samples", ["prompt", "sft", "dpo"], rows)
