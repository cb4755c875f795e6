"""SFT on the tiny model: what TRL is given, and what it may not change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.chat.conversations import IGNORED
from onebase.errors import RecipeError
from onebase.model.roles import WEIGHTS, Roles
from onebase.run import stages
from onebase.run.session import Session
from onebase.seeding import generator, seed_everything
from onebase.trl import trainers
from onebase.trl.resumable import ROLE
from sft.recipe import SftRecipe
from sft.train import build_trainer, read_data, to_rows
from tests.factories import load_base_of

MakeRecipe = Callable[..., SftRecipe]


def start(recipe: SftRecipe) -> Roles:
    base = load_base_of(recipe)
    return Roles(base).add(ROLE, recipe.adapter, generator=generator(recipe.seed, "sft", "adapter"))


def open_session(recipe: SftRecipe, roles: Roles) -> Session:
    return stages.open_session(stages.Origin(stage="sft", recipe=recipe, base=roles.base), state_bytes=1)


def train(recipe: SftRecipe) -> dict[str, torch.Tensor]:
    """The adapter after TRL has trained it."""
    # Another folder for every recipe: a checkpoint of one is refused by the others.
    recipe = recipe.model_copy(update={"out": recipe.out / f"{len(list(recipe.out.parent.rglob('checkpoints')))}"})
    seed_everything(recipe.seed)
    roles = start(recipe)
    with open_session(recipe, roles) as session:
        trainer = build_trainer(roles, read_data(recipe), recipe, session)
        with roles.active(ROLE):
            trainers.train(trainer)
    return {name: tensor.clone() for name, tensor in roles.state(ROLE).items()}


def test_the_trainer_starts_from_the_adapter_in_its_file_bit_for_bit_in_fp32(
    make_recipe: MakeRecipe, quantization: str, tmp_path: Path
) -> None:
    recipe = make_recipe(quantization=quantization)
    recipe.out.mkdir(parents=True)
    roles = start(recipe)
    for parameter in roles.parameters(ROLE):
        parameter.data.add_(1e-4 * torch.randn(parameter.shape))  # values that bf16 would round
    roles.save(ROLE, tmp_path / "file")
    with open_session(recipe, roles) as session:
        build_trainer(roles, read_data(recipe), recipe, session)
    in_file = load_file(tmp_path / "file" / WEIGHTS)
    for name, tensor in roles.state(ROLE).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, in_file[name])
    assert all(parameter.requires_grad for parameter in roles.parameters(ROLE))


def test_rows_teach_the_response_and_its_end_and_nothing_of_the_prompt(make_recipe: MakeRecipe) -> None:
    data = read_data(make_recipe())
    for row, demonstration in zip(to_rows(data.training), data.training, strict=True):
        learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
        assert learned == list(demonstration.response_ids)
        assert learned[-1] == data.chat.end_id
        assert row["labels"][: len(demonstration.prompt_ids)] == [IGNORED] * len(demonstration.prompt_ids)


def test_packed_rows_give_the_loss_of_separate_ones(make_recipe: MakeRecipe) -> None:
    """Demonstrations that share a row attend to themselves only, and positions start again with each."""
    losses = {}
    for packing in ("true", "false"):
        recipe = make_recipe(f"trl.packing={packing}", "trl.per_device_eval_batch_size=1")
        recipe.out.mkdir(parents=True, exist_ok=True)
        roles = start(recipe)
        for parameter in roles.parameters(ROLE):
            parameter.data.copy_(
                0.05 * torch.randn(parameter.shape, generator=generator(1, "packing", parameter.numel()))
            )
        with open_session(recipe, roles) as session:
            trainer = build_trainer(roles, read_data(recipe), recipe, session)
            model = trainer.model
            assert model is not None
            rows = len(trainer.get_eval_dataloader())
            with roles.active(ROLE), torch.no_grad():
                # The sum over tokens, so that rows of different lengths weigh the same either way.
                total = sum(
                    float(trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(1)))
                    for batch in trainer.get_eval_dataloader()
                )
        losses[packing] = (rows, total)
    assert losses["true"][0] < losses["false"][0], "nothing was packed"
    assert losses["true"][1] == pytest.approx(losses["false"][1], rel=1e-5)


def test_an_evaluation_is_a_mean_over_tokens_whatever_its_batches(make_recipe: MakeRecipe) -> None:
    """Six demonstrations: TRL's own means would be of batches of 4 and 2, or of 6 of one."""
    losses = {}
    for size in (4, 1):
        recipe = make_recipe("trl.packing=false", f"trl.per_device_eval_batch_size={size}")
        recipe = recipe.model_copy(update={"out": recipe.out / str(size)})
        roles = start(recipe)
        with open_session(recipe, roles) as session:
            trainer = build_trainer(roles, read_data(recipe), recipe, session)
            with roles.active(ROLE):
                trainer.evaluate()
            losses[size] = trainer.latest
    assert losses[4]["sft/eval_loss"] == pytest.approx(losses[1]["sft/eval_loss"], rel=1e-5)
    assert losses[4]["sft/eval_token_accuracy"] == pytest.approx(losses[1]["sft/eval_token_accuracy"], rel=1e-5)


def test_one_batch_of_four_moves_the_adapter_like_four_of_one(make_recipe: MakeRecipe) -> None:
    # Plain gradient descent without clipping: the adapter's movement is the gradient.
    plain = ("trl.optim=sgd", "trl.learning_rate=1.0", "trl.max_grad_norm=0", "trl.max_steps=1", "trl.packing=false")
    recipe = make_recipe()
    before = {name: tensor.clone() for name, tensor in start(recipe).state(ROLE).items()}
    whole = train(make_recipe(*plain, "trl.per_device_train_batch_size=4"))
    parts = train(make_recipe(*plain, "trl.per_device_train_batch_size=1", "trl.gradient_accumulation_steps=4"))
    largest = max(float((whole[name] - before[name]).abs().max()) for name in before)
    assert largest > 0
    for name in before:
        assert float((whole[name] - parts[name]).abs().max()) <= 1e-5 * largest


def test_the_tokens_of_a_step_are_those_of_all_its_micro_batches(make_recipe: MakeRecipe) -> None:
    """TRL sets this metric in every micro-batch, and appends to the others."""
    tokens = []
    for rows, steps in ((4, 1), (1, 4)):
        recipe = make_recipe(
            *("trl.max_steps=1", "trl.packing=false"),
            *(f"trl.per_device_train_batch_size={rows}", f"trl.gradient_accumulation_steps={steps}"),
        )
        recipe = recipe.model_copy(update={"out": recipe.out / str(rows)})
        train(recipe)
        (file,) = recipe.out.rglob("metrics.jsonl")
        logged = [json.loads(line) for line in file.read_text().splitlines()]
        tokens.append([row["sft/tokens"] for row in logged if "sft/tokens" in row])
    assert tokens[0] == tokens[1] and tokens[0][0] > 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trl.learning_rte=1e-3", "did you mean 'learning_rate'"),
        ("trl.bf16=true", "is set by Onebase itself"),
        ("trl.max_length=100", "must fit in trl.max_length=100"),
        ("trl.num_train_epochs=many", "num_train_epochs"),
        ("trl.gradient_accumulation_steps=10000000000000", "gradient_accumulation_steps: .*1000000000000 at most"),
        ("trl.save_steps=100", "the recipe's `checkpoint` says when a run is saved"),
        ("adapter.dropout=1.5", "less than 1"),
    ],
)
def test_a_wrong_trl_key_is_refused(make_recipe: MakeRecipe, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe(override)


def test_a_loss_that_is_not_finite_ends_the_run(make_recipe: MakeRecipe) -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        train(make_recipe("trl.optim=sgd", "trl.learning_rate=1e30", "trl.max_grad_norm=0", "trl.num_train_epochs=8"))


@pytest.mark.parametrize("packing", ["true", "false"])
@pytest.mark.parametrize("fails", ["never", "at the second piece's end"])
def test_a_micro_batch_in_pieces_adds_the_gradients_and_tokens_of_the_whole(
    make_recipe: MakeRecipe, packing: str, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on top of earlier gradients, and where memory runs out after a piece has added its own."""
    recipe = make_recipe(f"trl.packing={packing}", "trl.per_device_train_batch_size=4", "limits.prompt_tokens=200")
    roles = start(recipe)
    with open_session(recipe, roles) as session:
        trainer = build_trainer(roles, read_data(recipe), recipe, session)
        model: Any = trainer.model
        trainer.create_optimizer_and_scheduler(num_training_steps=2)
        first, second, *_ = trainer.get_train_dataloader()
        any_trainer: Any = trainer
        any_trainer.current_gradient_accumulation_steps = 2
        tokens = sum((part["labels"][..., 1:] != IGNORED).sum() for part in (first, second))
        added = {}
        backward = trainer.accelerator.backward
        calls: list[int] = []

        def failing(*arguments: Any, **options: Any) -> None:
            backward(*arguments, **options)
            calls.append(1)
            if fails != "never" and len(calls) == 3:  # the first micro-batch is one call, the second at least two
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        for pieces in (0, 1):
            model.zero_grad()
            any_trainer._total_train_tokens = 0
            with roles.active(ROLE):
                model.train()
                trainer.training_step(model, first, tokens)
                session.budget.halvings = pieces
                if pieces:
                    calls.append(1)
                    monkeypatch.setattr(trainer.accelerator, "backward", failing)
                trainer.training_step(model, second, tokens)
            session_count = session.budget.halvings
            gradients = [parameter.grad.clone() for parameter in roles.parameters(ROLE) if parameter.grad is not None]
            added[pieces] = (gradients, any_trainer._total_train_tokens)
        assert session_count == (1 if fails == "never" else 2)
        assert len(calls) > 2
    assert added[1][1] == added[0][1]
    largest = max(float(gradient.abs().max()) for gradient in added[0][0])
    for in_pieces, other in zip(added[0][0], added[1][0], strict=True):
        torch.testing.assert_close(other, in_pieces, rtol=0, atol=1e-5 * largest)


def test_a_batch_that_is_not_finite_is_kept_with_its_tokens(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("trl.max_steps=2", "trl.packing=false", "checkpoint.strikes=9")
    roles = start(recipe)
    with open_session(recipe, roles) as session:
        data = read_data(recipe)
        trainer = build_trainer(roles, data, recipe, session)
        next(iter(roles.parameters(ROLE))).data.fill_(float("nan"))
        with roles.active(ROLE):
            trainers.train(trainer)
    kept = sorted((recipe.out / "nonfinite").glob("*.json"))
    assert len(kept) == 2
    content = json.loads(kept[0].read_text())
    assert len(content["values"]) == 2, "the loss and the gradient's norm"
    trained = {tuple(demonstration.input_ids) for demonstration in data.training}
    (batch,) = content["batch"]
    for row in batch:
        assert any(tuple(row[: len(ids)]) == ids for ids in trained)
