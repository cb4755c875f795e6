"""Strikes stages at armed points, lets them go on, and compares what comes out with an undisturbed run: bit for bit.

    python tests/harness/faults.py [--stages ppo ...] [--kinds KILL TERM ENOSPC ...] [--points ...] [--no-control]
    python tests/harness/faults.py --recipes recipes/demo --stages sft --at 13 [--parents runs/demo]

KILL    and then the loss of what was not synced: a power cut (tests/harness/storage.py says how, and what is simulated)
TERM    and INT: what a scheduler and Ctrl-C send
ENOSPC  a small disk of its own that fills up within a save, or when adapter, tokenizer or record are written
EROFS   a disk that takes nothing more: at the start, within a save, or at the end
EIO     one write or fsync of one file that fails
FOREIGN somebody else's folder as `out`: refused, all in it as it was; then given away, the run is undisturbed
CUSTOM  a reward function that exits, hangs or forks in one step of PPO
WANDB   W&B's own process is missing, ends at once or hangs: a warning, and a run like any other

The control is the KILL rows once more in a program that hashes nothing and syncs nothing, which is patched into the
forked process: if no run came out broken there, this harness could not see what it is for.

With --recipes, one stage of those recipes as they are, killed at the --at'th backward pass.

Cases are forked from one process that has imported everything, so that each costs two seconds and not twelve.
"""

import argparse
import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"

sys.path.insert(0, str(Path(__file__).resolve().parent))

import storage
from armed import FAILING, FULL, POINTS, READ_ONLY, WITHIN
from strangers import CORE, CUSTOM, FOREIGN, intrude, misbehave, silence
from strikes import ROOT, SIGNALS, Bench, Case, Verdict, strike, undisturbed

STAGES = ("sft", "reward", "ppo", "dpo")
STRANGERS = {"FOREIGN": intrude, "CUSTOM": misbehave, "WANDB": silence}


def warm_up() -> None:
    """Import everything that a stage needs, once, before forking."""
    import torch

    torch.set_num_threads(1)
    for stage in STAGES:
        for module in ("train", "recipe"):
            importlib.import_module(f"{stage}.{module}")
    # What is imported where it is first used.
    for module in ("data.card_plots", "data.tasks.generate", "matplotlib.backends.backend_svg"):
        importlib.import_module(module)


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


def cases(stage: str, arguments: argparse.Namespace) -> list[Case]:
    """The rows of the matrix that were asked for, and of the control."""
    if arguments.recipes:
        return [Case(stage=stage, point=f"backward pass {arguments.at}", kind="KILL")]
    kinds = [kind for kind in SIGNALS if kind in arguments.kinds]
    chosen = [Case(stage=stage, point=point, kind=kind) for point in POINTS[stage] for kind in kinds]
    if "KILL" in arguments.kinds and storage.can_fail():
        chosen += [Case(stage=stage, point=point, kind="KILL") for point in WITHIN]
    if "ENOSPC" in arguments.kinds and storage.can_mount():
        chosen += [Case(stage=stage, point=point, kind="ENOSPC") for point in FULL]
    if "EROFS" in arguments.kinds and storage.can_mount():
        chosen += [Case(stage=stage, point=point, kind="EROFS") for point in READ_ONLY]
    if "EIO" in arguments.kinds and storage.can_fail():
        chosen += [Case(stage=stage, point=point, kind="EIO") for point in FAILING]
    for kind, points in ("FOREIGN", FOREIGN), ("CUSTOM", CUSTOM if stage == "ppo" else ()), ("WANDB", CORE):
        chosen += [Case(stage=stage, point=point, kind=kind) for point in points if kind in arguments.kinds]
    if not arguments.no_control:
        chosen += [
            Case(stage=stage, point=case.point, kind="KILL", control=True) for case in chosen if case.kind == "KILL"
        ]
    if arguments.case:
        chosen = [
            case
            for case in chosen
            if [case.stage, case.point, "CONTROL" if case.control else case.kind] in arguments.case
        ]
    return [case for case in chosen if not arguments.points or any(part in case.point for part in arguments.points)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = (*SIGNALS, "ENOSPC", "EROFS", "EIO", *STRANGERS)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--kinds", nargs="+", choices=every, default=["KILL", "TERM", *every[3:]])
    parser.add_argument("--points", nargs="+", help="only points whose name contains one of these")
    parser.add_argument("--no-control", action="store_true")
    parser.add_argument("--case", nargs=3, action="append", metavar=("STAGE", "POINT", "KIND"), help="only these")
    parser.add_argument("--ready", nargs=3, type=Path, metavar=("BASE", "RUN", "SCRATCH"), help="made before")
    parser.add_argument("--recipes", type=Path, help="a folder of other recipes")
    parser.add_argument("--at", type=int, help="with --recipes: the backward pass to be killed at")
    parser.add_argument("--scratch", type=Path, help="with --recipes: where to run; undisturbed runs in it are kept")
    parser.add_argument("--parents", type=Path, help="with --recipes: the run whose stages are the parents")
    arguments = parser.parse_args()
    if arguments.recipes and not arguments.at:
        parser.error("--recipes needs --at")
    storage.enter_own_namespace()
    verdicts = []
    with contextlib.ExitStack() as stack:
        stack.callback(storage.remove_failing)
        if arguments.recipes:
            home = arguments.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
            bench = Bench(home=home, base=None, parents=arguments.parents, recipes=arguments.recipes, at=arguments.at)
        else:
            base, parents, home = arguments.ready or stack.enter_context(prepared())
            bench = Bench(home=home, base=base, parents=parents)
        warm_up()
        for stage in arguments.stages:
            wanted = cases(stage, arguments)
            expected = undisturbed(stage, bench) if wanted else {}
            for case in wanted:
                verdicts.append(STRANGERS.get(case.kind, strike)(case, bench, expected))
                print(verdicts[-1], flush=True)
    return report(verdicts)


def report(verdicts: Sequence[Verdict]) -> int:
    """The counts; 0 if every case was struck and came out equal, and the control, where it ran, found broken runs."""
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "kind", "attempted", "struck", "survived", "bit-equal", title="struck, gone on, compared")
    for control in (False, True):
        keys = dict.fromkeys((v.case.stage, v.case.kind) for v in verdicts if v.case.control == control)
        for key in [*keys, *([("all", "all")] if keys else [])]:
            these = [v for v in verdicts if v.case.control == control]
            counted = [v for v in these if key in ((v.case.stage, v.case.kind), ("all", "all"))]
            counts = len(counted), *(sum(getattr(v, name) for v in counted) for name in ("struck", "survived", "equal"))
            table.add_row(*key[:1], f"{key[1]}{' (control)' * control}", *map(str, counts))
    Console(width=100).print(table)
    real = [v for v in verdicts if not v.case.control]
    control = [v for v in verdicts if v.case.control]
    stages = dict.fromkeys(v.case.stage for v in control)
    blind = [stage for stage in stages if all(v.equal for v in control if v.case.stage == stage)]
    blind += [v.case.stage for v in control if not v.struck]
    if blind:
        print(f"the control found no broken run of {', '.join(blind)}: this harness cannot see what it is for")
    return 0 if verdicts and all(v.struck and v.equal for v in real) and not blind else 1


if __name__ == "__main__":
    sys.exit(main())
