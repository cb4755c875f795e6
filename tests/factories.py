"""What tests build alike: the roles of PPO, a rollout, the rows of a run. `make_recipe` is a fixture of conftest."""

import json
from pathlib import Path
from typing import Any

import torch

from onebase.memory import Budget
from onebase.model import base as bases
from onebase.model.base import Base
from onebase.model.roles import Roles
from onebase.seeding import generator
from ppo.method import method_of
from ppo.recipe.recipe import PpoRecipe
from ppo.rollout import Experience, PpoState, collect
from ppo.scores import PromptBatch
from ppo.start import read_data, read_parents, start_roles


def load_base_of(recipe: Any) -> Base:
    """The base of a recipe of any stage, on the CPU."""
    return bases.load(recipe.base, recipe.chat, device=torch.device("cpu"))


def start(recipe: PpoRecipe) -> Roles:
    """The roles of PPO as a run starts with them."""
    return start_roles(load_base_of(recipe), read_parents(recipe), recipe)


def budget_of(recipe: PpoRecipe) -> Budget:
    return Budget(tokens=recipe.train.tokens_per_microbatch, episodes=recipe.sampling.batch)


def roll_out(roles: Roles, recipe: PpoRecipe) -> Experience:
    """Responses of the policy to the first eight prompts of the recipe."""
    data = read_data(recipe)
    batch, state = PromptBatch(chat=data.chat, prompts=data.prompts[:8]), PpoState(kl_weight=recipe.kl.weight)
    return collect(roles, batch, method_of(recipe), generator(0, "test"), budget_of(recipe), state)[0]


def rows_of(folder: Path, name: str = "metrics") -> list[dict[str, Any]]:
    """The rows that a stage wrote into its `<name>.jsonl`."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without what a clock or the memory says, which differs from run to run."""
    return [{key: value for key, value in row.items() if "time/" not in key and "memory/" not in key} for row in rows]
