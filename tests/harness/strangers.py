"""Cases of `make faults` in which somebody else is in the way: their folder, their reward function, W&B's process."""

import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from strikes import Bench, Case, Verdict, outcome, run_forked, run_stage, sha256, stands

FOREIGN: dict[str, dict[str, str]] = {
    "somebody's training": {
        "checkpoints/step-00000001/weights.pt": "theirs",
        "adapter/my.bin": "theirs",
        "tokenizer/my.model": "theirs",
        "metrics.jsonl": '{"loss": 1}\n',
    },
    "somebody's papers": {"chapters/one.txt": "words", "stage.json": '{"stage": "sft"}', ".notes": ""},
}
"""What lies in a folder that is given as `out` and is no run's: files by path, with what is in them."""

REWARD = """
import os
import sys
import time
from pathlib import Path

CALLS = 0

def reward(prompt, response):
    global CALLS
    CALLS += 1
    act = os.environ.get("MISBEHAVE")
    if CALLS == 20 and act == "exit":
        sys.exit(0)
    if CALLS == 20 and act == "hang":
        time.sleep(3600)
    if CALLS == 20 and act == "fork":
        child = os.fork()
        if child:
            Path(os.environ["CHILD"]).write_text(str(child))
    return len(response) / 100
"""

CUSTOM: dict[str, tuple[str, int, str]] = {
    "a reward function exits": ("exit", 2, "tried to end the run: it raised SystemExit"),
    "a reward function hangs": ("hang", 2, "has not ended after 1 second"),
    "a reward function forks": ("fork", 0, "came back out of it; it ends here"),
}
"""What the function of `REWARD` does in PPO's third step; the exit code of the run, and what is said."""

CORE: dict[str, str | None] = {
    "W&B's program ends": "#!/bin/sh\nexit 3\n",
    "W&B's program hangs": '#!/bin/sh\nexec tail -f "$0"\n',
    "W&B's program is missing": None,
}
"""What stands in the place of W&B's own process."""


def intrude(case: Case, bench: Bench, expected: Any) -> Verdict:
    """A run is to go where somebody else's files are; then, where they were, it is undisturbed."""
    home = empty(bench.home / case.name)
    folder, log = home / case.stage, home / "log.txt"
    for name, text in FOREIGN[case.point].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    codes, before = list[int](), contents(home)
    for flags in [], ["--restart"]:
        command = [*bench.command(case.stage, folder), *flags]
        codes.append(run_forked(lambda command=command: run_stage(case.stage, command, log)))
    printed = log.read_text()
    log.unlink()
    struck = codes == [2, 2] and "no run of Onebase" in printed and "Traceback" not in printed
    kept = contents(home) == before
    folder.rename(home / "theirs")
    again = run_forked(lambda: run_stage(case.stage, bench.command(case.stage, folder), log))
    detail = f"exits {codes}, then {again}{'' if kept else ', their files changed'}"
    return judge(case, home, folder, expected, struck=struck, survived=again == 0 and kept, detail=detail)


def misbehave(case: Case, bench: Bench, expected: Any) -> Verdict:
    """PPO with a reward function that misbehaves in one step, and then with the same function once more.

    expected: the base recipe's, which has no function; one with it is run for this.
    """
    home = empty(bench.home / case.name)
    (home / "mine.py").write_text(REWARD)
    terms = "[{kind: adapter, weight: 1.0}, {kind: function, function: 'mine:reward', weight: 1.0}]"
    log, child = home / "log.txt", home / "child.txt"

    def command(folder: Path) -> list[str]:
        return [*bench.command(case.stage, folder), f"reward.terms={terms}", "functions.seconds=1"]

    def run(folder: Path, **variables: str) -> int:
        prepare = partial(go_to, home), partial(os.environ.update, variables)
        return run_forked(lambda: run_stage(case.stage, command(folder), log, *prepare))

    undisturbed, folder = home / "undisturbed", home / case.stage
    assert run(undisturbed) == 0, log.read_text()
    log.unlink()
    act, wanted, words = CUSTOM[case.point]
    code, message = run(folder, MISBEHAVE=act, CHILD=str(child)), log.read_text()
    struck = code == wanted and words in message and "Traceback" not in message and child.is_file() == (act == "fork")
    alone = not child.is_file() or not goes_on(int(child.read_text()))
    stood = stands(folder)
    again = run(folder)
    detail = f"exit {code}, then {again}{'' if alone else ', a second process stayed'}{'' if stood else ', none stood'}"
    survived = again == 0 and alone and stood
    return judge(case, home, folder, outcome(undisturbed), struck=struck, survived=survived, detail=detail)


def silence(case: Case, bench: Bench, expected: Any) -> Verdict:
    """W&B cannot start: a warning, a run like any other, and no process left behind."""
    home = empty(bench.home / case.name)
    folder, log, program = home / case.stage, home / "log.txt", home / "wandb-core"
    content = CORE[case.point]
    if content is not None:
        program.write_text(content)
        program.chmod(0o755)
    # The last of equal keys counts.
    command = [*bench.command(case.stage, folder), "track.wandb=offline"]
    code = run_forked(lambda: run_stage(case.stage, command, log, partial(replace_core, program)))
    text = log.read_text()
    left = [process.pid for process in psutil.process_iter() if str(program) in " ".join(command_of(process))]
    struck = text.count("W&B does not start (") == 1 and "Traceback" not in text
    detail = f"exit {code}{f', left behind: {left}' if left else ''}"
    return judge(case, home, folder, expected, struck=struck, survived=code == 0 and not left, detail=detail)


def judge(case: Case, home: Path, folder: Path, expected: Any, *, struck: bool, survived: bool, detail: str) -> Verdict:
    """The verdict; `home` goes where all is well."""
    result = outcome(folder) if survived else {}
    differing = [key for key in expected if result.get(key) != expected[key]]
    equal = struck and survived and not differing
    if equal:
        shutil.rmtree(home)
    ends = "; ".join([detail, *([f"differing: {', '.join(differing)}"] if differing else [])])
    return Verdict(case=case, struck=struck, survived=survived, equal=equal, detail=ends)


def empty(home: Path) -> Path:
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    return home


def contents(folder: Path) -> dict[str, str]:
    """Every file, by path, and what is in it."""
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def go_to(home: Path) -> None:
    """Be where a user is who has a module of their own."""
    os.chdir(home)
    sys.path.insert(0, str(home))


def replace_core(program: Path) -> None:
    """From now on, in this process, W&B's own process is this program, and has not long to start."""
    import wandb.sdk.lib.service.service_process as service

    from onebase.tracking import dashboard

    service.get_core_path = lambda: str(program)
    dashboard.START_SECONDS = 4.0


def goes_on(number: int) -> bool:
    """Whether a process runs; one that has ended may still be listed, where nobody asks how."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended
        return []
