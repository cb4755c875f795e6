"""SFT, reward and PPO with adapters on the upper half of the layers, on a tiny model of five layers."""

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from onebase.inference.scoring import logprobs, score
from onebase.model import base as bases
from onebase.model.roles import HEAD, WEIGHTS, Roles
from onebase.recipe import reader
from onebase.run.interruption import Interrupted
from onebase.seeding import generator
from ppo import train
from ppo.recipe.recipe import PpoRecipe
from ppo.rollout import Rollout, collect, require_zero_kl
from ppo.start import read_data, read_parents, start_roles

MakeRecipe = Callable[..., PpoRecipe]


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory, deep_base_folder: Path) -> Path:
    """Finished SFT and reward stages: SFT's recipe says where the adapters sit, and the reward stage inherits it."""
    from reward.recipe import RewardRecipe
    from reward.train import run as train_reward
    from sft.recipe import SftRecipe
    from sft.train import run as train_sft

    home = tmp_path_factory.mktemp("top-half")
    given = [f"base.model={deep_base_folder}", "track.wandb=off"]
    train_sft(
        reader.read("recipes/smoke/sft.yaml", SftRecipe, [*given, f"out={home / 'sft'}", "adapter.layers=top-half"])
    )
    more = [f"parents.sft={home / 'sft'}", f"out={home / 'reward'}"]
    train_reward(reader.read("recipes/smoke/reward.yaml", RewardRecipe, [*given, *more]))
    return home


@pytest.fixture
def make_recipe(parents: Path, deep_base_folder: Path, tmp_path: Path) -> MakeRecipe:
    def make(out: str, *overrides: str) -> PpoRecipe:
        given = [f"base.model={deep_base_folder}", "track.wandb=off", f"out={tmp_path / out}"]
        given += [f"parents.{name}={parents / name}" for name in ("sft", "reward")]
        return reader.read("recipes/smoke/ppo.yaml", PpoRecipe, [*given, *overrides])

    return make


def start(recipe: PpoRecipe) -> Roles:
    base = bases.load(recipe.base, recipe.chat, device=torch.device("cpu"))
    return start_roles(base, read_parents(recipe), recipe)


def roll_out(roles: Roles, recipe: PpoRecipe) -> Rollout:
    return collect(roles, [one.ids for one in read_data(recipe).prompts[:8]], recipe, generator(0, "test"))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "time/" not in k and k != "memory/peak"} for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / WEIGHTS)


def test_a_run_learns_the_upper_half_and_nothing_else(make_recipe: MakeRecipe, parents: Path) -> None:
    recipe = make_recipe("ppo", "train.learning_rate=1e-3")
    train.run(recipe)
    start = weights(parents / "sft")
    for folder in (parents / "sft", parents / "reward", recipe.out):
        found = weights(folder)
        assert {int(re.findall(r"\.layers\.(\d+)\.", name)[0]) for name in found} == {2, 3, 4}
        assert found.keys() == start.keys()
        assert folder == parents / "sft" or any(not torch.equal(found[name], start[name]) for name in found)
    rows = rows_of(recipe.out)
    assert rows[0]["ppo/decoding_error"] < 1e-4
    assert rows[-1]["ppo/kl"] != 0.0 != rows[-1]["ppo/grad_norm/value"]


def test_the_lower_half_sees_the_episodes_of_a_step_once(make_recipe: MakeRecipe) -> None:
    """And the upper one in each of the four passes over them: reference, reward, and the two roles that learn."""
    recipe = make_recipe("ppo", "train.episodes=8", "train.minibatch=8", "train.inner_epochs=1")
    calls: list[tuple[int, int]] = []
    kept: list[int] = []
    add_to = Roles.keep_lower

    def count(index: int, layer: Any, given: tuple[torch.Tensor, ...]) -> None:
        calls.append((index, given[0].shape[1]))

    def keep(roles: Roles, sequences: Any, *, tokens: int) -> None:
        """From here on, after decoding, each forward is counted by its layer."""
        add_to(roles, sequences, tokens=tokens)
        assert roles.lower is not None and roles.stack is not None
        kept.append(len(roles.lower.states))
        for index, layer in enumerate(roles.stack.layers):
            layer.register_forward_pre_hook(functools.partial(count, index))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Roles, "keep_lower", keep)
        patch.setattr(train, "require_zero_kl", lambda *_: 0.0)
        train.run(recipe)
    assert len(kept) == 1
    assert {index for index, _ in calls} == {2, 3, 4}
    assert sum(tokens for index, tokens in calls if index == 2) == 4 * kept[0]


def test_kl_is_zero_before_the_first_update_to_the_bit(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("ppo")
    roles = start(recipe)
    with roles.shared_lower():
        rollout = roll_out(roles, recipe)
        assert roles.lower is not None
        assert require_zero_kl(roles, rollout, recipe) < 1e-4


def test_what_ppo_says_of_its_episodes_is_what_stand_alone_functions_say(
    make_recipe: MakeRecipe, parents: Path
) -> None:
    recipe = make_recipe("ppo")
    roles = start(recipe)
    with roles.shared_lower():
        rollout = roll_out(roles, recipe)
    alone = Roles(bases.load(recipe.base, recipe.chat, device=torch.device("cpu")))
    alone.load("reward", parents / "reward" / "adapter").load("reference", parents / "sft" / "adapter")
    scores = score(alone, "reward", rollout.episodes.sequences, tokens_per_microbatch=1)
    said = logprobs(alone, "reference", rollout.episodes, temperature=1.0, tokens_per_microbatch=1)
    torch.testing.assert_close(rollout.scores, scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(rollout.reference, said, atol=1e-4, rtol=0)
    assert (parents / "reward" / "adapter" / HEAD).is_file()


def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("train.learning_rate=1e-3", "checkpoint.every_steps=1")
    whole, cut = make_recipe("whole", *given), make_recipe("cut", *given)
    train.run(whole)
    compute_targets, calls = train.compute_targets, list[int]()

    def stopped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise Interrupted(15)
        return compute_targets(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(train, "compute_targets", stopped)
        with pytest.raises(Interrupted):
            train.run(cut)
    train.run(cut)
    before, after = weights(whole.out), weights(cut.out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert rows_of(whole.out) == rows_of(cut.out)


def test_evaluation_inside_the_run_changes_no_bit_of_it(make_recipe: MakeRecipe) -> None:
    """With all that reads other sequences than the episodes, which take whole forwards: texts and held-out prompts."""
    held_out = "{source: builtin:tasks, split: heldout, rows: 4}"
    texts = "pretraining={data: [{source: builtin:tasks, split: sft, rows: 4}], weight: 0.5, examples_per_episode: 0.5}"
    given = ["value.kind=shared", "train.activation_checkpointing=true", "train.episodes=16", texts]
    plain, evaluated = (
        make_recipe("plain", *given),
        make_recipe(
            "evaluated",
            *given,
            "ema={decay: 0.9}",
            (f"evaluation={{prompts: [{held_out}], texts: [{held_out}], text_tokens: 200, every: 1, kl_budget: 1000}}"),
        ),
    )
    train.run(plain)
    train.run(evaluated)
    before, after = weights(plain.out), weights(evaluated.out)
    assert all(torch.equal(before[name], after[name]) for name in before)
    first = next(row for row in rows_of(evaluated.out) if "ppo/eval/kl" in row)
    assert first["ppo/eval/kl"] == 0.0
