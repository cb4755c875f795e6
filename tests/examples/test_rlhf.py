"""examples/rlhf.py imports nothing of ours and makes the same adapters and heads as the stages."""

import ast
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

EXAMPLE = Path(__file__).parents[2] / "examples" / "rlhf.py"
MOST_LINES = 450
"""Of the example: it should be read in ten minutes."""
TOLERANCE = 1e-5
"""Between two weights. Reward model and PPO move some weight by more than 50 times as much, as a test below says."""
OFF = 1e-3
"""Share of an adapter's weights that may differ by more; heads have none. Adam divides a gradient by its own size. So
the step of a weight that has next to no gradient is as large as any other, and its sign is rounding. Which weights
these are depends on the CPU. A wrong formula moves more than half of a role's weights."""


def load_example(path: Path = EXAMPLE) -> ModuleType:
    spec = importlib.util.spec_from_file_location("rlhf", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rlhf"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rlhf() -> ModuleType:
    return load_example()


@dataclass(frozen=True, kw_only=True)
class Product:
    """A finished run of the three stages, with its settings and its data in the example's form."""

    folder: Path
    settings: dict[str, Any]
    demonstrations: list[dict[str, Any]]
    rankings: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    prompts: list[dict[str, Any]]

    def adapter(self, stage: str) -> list[Tensor]:
        """The weights that the stage hands on, by name."""
        weights = load_file(self.folder / stage / "adapter" / "adapter_model.safetensors")
        return [weights[name] for name in sorted(weights)]

    def head(self, stage: str) -> list[Tensor]:
        head = load_file(self.folder / stage / "adapter" / "head.safetensors")
        return [head["weight"], head["bias"]]

    def learned(self, stage: str, role: str) -> list[Tensor]:
        """A role's weights by name and its head, from the stage's last checkpoint: the value is handed on to nobody."""
        last = max((self.folder / stage / "checkpoints").glob("step-*"))
        tensors = load_file(last / "tensors.safetensors")
        places = {int(name.rpartition("/")[2]): name for name in tensors if f"/roles/{role}/" in name}
        return [tensors[places[place]] for place in sorted(places)]

    def metrics(self, stage: str, name: str) -> list[float]:
        rows = map(json.loads, (self.folder / stage / "metrics.jsonl").read_text().splitlines())
        return [row[name] for row in rows if name in row]


def run_product(folder: Path, base: Path) -> Product:
    """recipes/smoke on the tiny base, with the changes that its comments give reasons for."""
    import ppo.train
    import reward.train
    import sft.train
    from data.records import Demonstration, Prompt, Ranking
    from data.select.sources import load
    from data.writing import row_of
    from onebase.recipe import reader
    from ppo.recipe.recipe import PpoRecipe
    from reward.recipe import RewardRecipe
    from sft.recipe import SftRecipe

    def overrides(stage: str, *others: str) -> list[str]:
        return [f"base.model={base}", f"out={folder / stage}", "track.wandb=off", *others]

    sft_run, reward_run = f"parents.sft={folder / 'sft'}", f"parents.reward={folder / 'reward'}"
    # Packed rows would make other batches of the demonstrations.
    first = reader.read("recipes/smoke/sft.yaml", SftRecipe, overrides("sft", "trl.packing=false"))
    second = reader.read("recipes/smoke/reward.yaml", RewardRecipe, overrides("reward", sft_run))
    # Two steps of two mini-batches, twice. With this rate ratios and values leave such narrow clips.
    steep = ["train.episodes=16", "train.learning_rate=1e-3", "train.clip=0.05", "value.clip=0.05"]
    third = reader.read("recipes/smoke/ppo.yaml", PpoRecipe, overrides("ppo", sft_run, reward_run, *steep))
    sft.train.run(first)
    reward.train.run(second)
    ppo.train.run(third)
    trl, train = first.trl.arguments(), third.train
    settings = {
        "seed": first.seed,
        "system": first.chat.system,
        "rank": first.adapter.rank,
        "alpha": first.adapter.alpha,
        "max_grad_norm": train.max_grad_norm,
        "sft_learning_rate": trl["learning_rate"],
        "sft_epochs": int(trl["num_train_epochs"]),
        "sft_batch": trl["per_device_train_batch_size"],
        "reward_learning_rate": second.train.learning_rate,
        "reward_epochs": second.train.epochs,
        "reward_batch": second.train.rankings_per_step,
        "ppo_learning_rate": train.learning_rate,
        "ppo_steps": third.steps,
        "ppo_batch": train.batch,
        "ppo_minibatch": train.minibatch,
        "ppo_epochs": train.epochs,
        "max_new_tokens": third.sampling.max_new_tokens,
        "kl_weight": third.kl.weight,
        "eos_penalty": third.reward.eos_penalty,
        "discount": train.discount,
        "gae_lambda": train.gae_lambda,
        "clip": train.clip,
        "value_clip": third.value.clip,
        "value_weight": third.value.weight,
    }

    def rows(sources: Any, kind: Any) -> list[dict[str, Any]]:
        """Through JSON, as a file would hold them."""
        return [json.loads(json.dumps(row_of(record))) for record in load(sources, kind, seed=0).records]

    return Product(
        folder=folder,
        settings=settings,
        demonstrations=rows(first.data, Demonstration),
        rankings=rows(second.data, Ranking),
        held_out=rows(second.evaluation.demonstrations, Demonstration),
        prompts=rows(third.data, Prompt),
    )


@pytest.fixture(scope="module")
def product(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Product:
    return run_product(tmp_path_factory.mktemp("rlhf"), tiny_base_folder)


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return max(float((a.detach() - b.reshape(a.shape)).abs().max()) for a, b in zip(ours, theirs, strict=True))


@dataclass(frozen=True)
class Difference:
    adapter: float
    """Which share of the adapter's weights differs by more than TOLERANCE."""
    head: float
    """The largest difference of a weight of the head; 0 without one."""


def difference(adapter: Sequence[Tensor], head: Sequence[Tensor], product: Sequence[Tensor]) -> Difference:
    """product: the same weights of the product, the adapter's first."""
    pairs = zip(adapter, product[: len(adapter)], strict=True)
    apart = torch.cat([((a.detach() - b).abs() > TOLERANCE).flatten() for a, b in pairs])
    assert len(product) == len(adapter) + len(head)
    largest = largest_difference(head, product[len(adapter) :]) if head else 0.0
    return Difference(adapter=float(apart.float().mean()), head=largest)


def train_example(rlhf: ModuleType, product: Product, base: Path) -> dict[str, Difference]:
    """The example's three stages on the product's data; in what its weights differ from the product's, by role."""
    settings = rlhf.Settings(**product.settings)
    roles = rlhf.Roles(str(base), settings)
    rlhf.train_sft(roles, product.demonstrations, settings)
    rlhf.train_reward(roles, product.rankings, product.held_out, settings)
    rlhf.train_policy(roles, product.prompts, settings)
    theirs = {
        "sft": product.adapter("sft"),
        "reward": [*product.adapter("reward"), *product.head("reward")],
        "policy": product.adapter("ppo"),
        "value": product.learned("ppo", "value"),
    }

    def compare(role: str) -> Difference:
        adapter = list(roles.adapter(role).values())
        return difference(adapter, roles.parameters(role)[len(adapter) :], theirs[role])

    return {role: compare(role) for role in theirs}


def test_the_example_and_the_product_make_the_same_adapters_and_heads(
    rlhf: ModuleType, product: Product, tiny_base_folder: Path
) -> None:
    differences = train_example(rlhf, product, tiny_base_folder)
    print(differences)
    assert max(role.adapter for role in differences.values()) <= OFF, differences
    assert max(role.head for role in differences.values()) <= TOLERANCE, differences


def test_every_part_of_the_losses_counts_in_this_comparison(product: Product) -> None:
    """Else the test above would pass with a wrong clip, penalty or KL."""
    moves = {
        "reward": largest_difference(product.adapter("reward"), product.adapter("sft")),
        "policy": largest_difference(product.adapter("ppo"), product.adapter("sft")),
        "value": largest_difference(
            product.learned("ppo", "value"), [*product.adapter("reward"), *product.head("reward")]
        ),
    }
    assert min(moves.values()) > 50 * TOLERANCE, moves
    assert max(product.metrics("ppo", "ppo/clip_fraction")) > 0.02
    assert max(map(abs, product.metrics("ppo", "ppo/kl"))) > 0.01
    stop_rates = product.metrics("ppo", "ppo/stop_rate")
    assert max(stop_rates) > 0.0 and min(stop_rates) < 1.0  # some responses end by themselves, some are cut


def test_the_command_runs_every_stage_on_files_and_on_the_built_in_data(
    rlhf: ModuleType,
    tiny_base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("demonstrations", "rankings", "prompts")
    for name, rows in zip(names, rlhf.built_in_data(), strict=True):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    printed = []
    for data in ([], ["--data", str(tmp_path)]):
        monkeypatch.setattr(sys, "argv", ["rlhf.py", "--model", str(tiny_base_folder), *data])
        rlhf.main()
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert all(f"{stage:7} step" in printed[0] for stage in ("sft", "reward", "ppo"))


def test_the_example_is_short_and_needs_torch_transformers_and_peft_alone() -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or ".")
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == {"torch", "transformers", "peft"}
