"""examples/rlhf.py, which imports nothing of ours, makes the adapters and heads that the stages make."""

import ast
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "rlhf.py"
LONGEST = 450
"""Lines of the example: it should be read in ten minutes."""
TOLERANCE = 1e-5
"""Between two weights. A stage moves them by at least a hundred times as much."""


@pytest.fixture(scope="module")
def rlhf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rlhf", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rlhf"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True, kw_only=True)
class Product:
    """The three stages of recipes/smoke, as the product runs them, and what the example needs to do the same."""

    folder: Path
    settings: dict[str, Any]
    demonstrations: list[dict[str, Any]]
    rankings: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    prompts: list[dict[str, Any]]

    def adapter(self, stage: str) -> dict[str, Tensor]:
        return load_file(self.folder / stage / "adapter" / "adapter_model.safetensors")

    def checkpoint(self, stage: str, role: str) -> list[Tensor]:
        """A role's weights by name, then its head, as the stage's last checkpoint has them."""
        last = max((self.folder / stage / "checkpoints").glob("step-*"))
        tensors = load_file(last / "tensors.safetensors")
        names = [name for name in tensors if f"/roles/{role}/" in name]
        return [tensors[name] for name in sorted(names, key=lambda name: int(name.rpartition("/")[2]))]


@pytest.fixture(scope="module")
def product(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Product:
    import ppo.train
    import reward.train
    import sft.train
    from data.records import Demonstration, Prompt, Ranking
    from data.select.sources import load
    from data.writing import row_of
    from onebase.recipe import recipes
    from ppo.recipe.recipe import PpoRecipe
    from reward.recipe import RewardRecipe
    from sft.recipe import SftRecipe

    folder = tmp_path_factory.mktemp("rlhf")

    def overrides(stage: str, *given: str) -> list[str]:
        return [f"base.model={tiny_base_folder}", f"out={folder / stage}", "track.wandb=off", *given]

    parents = [f"parents.sft={folder / 'sft'}"]
    # Each demonstration in a row of its own: packed rows make other batches.
    teach = recipes.read("recipes/smoke/sft.yaml", SftRecipe, overrides("sft", "trl.packing=false"))
    rank = recipes.read("recipes/smoke/reward.yaml", RewardRecipe, overrides("reward", *parents))
    # A large learning rate and narrow clips: ratios and values leave them, so that both sides of each loss count.
    strong = ["train.learning_rate=1e-3", "train.clip=0.05", "value.clip=0.05", "train.episodes=16"]
    improve = recipes.read(
        "recipes/smoke/ppo.yaml", PpoRecipe, overrides("ppo", *parents, f"parents.reward={folder / 'reward'}", *strong)
    )
    sft.train.run(teach)
    reward.train.run(rank)
    ppo.train.run(improve)
    tuned, train = teach.trl.arguments(), improve.train
    settings = {
        "seed": teach.seed,
        "system": teach.chat.system,
        "rank": teach.adapter.rank,
        "alpha": teach.adapter.alpha,
        "sft_learning_rate": tuned["learning_rate"],
        "sft_epochs": int(tuned["num_train_epochs"]),
        "sft_batch": tuned["per_device_train_batch_size"],
        "reward_learning_rate": rank.train.learning_rate,
        "reward_epochs": rank.train.epochs,
        "reward_batch": rank.train.rankings_per_step,
        "ppo_learning_rate": train.learning_rate,
        "ppo_steps": improve.steps,
        "ppo_batch": train.batch,
        "ppo_minibatch": train.minibatch,
        "ppo_epochs": train.inner_epochs,
        "max_new_tokens": improve.sampling.max_new_tokens,
        "kl_weight": improve.kl.weight,
        "eos_penalty": improve.reward.eos_penalty,
        "discount": train.discount,
        "gae_lambda": train.trace,
        "clip": train.clip,
        "value_clip": improve.value.clip,
        "value_weight": improve.value.weight,
        "max_grad_norm": train.max_grad_norm,
    }

    def rows(sources: Any, kind: Any) -> list[dict[str, Any]]:
        return [row_of(record) for record in load(sources, kind, seed=0).records]

    return Product(
        folder=folder,
        settings=settings,
        demonstrations=rows(teach.data, Demonstration),
        rankings=rows(rank.data, Ranking),
        held_out=rows(rank.evaluation.demonstrations, Demonstration),
        prompts=rows(improve.data, Prompt),
    )


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return max(float((a.detach() - b.reshape(a.shape)).abs().max()) for a, b in zip(ours, theirs, strict=True))


def adapter_of(roles: Any, role: str) -> dict[str, Tensor]:
    """The example's weights under the names that they have in the product's file."""
    return {name.replace(f".{role}.", "."): weight.detach() for name, weight in roles.adapter(role).items()}


def require_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], what: str) -> None:
    assert ours.keys() == theirs.keys()
    names = sorted(ours)
    difference = largest_difference([ours[name] for name in names], [theirs[name] for name in names])
    print(f"{what}: {difference:.2g}")
    assert difference <= TOLERANCE, what


def test_the_example_makes_the_adapters_of_every_stage(
    rlhf: ModuleType, product: Product, tiny_base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = rlhf.Settings(**product.settings)
    roles = rlhf.Roles(str(tiny_base_folder), settings)

    rlhf.train_sft(roles, product.demonstrations, settings)
    require_same(adapter_of(roles, "sft"), product.adapter("sft"), "sft")

    rlhf.train_reward(roles, product.rankings, product.held_out, settings)
    require_same(adapter_of(roles, "reward"), product.adapter("reward"), "reward")
    head = load_file(product.folder / "reward" / "adapter" / "head.safetensors")
    assert largest_difference([*roles.heads["reward"].parameters()], [head["weight"], head["bias"]]) <= TOLERANCE

    rlhf.train_policy(roles, product.prompts, settings)
    require_same(adapter_of(roles, "policy"), product.adapter("ppo"), "policy")
    value = largest_difference(roles.parameters("value"), product.checkpoint("ppo", "value"))
    print(f"value: {value:.2g}")
    assert value <= TOLERANCE


def test_the_command_line_runs_every_stage_on_the_built_in_data(
    rlhf: ModuleType, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rlhf.py", "--model", str(tiny_base_folder)])
    rlhf.main()
    printed = capsys.readouterr().out
    assert all(f"{stage:7} step" in printed for stage in ("sft", "reward", "ppo"))


def test_a_stranger_can_read_it_in_ten_minutes_and_run_it_without_us() -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= LONGEST
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "." for node in imports if isinstance(node, ast.ImportFrom)}
    foreign = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert foreign == {"torch", "transformers", "peft"}
