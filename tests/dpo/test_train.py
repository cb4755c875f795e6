"""DPO on the tiny model: policy and reference start as the SFT adapter, and the reference stays it."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.chat.conversations import EncodedRanking
from data.records import Message, Origin, Prompt, Ranking
from dpo.recipe import DpoRecipe
from dpo.train import build_trainer, read_data, require_log_two, to_pairs
from onebase.errors import RecipeError
from onebase.model.roles import WEIGHTS, Roles
from onebase.run import stages
from onebase.run.session import Session
from onebase.seeding import seed_everything
from onebase.trl import trainers
from onebase.trl.resumable import ROLE
from tests.factories import load_base_of, rows_of

MakeRecipe = Callable[..., DpoRecipe]


def open_session(recipe: DpoRecipe, roles: Roles) -> Session:
    return stages.open_session(stages.Origin(stage="dpo", recipe=recipe, base=roles.base), state_bytes=1)


def train(recipe: DpoRecipe) -> Roles:
    # Another folder for every recipe: a checkpoint of one is refused by the others.
    recipe = recipe.model_copy(update={"out": recipe.out / f"{len(list(recipe.out.parent.rglob('checkpoints')))}"})
    seed_everything(recipe.seed)
    base = load_base_of(recipe)
    roles = Roles(base).load(ROLE, recipe.parents.sft / "adapter")
    with open_session(recipe, roles) as session:
        trainer = build_trainer(roles, read_data(recipe), recipe, session)
        with roles.active(ROLE):
            trainers.train(trainer)
    return roles


def test_the_trainer_starts_from_the_sft_adapter_bit_for_bit_in_fp32(make_quantized: MakeRecipe) -> None:
    recipe = make_quantized()
    recipe.out.mkdir(parents=True)
    roles = Roles(load_base_of(recipe))
    roles.load(ROLE, recipe.parents.sft / "adapter")
    with open_session(recipe, roles) as session:
        build_trainer(roles, read_data(recipe), recipe, session)
    in_file = load_file(recipe.parents.sft / "adapter" / WEIGHTS)
    for role in (ROLE, "ref"):
        for name, tensor in roles.state(role).items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, in_file[name])
    assert all(parameter.requires_grad for parameter in roles.parameters(ROLE))
    assert not any(parameter.requires_grad for parameter in roles.parameters("ref"))


def test_the_first_loss_is_log_two_and_the_first_margin_zero(finished_run: Path) -> None:
    rows = rows_of(finished_run / "dpo")
    first = next(row for row in rows if "dpo/loss" in row)
    assert first["dpo/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["dpo/margin"] == pytest.approx(0, abs=1e-6)


def test_a_reference_that_is_not_the_policy_ends_the_run(make_quantized: MakeRecipe) -> None:
    with pytest.raises(RuntimeError, match="not the same adapter"):
        require_log_two({"dpo/eval_margin": 0.01, "dpo/eval_loss": math.log(2)}, make_quantized())


def test_an_evaluation_is_a_mean_over_pairs_whatever_its_batches(make_quantized: MakeRecipe) -> None:
    losses = {}
    for size in (4, 1):
        recipe = make_quantized(f"trl.per_device_eval_batch_size={size}")
        recipe = recipe.model_copy(update={"out": recipe.out / str(size)})
        roles = Roles(load_base_of(recipe))
        roles.load(ROLE, recipe.parents.sft / "adapter")
        with open_session(recipe, roles) as session:
            trainer = build_trainer(roles, read_data(recipe), recipe, session)
            for parameter in roles.parameters(ROLE):  # else every margin is 0
                parameter.data.mul_(1.5)
            with roles.active(ROLE):
                trainer.evaluate()
            losses[size] = trainer.latest
    assert losses[4]["dpo/eval_margin"] != 0
    for name in ("loss", "margin", "accuracy"):
        assert losses[4][f"dpo/eval_{name}"] == pytest.approx(losses[1][f"dpo/eval_{name}"], abs=1e-5), name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trl.label_smoothing=0.1", "read by trl.loss_type aot, aot_unpaired, exo_pair, robust only, found sigmoid"),
        ("trl.padding_free=true", "trl.padding_free has no effect in DPO"),
    ],
)
def test_what_trl_would_pass_over_is_refused(make_quantized: MakeRecipe, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_quantized(override)
    make_quantized("trl.label_smoothing=0.1", "trl.loss_type=[robust]")


def test_a_weighted_loss_does_not_start_at_log_two(make_quantized: MakeRecipe) -> None:
    require_log_two({"dpo/eval_margin": 0.0, "dpo/eval_loss": 0.3}, make_quantized("trl.use_weighting=true"))


def test_training_moves_the_policy_and_leaves_the_reference(make_quantized: MakeRecipe) -> None:
    recipe = make_quantized()
    roles = train(recipe)
    in_file = load_file(recipe.parents.sft / "adapter" / WEIGHTS)
    assert all(torch.equal(tensor, in_file[name]) for name, tensor in roles.state("ref").items())
    assert not any(torch.equal(tensor, in_file[name]) for name, tensor in roles.state(ROLE).items())


def test_one_batch_of_four_moves_the_adapter_like_four_of_one(make_quantized: MakeRecipe) -> None:
    # Plain gradient descent without clipping: the adapter's movement is the gradient.
    plain = ("trl.optim=sgd", "trl.learning_rate=1.0", "trl.max_grad_norm=0", "trl.max_steps=1")
    recipe = make_quantized()
    before = load_file(recipe.parents.sft / "adapter" / WEIGHTS)
    whole = train(make_quantized(*plain, "trl.per_device_train_batch_size=4")).state(ROLE)
    accumulated = (*plain, "trl.per_device_train_batch_size=1", "trl.gradient_accumulation_steps=4")
    parts = train(make_quantized(*accumulated)).state(ROLE)
    largest = max(float((whole[name] - before[name]).abs().max()) for name in before)
    assert largest > 0
    for name in before:
        assert float((whole[name] - parts[name]).abs().max()) <= 1e-5 * largest


def test_pairs_are_the_ends_of_a_ranking_or_all_of_it() -> None:
    prompt = Prompt(messages=(Message("user", "q"),), origin=Origin("here", 1))
    ranking = Ranking(prompt=prompt, responses=("a", "b", "c", "d"), tiers=(1, 0, 2, 2))
    encoded = EncodedRanking(ranking, (1,), ((10,), (11,), (12,), (13,)))
    (ends,) = to_pairs([encoded], "best-worst", 0)
    assert (ends["chosen_ids"], ends["rejected_ids"]) == ([11], [13])
    every = {(row["chosen_ids"][0], row["rejected_ids"][0]) for row in to_pairs([encoded], "all", 0)}
    assert every == {(11, 10), (11, 12), (11, 13), (10, 12), (10, 13)}


def test_the_best_meets_every_worse_response_equally_often_and_the_seed_decides() -> None:
    prompt = Prompt(messages=(Message("user", "q"),), origin=Origin("here", 1))
    ranking = Ranking(prompt=prompt, responses=("a", "b", "c", "d"), tiers=(1, 0, 2, 0))
    encoded = EncodedRanking(ranking, (1,), ((10,), (11,), (12,), (13,)))
    rows = to_pairs([encoded] * 400, "best-random", 3)
    assert {row["chosen_ids"][0] for row in rows} == {11}
    rejected = [row["rejected_ids"][0] for row in rows]
    assert set(rejected) == {10, 12}  # never the one it is tied with
    assert 150 <= rejected.count(10) <= 250
    assert rows == to_pairs([encoded] * 400, "best-random", 3)
    assert rows != to_pairs([encoded] * 400, "best-random", 4)
    assert rows[:7] == to_pairs([encoded] * 7, "best-random", 3)
