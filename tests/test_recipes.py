"""Every shipped recipe is read, and says the same where stages must agree."""

from pathlib import Path
from typing import Any

import pytest

from evaluation.compare.recipe import CompareRecipe
from onebase.recipe import reader
from pipeline import chain, stages

FOLDERS = sorted(path for path in Path("recipes").iterdir() if path.is_dir())
FILES = sorted(Path("recipes").rglob("*.yaml"))


def stages_of(folder: Path) -> tuple[str, ...]:
    """Those that a run has; where a function scores there is no reward model, and nothing for DPO to learn from. DPO is
    one of the demo's rivals (tests/benchmarks/test_demo_rivals.py)."""
    shorter = {"verifiable": ("sft", "ppo"), "demo": ("sft", "reward", "ppo")}
    return shorter.get(folder.name, stages.ORDER)


def recipe_class(path: Path) -> Any:
    return CompareRecipe if path.stem == chain.COMPARE else stages.loader(chain.stage_of(path.stem))()[0]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_shipped_recipe_is_valid_and_survives_being_written_and_read(path: Path, tmp_path: Path) -> None:
    recipe = reader.read(path, recipe_class(path))
    (tmp_path / path.name).write_text(reader.dump(recipe))
    assert reader.read(tmp_path / path.name, recipe_class(path)) == recipe


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_the_recipes_of_a_folder_agree_on_base_and_chat_and_find_each_other(folder: Path) -> None:
    recipes = {path.stem: reader.read(path, recipe_class(path)) for path in folder.glob("*.yaml")}
    assert {*stages_of(folder), chain.COMPARE} <= set(recipes)
    assert len({reader.dump(recipe.base) for recipe in recipes.values()}) == 1
    assert len({reader.dump(recipe.chat) for recipe in recipes.values()}) == 1
    for name, recipe in recipes.items():
        for parent, path in (recipe.parents.model_dump() if "parents" in type(recipe).model_fields else {}).items():
            assert path is None or path == recipes[parent].out
        assert recipe.out.name == (folder.name if name == chain.COMPARE else name)


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_a_run_of_the_folder_can_be_planned(folder: Path, tmp_path: Path) -> None:
    steps = chain.plan(folder, [f"runs_dir={tmp_path}", "name=trial", "ppo.seed=3"])
    assert [step.name for step in steps if "-" not in step.name] == [*stages_of(folder), chain.COMPARE]
    assert {step.name for step in steps} == {path.stem for path in folder.glob("*.yaml")}
    ppo = next(step for step in steps if step.name == "ppo")
    parents = [stage for stage in stages.PARENTS["ppo"] if stage in stages_of(folder)]
    assert {*(f"parents.{stage}={tmp_path}/trial/{stage}" for stage in parents), "seed=3"} <= set(ppo.overrides)
    assert f"out={tmp_path}/trial/ppo" in ppo.overrides


def test_every_key_of_a_recipe_is_read_somewhere() -> None:
    """A setting that nothing reads is a promise that is not kept."""
    from dpo.recipe import DpoRecipe
    from ppo.recipe.recipe import PpoRecipe
    from reward.recipe import READS, RewardRecipe
    from sft.recipe import SftRecipe

    packages = ("onebase", "data", "evaluation", "sft", "reward", "ppo", "dpo", "pipeline")
    code = "\n".join(
        path.read_text()
        for package in packages
        for path in Path(package).rglob("*.py")
        if not path.name.endswith("recipe.py")
    )
    code += "".join(f".{key}" for keys in READS.values() for key in keys)  # by which a loss gets its numbers
    unread = []
    for top in (SftRecipe, RewardRecipe, PpoRecipe, DpoRecipe, CompareRecipe):
        for section in sections(top):
            unread += [f"{section.__name__}.{key}" for key in section.model_fields if f".{key}" not in code]
    assert not unread


def sections(top: Any) -> list[Any]:
    from onebase.recipe.reader import _section_in
    from onebase.recipe.sections import Section
    from onebase.trl.arguments import TrlSection

    sections_below = [top]
    for field in top.model_fields.values():
        inner = _section_in(field.annotation)
        if inner is not None and issubclass(inner, Section) and not issubclass(inner, TrlSection):
            sections_below += sections(inner)
    return sections_below
