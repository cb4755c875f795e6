"""Runs stages in processes whose address space is limited, and prints what came of it, a line of JSON each.

    python tests/harness/limited_memory.py BASE PARENTS SCRATCH

Each stage runs three times: with all the memory there is, whose peak is measured; a row at a time, the same; and with
a peak half-way between the two allowed, so that the recipe's micro-batches cannot fit and smaller ones do. Cases are
forked from one process that has imported everything.
"""

import contextlib
import importlib
import json
import os
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORDS = " ".join(["the brown bear sat on a hill and looked at the small red boat below"] * 6)
PARENTS = {"sft": [], "reward": ["sft"], "ppo": ["sft", "reward"], "dpo": ["sft"]}

EVALUATION = {"sft": ["evaluation.samples=1"], "dpo": ["evaluation.samples=1"]}
WHOLE = {
    "sft": ["trl.per_device_train_batch_size=16", "trl.max_steps=2"],
    "reward": ["train.rankings_per_step=16", "train.tokens_per_microbatch=32000"],
    "ppo": ["train.batch=16", "train.minibatch=16", "train.episodes=32", "train.tokens_per_microbatch=16000"],
    "dpo": ["trl.per_device_train_batch_size=16", "trl.max_steps=2"],
}
LEAST = {
    "sft": ["trl.per_device_train_batch_size=1", "trl.max_steps=2"],
    "reward": ["train.rankings_per_step=16", "train.tokens_per_microbatch=1"],
    "ppo": [*WHOLE["ppo"], "train.tokens_per_microbatch=1", "sampling.batch=1"],
    "dpo": ["trl.per_device_train_batch_size=1", "trl.max_steps=2"],
}


def address_space(what: str = "VmSize") -> int:
    """Bytes of address space this process has (VmSize) or has had at most (VmPeak)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def run(stage: str, arguments: Sequence[str], log: Path, allowed: int | None) -> dict[str, Any]:
    """Run a stage in a forked process; its exit code, and the bytes it took from when it began to compute."""
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        with os.fdopen(reader) as stream:
            taken = stream.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return {"code": code, "taken": int(taken or 0), "log": log.read_text()}
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        started = limit_at_first_fit(allowed)
        code = run_stage(stage, arguments)
        os.write(writer, str(address_space("VmPeak") - started()).encode())
    finally:
        os._exit(code)


def run_stage(stage: str, arguments: Sequence[str]) -> int:
    from onebase.cli.parser import main
    from pipeline import stages

    return main(stage, stages.loader(stage), "", "", [str(ROOT / f"recipes/smoke/{stage}.yaml"), *arguments])


def limit_at_first_fit(allowed: int | None) -> Callable[[], int]:
    """From the first work on whose sizes may be halved, `allowed` bytes more; returns what there was then."""
    from onebase.memory import Budget
    from onebase.model import lora

    # It compiles for each shape, in address space of its own, and is not needed where that is short: what would run
    # out with it might fit without it.
    lora.HAS_ONE_DNN = False
    fit = Budget.fit
    sizes: list[int] = []

    def limited(self: Any, work: Any, *, size: int | None = None) -> Any:
        if not sizes:
            sizes.append(address_space())
            if allowed is not None:
                resource.setrlimit(resource.RLIMIT_AS, (sizes[0] + allowed, resource.RLIM_INFINITY))
        return fit(self, work, size=size)

    Budget.fit = limited  # type: ignore[method-assign]  # the limit counts from here, not from the imports
    return lambda: sizes[0] if sizes else address_space("VmPeak")


def write_data(scratch: Path) -> dict[str, Path]:
    """Long rows, of which a few take more memory than all else that a stage of the tiny model does."""
    rows = [{"prompt": f"{number}: {WORDS}", "responses": [f"yes {number} {WORDS[:90]}", "no"]} for number in range(32)]
    files = {name: scratch / f"{name}.jsonl" for name in ("rankings", "demonstrations")}
    files["rankings"].write_text("".join(json.dumps({**row, "tiers": [0, 1]}) + "\n" for row in rows))
    answers = [{"prompt": row["prompt"], "response": row["responses"][0]} for row in rows]
    files["demonstrations"].write_text("".join(json.dumps(row) + "\n" for row in answers))
    return files


def main(base: Path, parents: Path, scratch: Path) -> None:
    import torch

    torch.set_num_threads(1)
    for stage in PARENTS:
        importlib.import_module(f"{stage}.train")
    with contextlib.suppress(ImportError):
        importlib.import_module("data.card_plots")
    files = write_data(scratch)
    for stage in PARENTS:
        data = files["demonstrations" if stage in ("sft", "ppo") else "rankings"]
        common = [
            *(f"base.model={base}", "track.wandb=off", "checkpoint.every_steps=1", f"data.0.source={data}"),
            *("data.0.split=null", "data.0.rows=32", *EVALUATION.get(stage, ())),
            *(f"parents.{parent}={parents / parent}" for parent in PARENTS[stage]),
        ]
        outcomes: dict[str, Any] = {"stage": stage}
        for name, settings in (("whole", WHOLE[stage]), ("least", LEAST[stage])):
            arguments = [*common, *settings, f"out={scratch / stage / name}"]
            outcomes[name] = run(stage, arguments, scratch / f"{stage}-{name}.log", None)
        allowed = (outcomes["whole"]["taken"] + outcomes["least"]["taken"]) // 2
        arguments = [*common, *WHOLE[stage], f"out={scratch / stage / 'limited'}"]
        outcomes["limited"] = run(stage, arguments, scratch / f"{stage}-limited.log", allowed)
        print(json.dumps(outcomes), flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
