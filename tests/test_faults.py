"""A cut of `make faults`: stages that are struck go on to the bits of an undisturbed run."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load(name: str) -> ModuleType:
    """tests/harness/<name>.py by its path: tests are no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / "harness" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


armed = load("armed")
STAGES = ("sft", "reward", "ppo", "dpo")
INSIDE = {stage: "inside a rollout" if stage == "ppo" else "inside an evaluation" for stage in STAGES}
SIX = [
    # Half of them killed with the loss of what was not synced, half of them told to stop.
    (stage, INSIDE[stage] if position == "inside" else position, ("KILL", "TERM")[(row + column) % 2])
    for row, stage in enumerate(STAGES)
    for column, position in enumerate(armed.POSITIONS)
]
HALVES = [
    ("sft", "save, before the manifest", "KILL"),
    ("ppo", "after the optimiser's step", "TERM"),
    ("dpo", "rotation", "KILL"),
    ("reward", "finish, before the record", "KILL"),
]
DISKS = [
    ("sft", "within the adapter's file", "KILL"),
    ("sft", "full in the tensors", "ENOSPC"),
    ("ppo", "full in the adapter", "ENOSPC"),
    ("sft", "full in the tokenizer", "ENOSPC"),
    ("sft", "read-only in the tensors", "EROFS"),
    ("reward", "write of a metric row", "EIO"),
    ("dpo", "sync of the checkpoint", "EIO"),
]
STRANGERS = [
    ("sft", "somebody's training", "FOREIGN"),
    ("ppo", "a reward function hangs", "CUSTOM"),
    ("sft", "W&B's program ends", "WANDB"),
]
CONTROL = ("reward", "last step", "CONTROL")


def read_verdicts(printed: str) -> dict[tuple[str, str, str], str]:
    """By stage, point and kind, what was said of the case; by kind alone, why it was not attempted."""
    verdicts = {}
    for line in printed.splitlines():
        head, _, verdict = line.partition("': ")
        stage, _, rest = head.partition(": ")
        kind, _, point = rest.partition(" at '")
        control = stage.endswith(" (control)")
        verdicts[stage.removesuffix(" (control)"), point, "CONTROL" if control else kind] = verdict
        if rest.startswith("not attempted"):
            verdicts["", "", stage] = rest
    return verdicts


@pytest.fixture(scope="module")
def printed(
    finish_run: Callable[[str], Path], tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str, str], str]:
    """What the harness says of each case; in a process of its own: cases are forked, and pytest's should not be."""
    cases = [part for case in (*SIX, *HALVES, *DISKS, *STRANGERS, CONTROL) for part in ("--case", *case)]
    ready = map(str, (tiny_base_folder, finish_run("fp32"), tmp_path_factory.mktemp("faults")))
    command = [sys.executable, "tests/harness/faults.py", "--ready", *ready, *cases]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    verdicts = read_verdicts(done.stdout)
    assert verdicts, done.stdout + done.stderr
    return verdicts


@pytest.mark.parametrize(("stage", "position", "kind"), SIX)
def test_a_stage_struck_at_any_of_six_positions_ends_with_the_bits_of_an_undisturbed_run(
    printed: dict[tuple[str, str, str], str], stage: str, position: str, kind: str
) -> None:
    assert printed[stage, position, kind] == "struck, equal"


@pytest.mark.parametrize(("stage", "point", "kind"), HALVES)
def test_a_stage_struck_between_two_halves_of_one_act_goes_on_to_equal_bits(
    printed: dict[tuple[str, str, str], str], stage: str, point: str, kind: str
) -> None:
    assert printed[stage, point, kind] == "struck, equal"


@pytest.mark.parametrize(("stage", "point", "kind"), DISKS)
def test_a_disk_that_is_full_or_fails_costs_no_checkpoint_and_no_bit(
    printed: dict[tuple[str, str, str], str], stage: str, point: str, kind: str
) -> None:
    refused = printed.get(("", "", "ENOSPC" if kind in ("ENOSPC", "EROFS") else "EIO"))
    if refused is not None:
        pytest.skip(refused)
    assert printed[stage, point, kind] == "struck, equal"


@pytest.mark.parametrize(("stage", "point", "kind"), STRANGERS)
def test_a_run_and_what_somebody_else_put_in_its_way_come_to_no_harm(
    printed: dict[tuple[str, str, str], str], stage: str, point: str, kind: str
) -> None:
    assert printed[stage, point, kind] == "struck, equal"


def test_the_harness_sees_a_run_break_when_nothing_is_synced_or_verified(
    printed: dict[tuple[str, str, str], str],
) -> None:
    assert printed[CONTROL].startswith(("struck, BROKEN", "struck, NOT EQUAL"))


PLACES = {place for points in (*armed.POINTS.values(), armed.READ_ONLY) for place, *_ in points.values()}
PLACES |= {place for (place, *_), _ in armed.FULL.values()}


@pytest.mark.parametrize("place", sorted(PLACES))
def test_every_place_of_the_harness_is_there(place: str) -> None:
    """Also those that the cut above leaves out: a function that has moved would be struck nowhere."""
    assert callable(getattr(*armed.find(place)))


def test_every_stage_is_struck_in_ten_places_at_least_and_at_the_six_positions() -> None:
    for stage, points in armed.POINTS.items():
        assert len(points) >= 10
        assert {INSIDE[stage] if position == "inside" else position for position in armed.POSITIONS} <= points.keys()
