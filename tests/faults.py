"""Kills stages at armed points, lets them go on, and compares what comes out with an undisturbed run: bit for bit.

    python tests/faults.py [--stages ppo ...] [--signals KILL TERM] [--points ...]

Cases are forked from one process that has imported everything, so that each costs a second and not ten.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("sft", "reward", "ppo", "dpo")

SAVES = {
    "save, after the first file": ("onebase.checkpoint:save_file", "after", 2),
    "save, before the manifest": ("onebase.checkpoint:canonical", "before", 4),
    "save, before the rename": ("onebase.checkpoint:os.rename", "before", 2),
    "save, after the rename": ("onebase.checkpoint:os.rename", "after", 2),
    "rotation": ("onebase.checkpoint:Checkpoints._rotate", "before", 3),
}
TRAINING = {
    "backward": ("torch:Tensor.backward", "before", 3),
    "before the optimiser's step": ("torch.optim:AdamW.step", "before", 3),
    "after the optimiser's step": ("torch.optim:AdamW.step", "after", 3),
}
TRL = {
    "first training step": ("transformers:Trainer.training_step", "before", 1),
    "training step": ("transformers:Trainer.training_step", "before", 4),
    "evaluation": ("transformers:Trainer.evaluation_loop", "before", 2),
    "generation": ("onebase.generation:draw", "before", 5),
}
POINTS: dict[str, dict[str, tuple[str, str, int]]] = {
    "sft": {**TRL, **TRAINING, **SAVES},
    "dpo": {**TRL, **TRAINING, **SAVES},
    "reward": {
        "first scores": ("reward.train:candidate_scores", "before", 1),
        "scores": ("reward.train:candidate_scores", "after", 4),
        "centring": ("reward.train:center", "before", 1),
        "evaluation": ("reward.train:evaluate", "before", 1),
        **TRAINING,
        **SAVES,
    },
    "ppo": {
        "first rollout": ("onebase.generation:draw", "before", 3),
        "rollout": ("onebase.generation:draw", "before", 16),
        "reference": ("ppo.rollout:logprobs", "before", 2),
        "reward": ("ppo.rollout:member_scores", "before", 2),
        "value": ("ppo.rollout:token_values", "before", 2),
        **TRAINING,
        **SAVES,
    },
}
"""By stage: where (module:attribute), before or after the call, and at which of its calls."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    stage: str
    point: str
    signal: str
    struck: bool
    equal: bool
    detail: str


def overrides(stage: str, base: Path, parents: Path, out: Path) -> list[str]:
    """A run of several steps that saves after every one."""
    sizes = {
        "sft": ["trl.max_steps=4", "adapter.dropout=0.1"],
        "reward": ["data.0.rows=16"],
        "ppo": [],
        "dpo": ["trl.max_steps=4"],
    }
    parent_of = {"sft": [], "reward": ["sft"], "ppo": ["sft", "reward"], "dpo": ["sft"]}[stage]
    return [
        *(f"base.model={base}", f"out={out}", "track.wandb=off", "checkpoint.every_steps=1"),
        *(f"parents.{name}={parents / name}" for name in parent_of),
        *sizes[stage],
    ]


def run_forked(work: Callable[[], int]) -> int:
    """The exit status of `work` in a forked process, as `os.waitstatus_to_exitcode` gives it."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        code = work()
    finally:
        os._exit(code)


def run_stage(stage: str, arguments: Sequence[str], log: Path) -> int:
    """The stage's command, its output in `log`."""
    from onebase.command import main
    from pipeline import stages

    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    return main(stage, stages.loader(stage), "", "", [str(ROOT / f"recipes/smoke/{stage}.yaml"), *arguments])


def arm(place: str, when: str, count: int, number: int) -> None:
    """Let this process be struck by a signal at the count-th call of the named function."""
    module_name, _, path = place.partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    whole = getattr(owner, name)
    calls = 0

    def struck(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if when == "before" and calls == count:
            os.kill(os.getpid(), number)
        result = whole(*arguments, **options)
        if when == "after" and calls == count:
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, struck)


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that must be equal: files by hash, metrics without times, samples."""
    content = json.loads((folder / "stage.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    def timed(name: str) -> bool:
        return "time/" in name or "memory/" in name or name.endswith("tokens_per_second")

    metrics = [{name: value for name, value in row.items() if not timed(name)} for row in rows]
    samples = (folder / "samples.jsonl").read_text()
    final = {name: value for name, value in content["metrics"].items() if not timed(name)}
    return {"files": content["files"], "metrics": metrics, "samples": samples, "final": final}


def strike(stage: str, point: str, name: str, *, base: Path, parents: Path, home: Path, expected: Any) -> Verdict:
    """One case: start, be struck, go on, compare."""
    place, when, count = POINTS[stage][point]
    number = signal.Signals[f"SIG{name}"]
    folder = home / "-".join([stage, "".join(filter(str.isalnum, point)), name])
    shutil.rmtree(folder, ignore_errors=True)
    arguments, log = overrides(stage, base, parents, folder), home / "log.txt"

    def first() -> int:
        arm(place, when, count, number)
        return run_stage(stage, arguments, log)

    code = run_forked(first)
    struck = code == (-int(number) if name == "KILL" else 128 + int(number))
    again = run_forked(lambda: run_stage(stage, arguments, log))
    if not struck or again:
        return Verdict(
            stage=stage, point=point, signal=name, struck=struck, equal=False, detail=f"exit {code}, then {again}"
        )
    found = outcome(folder)
    differing = [key for key in expected if found[key] != expected[key]]
    return Verdict(stage=stage, point=point, signal=name, struck=True, equal=not differing, detail=", ".join(differing))


def undisturbed(stage: str, *, base: Path, parents: Path, home: Path) -> dict[str, Any]:
    """The outcome of a run that nothing happens to."""
    folder = home / f"{stage}-undisturbed"
    if not (folder / "stage.json").is_file():
        arguments = overrides(stage, base, parents, folder)
        code = run_forked(lambda: run_stage(stage, arguments, home / "log.txt"))
        assert code == 0, (home / "log.txt").read_text()
    return outcome(folder)


def warm_up() -> None:
    """Import everything that a stage needs, once, before forking."""
    import torch

    torch.set_num_threads(1)
    for stage in STAGES:
        for module in ("train", "recipe"):
            importlib.import_module(f"{stage}.{module}")
    importlib.import_module("reward.train")


@contextlib.contextmanager
def prepared() -> Iterator[tuple[Path, Path, Path]]:
    """A tiny base and finished parents, in a folder of their own."""
    spec = importlib.util.spec_from_file_location("conftest", ROOT / "tests" / "conftest.py")
    assert spec is not None and spec.loader is not None
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        home = Path(scratch)
        base = conftest.build_base(home / "base", seed=0)
        conftest.run_chain(home, base, "fp32")
        yield base, home / "smoke-fp32", home


def main() -> int:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--signals", nargs="+", choices=("KILL", "TERM", "INT"), default=("KILL", "TERM"))
    parser.add_argument("--points", nargs="+", help="only points whose name contains one of these")
    parser.add_argument("--case", nargs=3, action="append", metavar=("STAGE", "POINT", "SIGNAL"), help="only these")
    parser.add_argument("--ready", nargs=3, type=Path, metavar=("BASE", "RUN", "SCRATCH"), help="made before")
    given = parser.parse_args()
    wanted = [tuple(case) for case in given.case or ()]
    verdicts = []
    with contextlib.nullcontext(given.ready) if given.ready else prepared() as (base, parents, home):
        warm_up()
        for stage in given.stages:
            expected = undisturbed(stage, base=base, parents=parents, home=home)
            for point in POINTS[stage]:
                if given.points and not any(part in point for part in given.points):
                    continue
                for name in given.signals:
                    if wanted and (stage, point, name) not in wanted:
                        continue
                    verdict = strike(stage, point, name, base=base, parents=parents, home=home, expected=expected)
                    verdicts.append(verdict)
                    state = "equal" if verdict.equal else f"NOT EQUAL {verdict.detail}"
                    print(
                        f"{stage}: {name} at '{point}': {'struck' if verdict.struck else 'NOT STRUCK'}, {state}",
                        flush=True,
                    )
    table = Table("stage", "attempted", "struck", "bit-equal", title="killed, gone on, compared")
    for stage in given.stages:
        own = [verdict for verdict in verdicts if verdict.stage == stage]
        table.add_row(stage, *(str(n) for n in (len(own), sum(v.struck for v in own), sum(v.equal for v in own))))
    Console().print(table)
    return 0 if verdicts and all(verdict.struck and verdict.equal for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
