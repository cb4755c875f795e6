"""Stage 1: instruction tuning. A fresh LoRA adapter learns the responses of demonstrations; TRL does the loop.

Only the response and the token that ends it are learned; `data.chat` hands over tokens and labels.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from data.card import write_card
from data.chat.conversations import IGNORED, Chat, EncodedDemonstration, Limiter, encode_demonstrations
from data.records import Demonstration
from data.select.contamination import require_apart
from data.select.room import require_limits
from data.select.sources import LoadedRecords
from data.select.sources import load as load_records
from evaluation.compare.responses import greedy
from onebase.inference.soundness import require_sound
from onebase.model import base as bases
from onebase.model.roles import Roles
from onebase.run import stages
from onebase.run.identity import RunIdentity
from onebase.run.learning import state_bytes
from onebase.run.record import DataIdentity, StageRecord
from onebase.run.session import Session
from onebase.seeding import generator, seed_everything
from onebase.terminal import say
from onebase.tracking.tracker import Tracker
from onebase.tracking.usage import Stopwatch
from onebase.trl import trainers
from onebase.trl.arguments import padded_to
from onebase.trl.resumable import ROLE, Resumable
from sft import packing
from sft.recipe import SftRecipe

METRICS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "mean_token_accuracy": "token_accuracy",
    "num_tokens": "tokens",
    "eval_loss": "eval_loss",
    "eval_mean_token_accuracy": "eval_token_accuracy",
}
"""What TRL calls it, and what we do (`sft/...`)."""


@dataclass(frozen=True, kw_only=True)
class Data:
    chat: Chat
    training: list[EncodedDemonstration]
    held_out: list[EncodedDemonstration]
    references: list[Demonstration]
    """The held-out demonstrations as text, in no particular order."""
    loaded: LoadedRecords[Demonstration]
    """What is trained on, as it was read: for the data card."""
    identities: list[DataIdentity]


class TokenTrainer(Resumable, SFTTrainer):
    """TRL's trainer with our checkpoints."""

    def rows_of(self, inputs: Mapping[str, Any]) -> int:
        return len(_starts(inputs)) if _is_packed(inputs) else super().rows_of(inputs)

    def select_rows(self, inputs: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
        """Some of the rows; of a packed batch, which is one long row, some of the demonstrations in it."""
        if not _is_packed(inputs):
            return super().select_rows(inputs, rows)
        bounds = [*_starts(inputs), inputs["input_ids"].shape[1]]
        tokens = {name: inputs[name][0].tolist() for name in ("input_ids", "labels")}
        return dict(
            self.data_collator(
                [{name: ids[bounds[row] : bounds[row + 1]] for name, ids in tokens.items()} for row in rows]
            )
        )

    def weigh(self, inputs: Mapping[str, Any]) -> float:
        """Tokens that are learned."""
        return float((inputs["labels"][..., 1:] != IGNORED).sum())


def _is_packed(inputs: Mapping[str, Any]) -> bool:
    return "position_ids" in inputs


def _starts(inputs: Mapping[str, Any]) -> list[int]:
    """Columns at which the demonstrations of a packed batch begin: positions restart there."""
    return (inputs["position_ids"][0] == 0).nonzero().flatten().tolist()


def run(recipe: SftRecipe) -> StageRecord:
    """Measure the base on held-out demonstrations, train the adapter, measure again, write the record."""
    watch = Stopwatch()
    stages.require_one_process("sft")
    stages.identify(recipe.base, recipe.chat)
    data = read_data(recipe)
    seed_everything(recipe.seed)
    base = bases.load(recipe.base, recipe.chat)
    roles = Roles(base)
    require_sound(roles)
    roles.add(ROLE, recipe.adapter, generator=generator(recipe.seed, "sft", "adapter"))
    config = configure(roles, recipe)
    trainers.rehearse(config, roles)
    if not config.packing and recipe.trl.arguments().get("packing") is None:
        say(f"sft: {type(base.model).__name__} does not keep demonstrations apart in one row: they are padded instead.")
    origin = stages.Origin(stage="sft", recipe=recipe, base=base, data=data.identities, watch=watch)
    with stages.open_session(origin, state_bytes=state_bytes(roles, [ROLE])) as session:
        write_card(recipe.out / "data", data.loaded, tokens=data.chat, limits=recipe.limits)
        trainer = build_trainer(roles, data, recipe, session)
        trainers.measure_and_train(trainer)
        show_samples(roles, data, recipe, session.tracker)
        return stages.finish(origin, roles, ROLE, trainer.latest, session)


def identify(recipe: SftRecipe) -> RunIdentity:
    """The identity of a run of this recipe today, without loading a weight."""
    identity = stages.identify(recipe.base, recipe.chat)
    return stages.run_identity(identity.base, identity.tokenizer, {}, read_data(recipe).identities)


def read_data(recipe: SftRecipe) -> Data:
    """Demonstrations as tokens; DataError before anything is written."""
    require_limits(recipe.limits, bases.reach(recipe.base), multiple=padded_to(recipe.trl))
    chat = Chat(*bases.load_tokenizer(recipe.base, recipe.chat), recipe.chat)
    limiter = Limiter(recipe.limits)
    training = load_records(recipe.data, Demonstration, seed=recipe.seed)
    held_out = load_records(recipe.evaluation.demonstrations, Demonstration, seed=recipe.seed)
    require_apart("evaluation.demonstrations", held_out.records, training.records)
    return Data(
        chat=chat,
        training=encode_demonstrations(chat, training.records, limiter),
        held_out=encode_demonstrations(chat, held_out.records, limiter),
        references=held_out.records,
        loaded=training,
        identities=[*training.identities, *held_out.identities, *limiter.settle("sft")],
    )


def configure(roles: Roles, recipe: SftRecipe) -> SFTConfig:
    packs = packing.decide(roles, recipe.trl)
    return trainers.configure(
        SFTConfig, recipe.trl, roles, folder=recipe.out / "checkpoints", seed=recipe.seed, packing=packs
    )


def build_trainer(roles: Roles, data: Data, recipe: SftRecipe, session: Session) -> TokenTrainer:
    """TRL's trainer on the adapter as it is, and on tokens and labels as they are."""
    rows = [to_rows(part) for part in (data.training, data.held_out)]
    return trainers.construct(TokenTrainer, configure(roles, recipe), roles, rows, session=session, names=METRICS)


def to_rows(demonstrations: Sequence[EncodedDemonstration]) -> list[dict[str, list[int]]]:
    """What SFTTrainer takes without touching it: tokens, and labels that are -100 on the prompt."""
    return [{"input_ids": demonstration.input_ids, "labels": demonstration.labels} for demonstration in demonstrations]


def show_samples(roles: Roles, data: Data, recipe: SftRecipe, tracker: Tracker) -> None:
    """Held-out prompts with the greedy answers of base and adapter, for a person to read."""
    encoded = ((reference, data.chat.prompt_ids(reference.prompt)) for reference in data.references)
    fitting = (pair for pair in encoded if len(pair[1]) <= recipe.limits.prompt_tokens)
    shown = list(itertools.islice(fitting, recipe.evaluation.samples))
    prompts = [ids for _, ids in shown]
    roles.base.model.eval()
    answers = [
        greedy(roles, role, data.chat, prompts, max_new_tokens=recipe.limits.response_tokens) for role in (None, ROLE)
    ]
    rows = [
        [reference.prompt.user_text, reference.response, *both]
        for (reference, _), *both in zip(shown, *answers, strict=True)
    ]
    tracker.table("samples", ["prompt", "demonstration", "base", "sft"], rows)
