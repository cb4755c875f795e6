"""A run: all stages of a recipe folder in order, each in a process of its own, then the comparison.

Every recipe is read and checked before the first stage starts, so that a typo in the last one does not cost the hours
of the others. Parents and folders are filled in: what a stage reads is what this run wrote.

A folder may hold variants of a stage: `ppo-rloo.yaml` beside `ppo.yaml` is a PPO stage too, reads what that one reads,
is written to `ppo-rloo/` and compared under that name.
"""

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from onebase.cli.command import Loader, say
from onebase.errors import RecipeError
from onebase.files.paths import expanded
from onebase.recipe import recipes
from onebase.recipe.recipes import Section
from onebase.run import folders
from pipeline import stages

COMPARE = "compare"
RUN_KEYS = ("name", "runs_dir")
COMPARED = ("ppo", "dpo")
"""Stages whose policy is compared with that of SFT."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One process of a run."""

    stage: str
    name: str
    """Of the recipe's file and of the folder it writes to: the stage, and behind a dash the variant."""
    recipe: Path
    overrides: tuple[str, ...]
    out: Path


def plan(folder: Path, overrides: Sequence[str]) -> list[Step]:
    """The steps of a run, every recipe checked; RecipeError where one is wrong.

    overrides: `name=` and `runs_dir=` of the run itself, all others with their stage first (ppo.train.clip=0.1).
    """
    present = [name for stage in stages.ORDER for name in _recipes_of(folder, stage)]
    if not present:
        known = ", ".join(f"{stage}.yaml" for stage in stages.ORDER)
        raise RecipeError(f"{folder}: expected a folder with recipes ({known}), found none of them.")
    own, by_name = _sort_overrides(overrides, [*present, COMPARE])
    run_name = own.get("name") or folder.resolve().name
    home = expanded(own.get("runs_dir", "runs")) / expanded(run_name)
    steps = []
    for name in present:
        stage = stage_of(name)
        settled = _settled_parents(folder / f"{name}.yaml", stage, by_name[name])
        parents = [parent for parent in stages.PARENTS[stage] if parent in present and parent not in settled]
        filled = [f"out={home / name}", *(f"parents.{parent}={home / parent}" for parent in parents)]
        steps.append(_step(name, folder, home / name, [*by_name[name], *filled, f"track.group={run_name}"]))
    if (folder / f"{COMPARE}.yaml").is_file():
        kinds = {name: "parents" if name in stages.ORDER else "policies" for name in present}
        filled = [f"{kinds[name]}.{name}={home / name}" for name in present if _is_compared(name)]
        # What this run does not train is not compared: the recipe's own path would be that of another run.
        absent = [f"parents.{stage}=" for stage in COMPARED if stage not in present]
        if "sft" in present and not any(stage_of(name) == "reward" for name in present):
            # A reward model of another run comes from another SFT stage than this one.
            absent.append("parents.reward=")
        filled = [one for one in filled if one.partition("=")[0] not in _keys(by_name[COMPARE])]
        filled = [f"out={home}", *filled, f"track.group={run_name}"]
        steps.append(_step(COMPARE, folder, home, [*absent, *by_name[COMPARE], *filled]))
    return steps


def stage_of(name: str) -> str:
    """The stage of a recipe's name: what stands before a dash."""
    return name.partition("-")[0]


def _recipes_of(folder: Path, stage: str) -> list[str]:
    """A stage's recipes in the folder, by name: its own first, then its variants by the alphabet."""
    own = [stage] if (folder / f"{stage}.yaml").is_file() else []
    variants = sorted(path.stem for path in folder.glob(f"{stage}-*.yaml"))
    odd = next((name for name in variants if not re.fullmatch(r"[\w-]+", name)), None)
    if odd is not None:
        raise RecipeError(
            f"{folder / odd}.yaml: the name of a variant is made of letters, digits, _ and -, found '{odd}'. Rename it."
        )
    return own + variants


def _is_compared(name: str) -> bool:
    """The run's own reward model scores; variants of it do nothing in the comparison."""
    return name == "reward" or stage_of(name) != "reward"


def _settled_parents(path: Path, stage: str, overrides: Sequence[str]) -> set[str]:
    """Parents that stay as they are: those given on the command line; ensembles, for which one stage of this run could
    not stand in; and those that the recipe does without, such as a PPO whose rewards are functions."""
    given = {key.removeprefix("parents.") for key in _keys(overrides) if key.startswith("parents.")}
    try:
        recipe = recipes.read(path, _load(stage)()[0], overrides).model_dump(mode="json")
    except RecipeError:  # said when the step is read with its parents filled in
        return given
    return given | {name for name, one in recipe.get("parents", {}).items() if one is None or isinstance(one, list)}


def _keys(overrides: Sequence[str]) -> set[str]:
    return {override.partition("=")[0] for override in overrides}


def _step(name: str, folder: Path, out: Path, overrides: Sequence[str]) -> Step:
    path, stage = folder / f"{name}.yaml", stage_of(name)
    recipe_class = _load(stage)()[0]
    recipes.read(path, recipe_class, overrides)
    return Step(stage=stage, name=name, recipe=path, overrides=tuple(overrides), out=out)


def _sort_overrides(overrides: Sequence[str], known: Sequence[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    own: dict[str, str] = {}
    by_name: dict[str, list[str]] = {name: [] for name in known}
    for override in overrides:
        key, separator, value = override.partition("=")
        name, dot, rest = key.partition(".")
        if separator and key in RUN_KEYS:
            own[key] = value
        elif separator and dot and name in by_name:
            by_name[name].append(f"{rest}={value}")
        else:
            raise RecipeError(
                f"override '{override}': expected {' or '.join(RUN_KEYS)}, or a stage first, such as "
                f"{known[0]}.{key if separator else 'seed'}={value or 1}. Stages here: {', '.join(known)}."
            )
    return own, by_name


def run(folder: Path, overrides: Sequence[str], *, restart: bool) -> int:
    """Run the steps; the exit code of the first that fails, else 0. A finished, verified stage is not run again."""
    steps = plan(folder, overrides)
    require_folders(steps)
    return carry_out(steps, restart=restart)


def require_folders(steps: Sequence[Step]) -> None:
    """InputError where a step could not write: the last one's folder must not cost the hours of the others."""
    for step in steps:
        (folders.require_run if step.stage == COMPARE else partial(folders.require_own, stage=step.stage))(step.out)


def carry_out(steps: Sequence[Step], *, restart: bool) -> int:
    """`run`, of steps whose folders are known to be free or theirs."""
    for number, step in enumerate(steps, start=1):
        say(f"[{number}/{len(steps)}] {step.name}: {step.recipe} -> {step.out}")
        command = [sys.executable, "-m", "pipeline", step.stage, str(step.recipe), *step.overrides]
        if restart and step.stage != COMPARE:
            command.append("--restart")
        code = _run_child(command)
        if code:
            command_again = f"the same command{' without --restart' if restart else ''}"
            begins = f"Mend that; {command_again}" if code in (1, 2) else command_again.capitalize()
            say(f"{step.name} ended with exit code {code}; nothing after it was run. {begins} begins with {step.name}.")
            return code if code > 0 else 128 - code
    return 0


def _run_child(command: Sequence[str]) -> int:
    """Run a stage and let it end in its own time: a signal to us is the child's to answer, with a checkpoint."""
    child = subprocess.Popen(command)
    # Ctrl-C reaches the child from the terminal by itself; a SIGTERM only reaches us, so it is handed on.
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: child.terminate()),
        **_hang_up(child),
    }
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hang_up(child: subprocess.Popen[bytes]) -> dict[signal.Signals, Any]:
    """SIGHUP, handed on as well: a child that has had it from the terminal is not hurt by a second one. Under `nohup`
    neither hears it."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return {}
    return {signal.SIGHUP: signal.signal(signal.SIGHUP, lambda *_: child.send_signal(signal.SIGHUP))}


def _load(stage: str) -> Loader:
    if stage != COMPARE:
        return stages.loader(stage)

    def load() -> tuple[type[Section], object]:
        from evaluation.compare.compare import run
        from evaluation.compare.recipe import CompareRecipe

        return CompareRecipe, run

    return load  # type: ignore[return-value]  # the comparison returns a summary, not a record
