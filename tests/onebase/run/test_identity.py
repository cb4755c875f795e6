"""What a run goes by: refused where it is another one, recorded where it may change."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase.custom.function_source import source_sha256
from onebase.errors import InputError, Interrupted, RecordError
from onebase.model.identity import BaseIdentity, TokenizerIdentity
from onebase.recipe.sections import CheckpointSection, TrackSection
from onebase.run import identity as identities
from onebase.run.identity import FAILURE, RunIdentity
from onebase.run.session import Session

HASHES = {letter: letter * 64 for letter in "abcdef"}


def make_identity(**changes: Any) -> RunIdentity:
    base: dict[str, Any] = {"model": "m", "revision": None, "quantization": "fp32", "config_sha256": HASHES["a"]}
    tokens: dict[str, Any] = {
        "tokenizer_sha256": HASHES["b"],
        "template_sha256": HASHES["c"],
        "pad_id": 0,
        "stop_ids": [2],
    }
    base |= {"weights_sha256": changes.get("weights", HASHES["b"]), "vocabulary": 400, "hidden_layers": 2}
    tokens |= {"template_sha256": changes.get("template", HASHES["c"])}
    return RunIdentity(
        base=BaseIdentity(**base),
        tokenizer=TokenizerIdentity(**tokens),
        parents={"sft": changes.get("sft", HASHES["d"])},
        data=[("rows.jsonl", "train", changes.get("data", HASHES["e"]))],
        functions=changes.get("functions", {"mine:reward": HASHES["f"]}),
    )


def started(**changes: Any) -> Mapping[str, Any]:
    first = make_identity(**changes)
    first.begin()
    return first.model_dump(mode="json")


def test_the_same_run_goes_on_in_one_part(capsys: pytest.CaptureFixture[str]) -> None:
    again = make_identity()
    again.resume(started(), 7, fixed=False, stage="ppo")
    assert [part.first_step for part in again.parts] == [1]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"weights": HASHES["c"]}, "base weights: it had bbbbbbbbbbbb..., and it is cccccccccccc... now"),
        ({"template": HASHES["a"]}, "chat template or system message: it had cccccccccccc..."),
        ({"sft": HASHES["a"]}, "parent sft: it had dddddddddddd..."),
        ({"data": HASHES["a"]}, r"data rows.jsonl \(train\): it had eeeeeeeeeeee..., and it is aaaaaaaaaaaa"),
        ({"functions": {"mine:reward": HASHES["a"]}}, "function mine:reward: it had ffffffffffff..."),
    ],
)
def test_a_run_of_something_else_does_not_go_on(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(RecordError, match=f"ppo: resuming after step 7 would mix two runs: {what}"):
        make_identity(**changes).resume(started(), 7, fixed=False, stage="ppo")


@pytest.mark.parametrize(("before", "now"), [(["sft"], ["sft", "reward_2"]), (["sft", "reward_2"], ["sft"])])
def test_a_parent_more_or_less_is_another_run(before: list[str], now: list[str]) -> None:
    first, again = make_identity(), make_identity()
    first.parents, again.parents = (dict.fromkeys(names, HASHES["d"]) for names in (before, now))
    first.begin()
    with pytest.raises(RecordError, match="parent reward_2: it had"):
        again.resume(first.model_dump(mode="json"), 7, fixed=False, stage="ppo")


def test_a_function_may_be_mended_where_it_has_ended_the_run_and_nothing_else_may() -> None:
    again = make_identity(functions={"mine:reward": HASHES["a"]})
    again.resume(started(), 7, fixed=True, stage="ppo")
    assert [(part.first_step, part.functions["mine:reward"][0]) for part in again.parts] == [(1, "f"), (8, "a")]
    with pytest.raises(RecordError, match="base weights"):
        make_identity(weights=HASHES["a"]).resume(started(), 7, fixed=True, stage="ppo")


def test_other_versions_and_threads_are_said_and_recorded_with_both_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = started()
    now = identities.versions() | {"torch": "9.9.9", "python": "3.99.0"}
    monkeypatch.setattr(identities, "versions", lambda: now)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    again = make_identity()
    again.resume(before, 3, fixed=False, stage="sft")
    assert [part.first_step for part in again.parts] == [1, 4]
    assert again.parts[0].versions["torch"] == metadata.version("torch")
    assert (again.parts[1].versions["torch"], again.parts[1].threads) == ("9.9.9", 77)
    printed = capsys.readouterr().err
    for words in ("torch: it had", "9.9.9 now", "python: it had", "threads: it had", "77 now", "will hold both"):
        assert words in printed
    third = make_identity()
    third.resume(again.model_dump(mode="json"), 4, fixed=False, stage="sft")
    assert [part.first_step for part in third.parts] == [1, 4]


@pytest.mark.parametrize("saved", [None, [], {"parts": []}, {"parts": [{"first_step": 1}]}])
def test_a_checkpoint_that_does_not_say_what_it_is_of_is_refused(saved: Any) -> None:
    whole = {**started(), **saved} if isinstance(saved, dict) else saved
    with pytest.raises(RecordError, match=r"Start again with --restart"):
        make_identity().resume(whole, 3, fixed=False, stage="sft")


# --- functions -------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages"])
def test_packages_that_a_user_has_installed_elsewhere_do_not_count(
    here: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (here / folder).mkdir()
    monkeypatch.syspath_prepend(str(here / folder))
    (here / folder / "library.py").write_text("")
    (here / "uses.py").write_text("import library\n\ndef reward(prompt, response):\n    return 1.0\n")
    first = source_sha256("uses:reward")
    (here / folder / "library.py").write_text("# another version\n")
    assert source_sha256("uses:reward") == first


def test_a_module_for_another_python_counts_as_it_stands(here: Path) -> None:
    (here / "old.py").write_text("print 'hello'\n")
    text = "try:\n    import old\nexcept SyntaxError:\n    pass\n\ndef reward(prompt, response):\n    return 1.0\n"
    (here / "takes.py").write_text(text)
    first = source_sha256("takes:reward")
    (here / "old.py").write_text("print 'bye'\n")
    assert source_sha256("takes:reward") != first


def test_what_a_function_imports_of_ones_own_counts_and_what_is_beside_it_does_not(here: Path) -> None:
    (here / "kit").mkdir()
    sources = {
        "pays.py": "from kit import words\n\ndef reward(prompt, response):\n    import late\n    return 1.0\n",
        "kit/__init__.py": "",
        "kit/words.py": "from . import deep\nfrom .more import x\n",
        "kit/deep.py": "",
        "kit/more.py": "x = 1\n",
        "late.py": "import importlib\n\ndef load():\n    return importlib.import_module('latest')\n",
        "latest.py": "",
        "beside.py": "",
    }
    for name, text in sources.items():
        (here / name).write_text(text)
    first = source_sha256("pays:reward")
    assert source_sha256("pays:reward") == first
    for name, text in sources.items():
        (here / name).write_text(text + "# edited\n")
        assert (source_sha256("pays:reward") == first) == (name == "beside.py"), name
        (here / name).write_text(text)
    assert source_sha256("pays:reward") == first


def test_a_function_that_another_module_defines_goes_by_both(here: Path) -> None:
    (here / "defines.py").write_text("def reward(prompt, response):\n    return 1.0\n")
    (here / "names.py").write_text("import defines as other\nreward = getattr(other, 'reward')\n")
    first = source_sha256("names:reward")
    (here / "defines.py").write_text("def reward(prompt, response):\n    return -1.0\n")
    assert source_sha256("names:reward") != first


def test_a_function_of_python_itself_has_a_source_too(here: Path) -> None:
    assert source_sha256("difflib:get_close_matches") != source_sha256("textwrap:dedent")
    assert len(source_sha256("math:sqrt")) == 64


# --- in a session ----------------------------------------------------------------------------------------------------


def open_session(folder: Path, identity: RunIdentity, sft: str = "run/sft") -> Session:
    return Session(
        folder,
        "ppo",
        track=TrackSection(wandb="off"),
        checkpoint=CheckpointSection(every_steps=1),
        recipe={"seed": 0, "parents": {"sft": sft}},
        state_bytes=4096,
        identity=identity,
    )


def run_step(session: Session, number: int, error: BaseException | None = None) -> None:
    with session.step(number, lambda: {"x": torch.ones(2)}, total=9):
        session.tracker.log(number, {"ppo/score": 1.0})
        if error is not None:
            raise error


def test_a_session_is_refused_before_a_row_is_cut_and_goes_on_when_all_is_put_back(tmp_path: Path) -> None:
    folder = tmp_path / "ppo"
    with open_session(folder, make_identity()) as session:
        run_step(session, 1)
        session.tracker.log(2, {"ppo/score": 9.0})
    rows = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(RecordError, match="function mine:reward"):
        open_session(folder, make_identity(functions={"mine:reward": HASHES["a"]}))
    assert (folder / "metrics.jsonl").read_bytes() == rows
    with open_session(folder, make_identity()) as session:
        assert session.first_step == 2


def test_a_run_goes_on_where_its_parents_were_moved_and_not_where_they_are_others(tmp_path: Path) -> None:
    folder = tmp_path / "ppo"
    with open_session(folder, make_identity()) as session:
        run_step(session, 1)
    with open_session(folder, make_identity(), sft="moved/sft") as session:
        assert session.first_step == 2
    with pytest.raises(RecordError, match="parent sft"):
        open_session(folder, make_identity(sft=HASHES["a"]), sft="moved/sft")


@pytest.mark.parametrize("error", [OSError(5, "the disk fails"), Interrupted(signal.SIGTERM)])
def test_nothing_else_lets_a_function_be_changed(tmp_path: Path, error: BaseException) -> None:
    folder = tmp_path / "ppo"
    with open_session(folder, make_identity()) as session:
        run_step(session, 1)
        with pytest.raises(type(error)):
            run_step(session, 2, error)
    with pytest.raises(RecordError, match="function mine:reward"):
        open_session(folder, make_identity(functions={"mine:reward": HASHES["a"]}))


def test_a_step_that_an_error_ended_lets_its_function_be_mended_until_the_next_save(tmp_path: Path) -> None:
    folder, mended = tmp_path / "ppo", {"mine:reward": HASHES["a"]}
    with open_session(folder, make_identity()) as session:
        run_step(session, 1)
        with pytest.raises(InputError):
            run_step(session, 2, InputError("the function returned None"))
    assert (folder / FAILURE).is_file()
    with open_session(folder, make_identity(functions=mended)) as session:
        run_step(session, 2)
    assert not (folder / FAILURE).exists()
    with pytest.raises(RecordError, match=r"it had a{12}\.\.\., and it is f{12}"):
        open_session(folder, make_identity())


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hang_up_saves_as_a_termination_does_and_under_nohup_is_not_heard(tmp_path: Path, ignored: bool) -> None:
    code = (
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from onebase.recipe.sections import CheckpointSection\n"
        "from onebase.cli.command import guarded\n"
        "from onebase.recipe.sections import TrackSection\n"
        "from onebase.run.session import Session\n"
        f"signal.signal(signal.SIGHUP, signal.{'SIG_IGN' if ignored else 'SIG_DFL'})\n"
        "def work():\n"
        f"    with Session(Path({str(tmp_path / 'ppo')!r}), 'ppo', track=TrackSection(wandb='off'),\n"
        "        checkpoint=CheckpointSection(), recipe={}, state_bytes=4096) as session:\n"
        "        def state():\n"
        "            os.kill(os.getpid(), signal.SIGHUP)  # the shell's, after the terminal's\n"
        "            return {'x': torch.ones(2)}\n"
        "        with session.step(3, state, total=9):\n"
        "            os.kill(os.getpid(), signal.SIGHUP)\n"
        "sys.exit(guarded(work))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    saved = (tmp_path / "ppo" / "checkpoints" / "step-00000002").is_dir()
    assert (done.returncode, saved) == ((0, False) if ignored else (128 + signal.SIGHUP, True)), done.stderr


def test_a_terminal_that_is_gone_is_let_go_of_and_the_state_is_saved(tmp_path: Path) -> None:
    """A closed terminal: SIGHUP comes, twice, and every write to it is an error from then on."""
    code = (
        "import signal, sys, time, torch\n"
        "from pathlib import Path\n"
        "from onebase.recipe.sections import CheckpointSection\n"
        "from onebase.cli.command import guarded\n"
        "from onebase.recipe.sections import TrackSection\n"
        "from onebase.run.session import Session\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # these tests may run under nohup
        "def work():\n"
        f"    with Session(Path({str(tmp_path / 'ppo')!r}), 'ppo', track=TrackSection(wandb='off'),\n"
        "        checkpoint=CheckpointSection(), recipe={}, state_bytes=4096) as session:\n"
        "        with session.step(3, lambda: {'x': torch.ones(2)}, total=9):\n"
        f"            Path({str(tmp_path / 'ready')!r}).touch()\n"
        "            time.sleep(60)\n"
        "sys.exit(guarded(work))\n"
    )
    ours, theirs = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    while not (tmp_path / "ready").exists():
        assert child.poll() is None
        time.sleep(0.05)
    os.close(ours)
    child.send_signal(signal.SIGHUP)
    assert child.wait() == 128 + signal.SIGHUP
    assert (tmp_path / "ppo" / "checkpoints" / "step-00000002").is_dir()
