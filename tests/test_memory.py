"""Memory that runs out: each stage, in a process of limited address space, cuts its micro-batches and goes on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase.memory import Budget, TooLargeError, is_out_of_memory
from tests.factories import rows_of

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("sft", "reward", "ppo", "dpo")
SAID = "out of memory: micro-batches are halved"


@pytest.fixture(scope="module")
def limited_runs(
    finish_run: Callable[[str], Path], tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """What tests/harness/limited_memory.py found, by stage, and the folder of its runs."""
    scratch = tmp_path_factory.mktemp("limited")
    folders = map(str, (tiny_base_folder, finish_run("fp32"), scratch))
    command = [sys.executable, "tests/harness/limited_memory.py", *folders]
    # One arena of malloc's: every further one would reserve address space and use none of it.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["stage"]: line for line in lines}, scratch


@pytest.mark.parametrize("stage", STAGES)
def test_a_micro_batch_that_does_not_fit_is_halved_and_the_batch_stays(
    limited_runs: tuple[dict[str, Any], Path], stage: str
) -> None:
    by_stage, scratch = limited_runs
    whole, limited = by_stage[stage]["whole"], by_stage[stage]["limited"]
    assert whole["code"] == 0, whole["log"]
    assert limited["code"] == 0, limited["log"]
    assert SAID not in whole["log"]
    assert SAID in limited["log"]
    assert limited["taken"] < whole["taken"]
    # The same batch: loss and gradient of the first update are those of the run with all the memory it wanted.
    expected, limited_rows = (rows_of(scratch / stage / name) for name in ("whole", "limited"))
    (first,) = (row for row in expected if row["step"] == 1)
    (other,) = (row for row in limited_rows if row["step"] == 1)
    compared = [name for name in first if name.endswith("loss") or "grad_norm" in name]
    assert len(compared) >= 2
    assert {name: other[name] for name in compared} == pytest.approx({name: first[name] for name in compared}, rel=1e-4)
    assert other.get(f"{stage}/tokens") == first.get(f"{stage}/tokens")


@pytest.mark.parametrize("stage", STAGES)
def test_what_did_not_fit_is_remembered_in_the_checkpoint(
    limited_runs: tuple[dict[str, Any], Path], stage: str
) -> None:
    by_stage, scratch = limited_runs
    newest = sorted((scratch / stage / "limited" / "checkpoints").glob("step-*"))[-1]
    # The state is a list of pairs, as a checkpoint packs a dictionary.
    state = dict(json.loads((newest / "state.json").read_text())["items"])
    assert state["halvings"] == by_stage[stage]["limited"]["log"].count(SAID) > 0


def test_work_is_done_anew_with_half_of_it_until_it_fits() -> None:
    budget, sizes = Budget(tokens=64, episodes=3, halvings=1), list[int]()

    def work() -> str:
        sizes.append(budget.tokens)
        if sizes[-1] > 8:
            torch.empty(1 << 60)  # no machine has that much
        return "done"

    assert budget.fit(work) == "done"
    assert sizes == [32, 16, 8]
    assert budget.episodes == 1
    assert budget.fit(work) == "done"
    assert sizes == [32, 16, 8, 8]


def test_what_never_fits_ends_with_what_to_do() -> None:
    budget = Budget(tokens=4)
    with pytest.raises(TooLargeError, match=r"one sequence at a time .*t allocate memory.* `limits`"):
        budget.fit(lambda: torch.empty(1 << 60))
    assert budget.halvings == 0, "with more memory a later attempt begins as the recipe says"


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    attempts: list[int] = []

    def work() -> None:
        attempts.append(1)
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        Budget().fit(work, size=8)
    assert attempts == [1]
    assert is_out_of_memory(MemoryError("std::bad_alloc"))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
