"""A run: all stages of a recipe folder in order, each in a process of its own, then the comparison.

Every recipe is read and checked before the first stage starts: a typo in the last recipe is found in the first second.
Parents and folders are filled in: each stage reads what this run wrote.

A folder may hold variants of a stage. `ppo-rloo.yaml` beside `ppo.yaml` is a PPO stage too: it reads the same parents,
writes to `ppo-rloo/` and is compared under that name.
"""

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from onebase.cli.command import say
from onebase.errors import RecipeError
from onebase.files.paths import expanded
from onebase.recipe import reader
from onebase.recipe.sections import Section
from onebase.run import folders
from pipeline import stages

COMPARE = "compare"
RUN_KEYS = ("name", "runs_dir")
COMPARED = ("ppo", "dpo")
"""Stages with a policy that is compared with that of SFT."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One process of a run."""

    stage: str
    name: str
    """Of the recipe's file and of its folder: the stage, and the variant after a dash."""
    recipe: Path
    overrides: tuple[str, ...]
    out: Path


def plan(folder: Path, overrides: Sequence[str]) -> list[Step]:
    """The steps of a run, every recipe checked; RecipeError if one is wrong.

    overrides: `name=` and `runs_dir=` of the run itself, all others with their stage first (ppo.train.clip=0.1).
    """
    present = [name for stage in stages.ORDER for name in _recipes_of(folder, stage)]
    if not present:
        known = ", ".join(f"{stage}.yaml" for stage in stages.ORDER)
        raise RecipeError(f"{folder}: expected a folder with recipes ({known}), found none.")
    of_run, by_name = _sort_overrides(overrides, [*present, COMPARE])
    run_name = of_run.get("name", folder.resolve().name)
    home = expanded(of_run.get("runs_dir", "runs")) / expanded(run_name)
    steps = []
    for name in present:
        stage = stage_of(name)
        fixed = _fixed_parents(folder / f"{name}.yaml", stage, by_name[name])
        parents = [parent for parent in stages.PARENTS[stage] if parent in present and parent not in fixed]
        filled = [f"out={home / name}", *(f"parents.{parent}={home / parent}" for parent in parents)]
        steps.append(_step(name, folder, home / name, [*by_name[name], *filled, f"track.group={run_name}"]))
    if (folder / f"{COMPARE}.yaml").is_file():
        kinds = {name: "parents" if name in stages.ORDER else "policies" for name in present}
        filled = [f"{kinds[name]}.{name}={home / name}" for name in present if _is_compared(name)]
        # A stage that this run does not train is not compared: the path in the recipe is that of another run.
        absent = [f"parents.{stage}=" for stage in COMPARED if stage not in present]
        if "sft" in present and not any(stage_of(name) == "reward" for name in present):
            # A reward model of another run descends from another SFT stage.
            absent.append("parents.reward=")
        filled = [override for override in filled if override.partition("=")[0] not in _keys(by_name[COMPARE])]
        filled = [f"out={home}", *filled, f"track.group={run_name}"]
        steps.append(_step(COMPARE, folder, home, [*absent, *by_name[COMPARE], *filled]))
    return steps


def stage_of(name: str) -> str:
    """The stage in the name of a recipe: the part before a dash."""
    return name.partition("-")[0]


def _recipes_of(folder: Path, stage: str) -> list[str]:
    """Names of a stage's recipes in the folder: the stage's own first, then its variants in alphabetical order."""
    variants = sorted(path.stem for path in folder.glob(f"{stage}-*.yaml"))
    odd = next((name for name in variants if not re.fullmatch(r"[\w-]+", name)), None)
    if odd is not None:
        raise RecipeError(
            f"{folder / odd}.yaml: a variant's name consists of letters, digits, _ and -, found '{odd}'. Rename it."
        )
    return ([stage] if (folder / f"{stage}.yaml").is_file() else []) + variants


def _is_compared(name: str) -> bool:
    """The run's reward model scores the responses. Variants of it have no part in the comparison."""
    return name == "reward" or stage_of(name) != "reward"


def _fixed_parents(path: Path, stage: str, overrides: Sequence[str]) -> set[str]:
    """Parents that are not filled in: those on the command line; ensembles, because one stage of this run cannot
    replace them; and those that the recipe sets to null, such as the reward model of PPO with reward functions."""
    overridden = {key.removeprefix("parents.") for key in _keys(overrides) if key.startswith("parents.")}
    try:
        recipe = reader.read(path, _recipe_class(stage), overrides).model_dump(mode="json")
    except RecipeError:  # raised again when the step is read with its parents filled in
        return overridden
    parents = recipe.get("parents", {})
    return overridden | {name for name, path in parents.items() if path is None or isinstance(path, list)}


def _keys(overrides: Sequence[str]) -> set[str]:
    return {override.partition("=")[0] for override in overrides}


def _step(name: str, folder: Path, out: Path, overrides: Sequence[str]) -> Step:
    path, stage = folder / f"{name}.yaml", stage_of(name)
    reader.read(path, _recipe_class(stage), overrides)
    return Step(stage=stage, name=name, recipe=path, overrides=tuple(overrides), out=out)


def _sort_overrides(overrides: Sequence[str], known: Sequence[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    of_run: dict[str, str] = {}
    by_name: dict[str, list[str]] = {name: [] for name in known}
    for override in overrides:
        key, separator, value = override.partition("=")
        name, dot, rest = key.partition(".")
        if separator and key in RUN_KEYS:
            if not value:
                raise RecipeError(f"override '{override}': has no value. Give one, or leave it out.")
            of_run[key] = value
        elif separator and dot and name in by_name:
            by_name[name].append(f"{rest}={value}")
        else:
            raise RecipeError(
                f"override '{override}': expected {' or '.join(RUN_KEYS)}, or a stage first, such as "
                f"{known[0]}.{key if separator else 'seed'}={value or 1}. Stages here: {', '.join(known)}."
            )
    return of_run, by_name


def run(folder: Path, overrides: Sequence[str], *, restart: bool) -> int:
    """Run the steps; the exit code of the first that fails, else 0. A finished stage is verified and not run again."""
    steps = plan(folder, overrides)
    require_folders(steps)
    return carry_out(steps, restart=restart)


def require_folders(steps: Sequence[Step]) -> None:
    """InputError if a step cannot write to its folder. All are checked before the first step starts."""
    for step in steps:
        (folders.require_run if step.stage == COMPARE else partial(folders.require_own, stage=step.stage))(step.out)


def carry_out(steps: Sequence[Step], *, restart: bool) -> int:
    """`run`, after `require_folders`."""
    for number, step in enumerate(steps, start=1):
        say(f"[{number}/{len(steps)}] {step.name}: {step.recipe} -> {step.out}")
        command = [sys.executable, "-m", "pipeline", step.stage, str(step.recipe), *step.overrides]
        if restart and step.stage != COMPARE:
            command.append("--restart")
        code = _run_child(command)
        if code:
            again = f"{'Fix that and run' if code in (1, 2) else 'Run'} the same command again"
            again += f"{' without --restart' if restart else ''}: it resumes at {step.name}."
            say(f"{step.name} ended with exit code {code}; nothing after it was run. {again}")
            return code if code > 0 else 128 - code
    return 0


def _run_child(command: Sequence[str]) -> int:
    """Run a stage and wait for it. It answers signals itself, by writing a checkpoint."""
    child = subprocess.Popen(command)
    # Ctrl-C reaches the child from the terminal. A SIGTERM reaches this process alone, so it is passed on. So is a
    # SIGHUP: a second one does no harm to a child that the terminal has sent one. Under `nohup` both ignore it.
    passed_on = [signal.SIGTERM, *([signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else [])]
    before = {number: signal.signal(number, lambda number, _: child.send_signal(number)) for number in passed_on}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _recipe_class(stage: str) -> type[Section]:
    if stage != COMPARE:
        return stages.loader(stage)().recipe
    from evaluation.compare.recipe import CompareRecipe

    return CompareRecipe
