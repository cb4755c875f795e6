"""What docs/ppo.md says of every detail stands in the code and in a test; and the details that no other file proves."""

import ast
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase.errors import Interrupted, RecipeError
from onebase.inference.logprobs import draw
from onebase.inference.scoring import token_values
from onebase.model.roles import Roles
from onebase.seeding import generator
from onebase.sequences.episodes import Episodes
from ppo import rollout, train
from ppo.method import method_of
from ppo.recipe.recipe import PpoRecipe
from ppo.rollout import Experience
from ppo.start import batches, read_data, start_learner
from ppo.train import run
from ppo.update import update
from tests.factories import budget_of, load_base_of, roll_out, rows_of, start, untimed

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8")
NUMBERS = [int(number) for number in re.findall(r"^(\d+)\. ", PAGE.split("## What trl 1.12 did differently")[0], re.M)]
ROW = re.compile(r"^\| (\d+) \| (.+) \| (.+) \|$", re.M)
PLACE = re.compile(r"`([\w/]+\.py): (\w+)`")

MakeRecipe = Callable[..., PpoRecipe]


def names_in(path: Path) -> set[str]:
    """Functions and classes of a file, methods included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_details_are_numbered_without_a_gap_and_each_has_a_row() -> None:
    assert [*range(1, max(NUMBERS) + 1)] == NUMBERS
    assert len(NUMBERS) >= 28
    assert [int(number) for number, _, _ in ROW.findall(PAGE)] == NUMBERS


@pytest.mark.parametrize(("number", "code", "tests"), ROW.findall(PAGE))
def test_the_code_and_the_tests_of_a_detail_are_there(number: str, code: str, tests: str) -> None:
    for cell, folder in ((code, ""), (tests, "tests/")):
        places = PLACE.findall(cell)
        assert places, f"detail {number} names nothing in {cell!r}"
        assert re.sub(r"[,\s]", "", PLACE.sub("", cell)) == "", f"detail {number}: {cell!r} is more than places"
        for file, name in places:
            assert name in names_in(ROOT / folder / file), f"detail {number}: no {name} in {folder}{file}"
            assert not folder or name.startswith("test_")


# --- details that no other file proves


def test_every_prompt_is_used_before_one_comes_again(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("train.episodes=96", "sampling.responses_per_prompt=2")
    data = read_data(recipe)
    count = len(data.prompts)
    drawn = [prompt.ids for batch in batches(data, recipe) for prompt in batch]
    assert drawn[::2] == drawn[1::2], "the responses to a prompt stand together"
    passes = [drawn[::2][first : first + count] for first in range(0, len(drawn) // 2 - count + 1, count)]
    assert len(passes) >= 2, "the test needs two passes"
    assert all(sorted(ids) == sorted(prompt.ids for prompt in data.prompts) for ids in passes)
    assert passes[0] != passes[1]
    assert drawn == [prompt.ids for batch in batches(data, recipe) for prompt in batch]
    other = make_recipe("train.episodes=96", "sampling.responses_per_prompt=2", "seed=5")
    assert drawn != [prompt.ids for batch in batches(data, other) for prompt in batch]


def test_the_temperature_is_in_what_is_drawn_and_in_its_logprob() -> None:
    """Over the whole vocabulary: at temperature 2 shares go as the roots of the probabilities."""
    logits = torch.tensor([0.7, 0.2, 0.09, 0.01]).log().repeat(20_000, 1)
    roots = torch.tensor([0.7, 0.2, 0.09, 0.01]).sqrt()
    expected = roots / roots.sum()
    uniform = torch.rand(len(logits), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens, logprob = draw(logits, temperature=2.0, uniform=uniform)
    torch.testing.assert_close(torch.bincount(tokens, minlength=4) / 20_000, expected, atol=0.011, rtol=0)
    torch.testing.assert_close(logprob, expected.log()[tokens])


def test_a_value_function_starts_as_the_reward_model_and_a_shared_one_at_zero(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    roles = start(recipe)
    episodes = roll_out(roles, recipe).episodes
    with torch.no_grad():
        as_value, as_reward = (token_values(roles, role, episodes) for role in ("value", "reward"))
    assert torch.equal(as_value, as_reward)
    assert as_value.abs().max() > 0
    shared = make_recipe("value.kind=shared")
    assert roll_out(start(shared), shared).values.eq(0).all()


def test_each_role_is_clipped_by_its_own_norm(make_recipe: MakeRecipe) -> None:
    limit = 1e-3
    recipe = make_recipe(f"train.max_grad_norm={limit}")
    roles = start(recipe)
    experience = roll_out(roles, recipe)
    learner, clipped, before = start_learner(roles, recipe), list[list[float]](), list[list[float]]()

    def keep(*_: object) -> None:
        grads = (
            [parameter.grad for parameter in parameters if parameter.grad is not None]
            for parameters in learner.trained.values()
        )
        clipped.append([float(torch.stack([grad.norm() for grad in role_grads]).norm()) for role_grads in grads])

    def accept(norms: object, _: object) -> bool:
        assert isinstance(norms, list | tuple)
        before.append([float(norm) for norm in norms])
        return True

    learner.optimizer.register_step_pre_hook(keep)
    draw = generator(0, "update")
    update(roles, experience, learner, method_of(recipe), draw, accept, budget_of(recipe), kl_weight=0.0)
    assert len(before) == len(clipped) > 0
    assert all(norm > limit for norms in before for norm in norms), "the test needs norms over the limit"
    assert all(norm == pytest.approx(limit, rel=1e-2) for norms in clipped for norm in norms)


def test_the_first_steps_of_the_optimiser_by_hand(make_recipe: MakeRecipe) -> None:
    """AdamW without decay, its first step: rate times g / (|g| + eps), with a third of the rate in a warm-up of two."""
    recipe = make_recipe("train.learning_rate=1e-2", "value.learning_rate=1e-3", "train.warmup_steps=2")
    roles = start(recipe)
    learner = start_learner(roles, recipe)
    for role, rate in (("policy", 1e-2), ("value", 1e-3)):
        for parameter in learner.trained[role]:
            parameter.data.fill_(3.0)
            parameter.grad = torch.full_like(parameter, 1e-5)
        learner.optimizer.step()
        for parameter in learner.trained[role]:
            # g is as large as eps: half of a step, which eps 1e-8 would make a whole one.
            torch.testing.assert_close(parameter.data, torch.full_like(parameter, 3.0 - rate / 3 * 0.5))
            parameter.grad = None


def test_the_policys_warm_up_begins_when_it_begins_to_learn(make_recipe: MakeRecipe) -> None:
    """Two steps of the value function alone are eight optimiser steps; the fall to 0 begins after both warm-ups."""
    sizes = ("train.batch=8", "train.minibatch=4", "train.epochs=2", "train.episodes=32")
    settings = ("value.warmup_steps=2", "train.warmup_steps=3", "train.schedule=linear", "train.learning_rate=1")
    recipe = make_recipe(*sizes, *settings)
    learner = start_learner(start(recipe), recipe)
    rates = []
    for _ in range(recipe.optimizer_steps):
        rates.append([group["lr"] for group in learner.optimizer.param_groups])
        learner.optimizer.step()
        learner.schedule.step()
    policy, value = zip(*rates, strict=True)
    assert policy[8:12] == value[:4] == pytest.approx((0.25, 0.5, 0.75, 1.0))
    assert policy[12:] == pytest.approx((0.8, 0.6, 0.4, 0.2))
    assert value[12] == pytest.approx(1 - 9 / 13)


def test_a_weight_that_adapts_follows_the_logged_kl_and_is_what_the_next_step_pays(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The price of each step as `make_experience` gets it, a restart in the middle included."""
    settings = (
        "kl={weight: 0.5, adaptive: {target: 0.5, horizon: 40}}",
        "train.episodes=32",
        "checkpoint.every_steps=1",
    )
    paid, make_experience = list[float](), rollout.make_experience

    def watched(*arguments: Any, **options: Any) -> Experience:
        if len(paid) == 2 and not interrupted:
            interrupted.append(1)
            raise Interrupted(15)
        paid.append(arguments[3].kl_weight)
        return make_experience(*arguments, **options)

    interrupted = list[int]()
    monkeypatch.setattr(rollout, "make_experience", watched)
    recipe = make_recipe(*settings, "train.learning_rate=1e-2")
    with pytest.raises(Interrupted):
        run(recipe)
    run(recipe)
    rows = rows_of(recipe.out)
    expected = [0.5]
    for row in rows[1:]:
        error = max(-0.2, min(0.2, (row["ppo/kl"] - 0.5) / 0.5))
        expected.append(expected[-1] * (1 + error * 8 / 40))
    assert interrupted and len(paid) == 4
    assert paid == pytest.approx(expected[:-1])
    assert len(set(paid)) == 4
    assert rows[-1]["ppo/next_kl_weight"] == pytest.approx(expected[-1])


def test_recomputed_log_probs_are_weighed_and_decodings_error_is_still_its_own(make_recipe: MakeRecipe) -> None:
    sampled, recomputed = (make_recipe(), make_recipe("train.old_logprobs=recomputed", "train.importance_cap=2"))
    logged = []
    for recipe in (sampled, recomputed):
        run(recipe)
        logged.append(rows_of(recipe.out))
        shutil.rmtree(recipe.out)
    plain, weighed = logged
    assert plain[0]["ppo/decoding_error"] == weighed[0]["ppo/decoding_error"] > 0
    assert not {"ppo/importance", "ppo/sampling_ratio", "ppo/sampling_ratio_max"} & plain[1].keys()
    # Decoding in fp32 is exact to rounding, so the weights are 1 to rounding, and they were there.
    assert weighed[1]["ppo/importance"] == pytest.approx(1.0, abs=1e-3)


def test_the_ratio_of_training_to_decoding_is_of_tokens_and_not_of_padding() -> None:
    episodes = Episodes.of([[5], [6]], [[7, 8], [9]], pad_id=0)
    zeros, each = torch.zeros(2, 2), torch.tensor([[0.3, 0.5], [0.7, 0.0]])
    logprobs, rows = -1 - each, torch.zeros(2)
    experience = Experience(
        episodes=episodes,
        stopped=rows.bool(),
        logprobs=logprobs,
        decoding_logprobs=-1 + zeros,
        importance=None,
        reference_logprobs=zeros,
        kl=zeros,
        scores=rows,
        terms={},
        members={},
        rewards=zeros,
        values=zeros,
        returns=zeros,
        advantages=zeros,
    )
    ratios = {name: value for name, value in train.describe(experience).items() if "ratio" in name}
    mean = (math.exp(-0.3) + math.exp(-0.5) + math.exp(-0.7)) / 3
    assert ratios == pytest.approx({"ppo/sampling_ratio": mean, "ppo/sampling_ratio_max": math.exp(-0.3)})


def test_another_engine_draws_the_responses_and_what_it_is_off_by_is_weighed(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log-probabilities are 0.3 nats too high: each token counts exp(-0.3)."""
    (tmp_path / "server.py").write_text(
        "from dataclasses import replace\n"
        "from onebase.inference.sampling import sample\n\n"
        "def draw(*given, **named):\n"
        "    drawn = sample(*given, **named)\n"
        "    return replace(drawn, logprobs=(drawn.logprobs + 0.3) * drawn.episodes.mask)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    engine = "sampling.engine=server:draw"
    recipe = make_recipe(engine, "train.old_logprobs=recomputed", "train.importance_cap=2", "train.episodes=8")
    run(recipe)
    start, step = rows_of(recipe.out)
    assert start["ppo/decoding_error"] == pytest.approx(0.3, abs=1e-3)
    assert step["ppo/importance"] == pytest.approx(0.7408182, abs=1e-3)
    assert step["ppo/sampling_ratio"] == pytest.approx(0.7408182, abs=1e-3)
    assert step["ppo/sampling_ratio"] <= step["ppo/sampling_ratio_max"] < 0.742
    shutil.rmtree(recipe.out)
    (tmp_path / "broken.py").write_text((tmp_path / "server.py").read_text().replace("+ 0.3", "* float('nan')"))
    with pytest.raises(RuntimeError, match="decoding are not all numbers"):
        run(make_recipe("sampling.engine=broken:draw", "train.old_logprobs=recomputed"))
    with pytest.raises(RecipeError, match=r"sampling\.engine: 'server:nothing' should name a function"):
        run(make_recipe("sampling.engine=server:nothing"))


def test_values_that_an_engine_adds_unasked_are_no_value_function(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unasked.py").write_text(
        "from dataclasses import replace\n"
        "from onebase.inference.sampling import sample\n\n"
        "def plain(*given, **named):\n"
        "    return sample(*given, **named)\n\n"
        "def adding(*given, **named):\n"
        "    drawn = sample(*given, **named)\n"
        "    return replace(drawn, values=drawn.logprobs + 7)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = []
    for engine in ("plain", "adding"):
        recipe = make_recipe(
            f"sampling.engine=unasked:{engine}",
            f"out={tmp_path / engine}",
            *("advantages.kind=rloo", "sampling.responses_per_prompt=4", "train.episodes=8"),
        )
        run(recipe)
        rows += untimed(rows_of(recipe.out)[-1:])
    assert rows[0] == rows[1]


def test_no_role_has_dropout_whatever_its_adapter_was_trained_with(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()
    folder = tmp_path / "adapter"
    shutil.copytree(recipe.parents.sft / "adapter", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_dropout": 0.5}))
    roles = Roles(load_base_of(recipe))
    roles.load("policy", folder).copy("policy", "value")
    assert roles.peft is not None
    dropouts = [module.p for module in roles.peft.modules() if isinstance(module, torch.nn.Dropout)]
    assert all(p == 0.0 for p in dropouts)
    assert all(config.lora_dropout == 0.0 for config in roles.peft.peft_config.values())  # type: ignore[union-attr]  # LoRA
