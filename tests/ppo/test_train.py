"""PPO on the tiny model: the laws that hold between the four roles."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from onebase.errors import RecipeError
from onebase.inference.scoring import score
from onebase.memory import Budget
from onebase.model.forwards import Forwards
from onebase.model.roles import WEIGHTS, Roles
from onebase.run.learning import OTHER_BYTES, state_bytes
from onebase.seeding import generator
from ppo import train
from ppo.method import method_of
from ppo.recipe.recipe import PpoRecipe
from ppo.rollout import Experience, require_zero_kl
from ppo.start import PpoRun, read_data, start_learner
from ppo.train import run
from ppo.update import backward, minibatches, update
from tests.factories import budget_of, load_base_of, roll_out, rows_of, start

MakeRecipe = Callable[..., PpoRecipe]


def kl_error(roles: Roles, recipe: PpoRecipe) -> float:
    tokens, temperature = recipe.train.tokens_per_microbatch, recipe.sampling.temperature
    return require_zero_kl(roles, roll_out(roles, recipe), temperature=temperature, tokens_per_microbatch=tokens)


def trained_gradients(roles: Roles) -> dict[str, list[torch.Tensor]]:
    return {
        role: [p.grad.clone() for p in roles.parameters(role) if p.grad is not None]
        for role in ("policy", "value")
        if role in roles.names
    }


def test_policy_and_reference_agree_to_the_bit_before_the_first_update(make_quantized: MakeRecipe) -> None:
    recipe = make_quantized()
    roles = start(recipe)
    assert kl_error(roles, recipe) < 1e-4


def test_a_run_logs_how_far_decoding_is_from_the_training_forward(finished_run: Path) -> None:
    first = json.loads((finished_run / "ppo" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 0
    assert 0 <= first["ppo/decoding_error"] < 1e-4


def test_a_policy_that_is_not_the_reference_ends_the_run(make_quantized: MakeRecipe) -> None:
    recipe = make_quantized()
    roles = start(recipe)
    roles.parameters("policy")[0].data.add_(1e-3)
    with pytest.raises(RuntimeError, match="not 0 before the first update"):
        kl_error(roles, recipe)


def test_scores_inside_ppo_are_the_bits_of_stand_alone_scoring(make_quantized: MakeRecipe, finished_run: Path) -> None:
    recipe = make_quantized()
    rollout = roll_out(start(recipe), recipe)
    alone = Roles(load_base_of(recipe))
    alone.load("reward", finished_run / "reward" / "adapter")
    budget, closed = recipe.train.tokens_per_microbatch, read_data(recipe).chat.closed(rollout.episodes.sequences)
    assert torch.equal(rollout.scores, score(alone, "reward", closed, tokens_per_microbatch=budget))
    one_by_one = score(alone, "reward", closed, tokens_per_microbatch=1)
    assert torch.allclose(rollout.scores, one_by_one, rtol=0, atol=1e-4)  # other matrix shapes, other last bits


@pytest.mark.parametrize("value", ["adapter", "shared"])
def test_one_microbatch_gives_the_gradients_of_one_an_episode(make_quantized: MakeRecipe, value: str) -> None:
    recipe = make_quantized(f"value.kind={value}")
    roles = start(recipe)
    experience, outcomes, learner = roll_out(roles, recipe), {}, start_learner(roles, recipe)
    for budget in (10_000, 1):
        tally = backward(roles, experience, learner, method_of(recipe), Budget(tokens=budget))
        outcomes[budget] = trained_gradients(roles), tally.means()
    for role, whole in outcomes[10_000][0].items():
        largest = max(float(gradient.abs().max()) for gradient in whole)
        assert largest > 0, role
        for at_once, other in zip(whole, outcomes[1][0][role], strict=True):
            assert float((at_once - other).abs().max()) <= 1e-5 * largest, role
    assert outcomes[10_000][1] == pytest.approx(outcomes[1][1], abs=1e-4)


@pytest.mark.parametrize("minibatch", [8, 4])
def test_the_value_function_computes_once_for_a_rollout_and_once_a_minibatch(
    make_quantized: MakeRecipe, minibatch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ("train.episodes=8", "train.batch=8", f"train.minibatch={minibatch}", "train.tokens_per_microbatch=100000")
    activated, active = list[str | None](), Forwards.active
    monkeypatch.setattr(Forwards, "active", lambda self, role: (activated.append(role), active(self, role))[1])
    run(make_quantized(*sizes, "train.epochs=1"))
    assert activated.count("value") == 1 + 8 // minibatch


def update_with(roles: Roles, experience: Experience, recipe: PpoRecipe, accept: Any = lambda *_: True) -> None:
    learner, draw = start_learner(roles, recipe), generator(0, "update")
    update(roles, experience, learner, method_of(recipe), draw, accept, budget_of(recipe), kl_weight=0.0)


@pytest.mark.parametrize("kind", ["rloo", "grpo", "dr_grpo"])
def test_a_run_that_compares_groups_has_no_value_function(make_quantized: MakeRecipe, kind: str) -> None:
    settings = (f"advantages.kind={kind}", "sampling.responses_per_prompt=4", "kl.estimator=k3")
    recipe = make_quantized(*settings, "train.episodes=16", "train.learning_rate=1e-3")
    made = run(recipe)
    rows = rows_of(recipe.out)
    logged = set().union(*rows)
    assert {"ppo/kl_loss", "ppo/policy_loss", "ppo/grad_norm/policy"} <= logged
    assert not {name for name in logged if "value" in name or "explained" in name}
    assert all(row["ppo/kl_loss"] > 0 for row in rows[1:])
    assert sorted(path.name for path in (recipe.out / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert made.metrics["ppo/kl_loss"] == rows[-1]["ppo/kl_loss"]


def test_the_policy_waits_while_the_value_function_learns_alone(
    make_quantized: MakeRecipe, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adaptive = "kl.adaptive={target: 5, horizon: 100}"
    waiting = make_quantized("value.warmup_steps=2", "train.episodes=24", "train.learning_rate=1e-2", adaptive)
    kept = list[dict[str, torch.Tensor]]()
    learn = train.learn

    def watched(ppo: PpoRun, *rest: Any) -> dict[str, float]:
        metrics = learn(ppo, *rest)
        kept.append({name: tensor.clone() for name, tensor in ppo.roles.state("policy").items()})
        return metrics

    monkeypatch.setattr(train, "learn", watched)
    run(waiting)
    before = load_file(finished_run / "sft" / "adapter" / WEIGHTS)
    alike = [all(torch.equal(tensor, before[name]) for name, tensor in state.items()) for state in kept]
    assert alike == [True, True, False]
    rows = rows_of(waiting.out)
    assert [row["ppo/grad_norm/policy"] > 0 for row in rows[1:]] == [False, False, True]
    assert all(row["ppo/grad_norm/value"] > 0 for row in rows[1:])
    # A ratio is the policy's; and the weight begins to adapt when the policy begins to learn.
    assert ["ppo/ratio_max" in row for row in rows[1:]] == [False, False, True]
    weights = [row["ppo/next_kl_weight"] for row in rows[1:]]
    assert weights[0] == weights[1] == waiting.kl.weight > weights[2]


def test_an_update_moves_policy_and_value_and_nothing_else(make_quantized: MakeRecipe, finished_run: Path) -> None:
    recipe = make_quantized()
    roles = start(recipe)
    rollout = roll_out(roles, recipe)
    before = {role: {name: t.clone() for name, t in roles.state(role).items()} for role in roles.names}
    update_with(roles, rollout, recipe)
    for role in roles.names:
        moved = any(not torch.equal(tensor, before[role][name]) for name, tensor in roles.state(role).items())
        assert moved == (role in ("policy", "value")), role
    in_file = load_file(finished_run / "sft" / "adapter" / WEIGHTS)
    assert all(torch.equal(tensor, in_file[name]) for name, tensor in roles.state("reference").items())
    assert not any(parameter.grad is not None for parameter in roles.parameters("reward"))


def test_the_first_step_of_an_update_has_ratio_one(make_quantized: MakeRecipe) -> None:
    """Before the policy has moved nothing is clipped, and KL(old || new) is what decoding's rounding leaves."""
    recipe = make_quantized()
    roles = start(recipe)
    rollout = roll_out(roles, recipe)
    tally = backward(roles, rollout, start_learner(roles, recipe), method_of(recipe), budget_of(recipe))
    assert tally.ratio_max == pytest.approx(1.0, abs=1e-3)
    assert tally.means()["clip_fraction"] == 0.0
    assert tally.means()["kl_from_old"] == pytest.approx(0.0, abs=1e-6)


def test_every_epoch_sees_every_episode_once_in_an_order_of_its_own() -> None:
    batches = list(minibatches(8, size=4, epochs=3, generator=generator(0, "order")))
    assert [len(rows) for rows in batches] == [4] * 6
    epochs = [[*batches[2 * epoch], *batches[2 * epoch + 1]] for epoch in range(3)]
    assert all(sorted(rows) == list(range(8)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 3


def test_sizes_that_do_not_divide_are_refused(make_quantized: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=r"train\.batch=8 is not a multiple of train\.minibatch=3"):
        make_quantized("train.minibatch=3")


def test_a_checkpoint_takes_the_bytes_that_were_looked_for(make_quantized: MakeRecipe, finished_run: Path) -> None:
    recipe = make_quantized()
    roles = start(recipe)
    expected = state_bytes(roles, list(start_learner(roles, recipe).trained))
    folders = list((finished_run / "ppo" / "checkpoints").glob("step-*"))
    assert folders
    for folder in folders:
        tensors = sum(tensor.nbytes for tensor in load_file(folder / "tensors.safetensors").values())
        # Beyond weights and moments there are the random number generators and AdamW's counts.
        assert 0 < tensors - (expected - OTHER_BYTES) < 50_000
        assert sum(path.stat().st_size for path in folder.iterdir()) <= expected
