"""Every command that writes, sent to where somebody else's files are: exit code 2, and all of them as they were."""

from collections.abc import Callable
from pathlib import Path

import pytest

from onebase.run.folders import claim

Stage = Callable[..., tuple[int, str]]
Command = Callable[..., tuple[int, str, str]]


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("theirs")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("flags", [(), ("--restart",)])
@pytest.mark.parametrize("names", [("checkpoints/epoch1.pt", "metrics.jsonl", "adapter/a"), ("chapters/one.txt",)])
def test_a_stage_leaves_somebody_elses_folder_alone(
    run_stage: Stage, tmp_path: Path, names: tuple[str, ...], flags: tuple[str, ...]
) -> None:
    before = contents(put(tmp_path / "theirs", *names))
    code, printed = run_stage("dpo", f"out={tmp_path / 'theirs'}", *flags)
    assert code == 2 and "no run of Onebase" in printed and "Traceback" not in printed
    assert contents(tmp_path / "theirs") == before and [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize("flags", [(), ("--restart",)])
def test_a_stage_does_not_go_into_another_ones_folder(run_stage: Stage, tmp_path: Path, flags: tuple[str, ...]) -> None:
    claim(tmp_path / "sft", "sft", "0")
    before = contents(tmp_path)
    code, printed = run_stage("ppo", f"out={tmp_path / 'sft'}", *flags)
    assert code == 2 and "the folder of a stage 'sft', and this is stage 'ppo'" in printed
    assert contents(tmp_path) == before


@pytest.mark.parametrize("out", [".", "..", "/", "pyproject.toml", "~no-such-user/x"])
def test_an_out_that_cannot_be_is_refused_without_a_traceback(run_stage: Stage, out: str) -> None:
    code, printed = run_stage("reward", f"out={out}")
    assert code == 2 and "out" in printed and "Traceback" not in printed


@pytest.mark.parametrize("theirs", ["ppo/notes.txt", "dpo/checkpoints/model.pt", "plots/mine.svg"])
def test_a_run_is_refused_before_its_first_stage_for_the_folder_of_its_last(
    onebase: Command, tmp_path: Path, theirs: str
) -> None:
    before = contents(put(tmp_path, f"mine/{theirs}"))
    code, _, printed = onebase("run", "recipes/smoke", f"runs_dir={tmp_path}", "name=mine")
    assert code == 2 and "Nothing in it was touched" in printed and "[1/" not in printed
    assert contents(tmp_path) == before


def test_a_comparison_leaves_somebody_elses_folder_alone(onebase: Command, tmp_path: Path) -> None:
    before = contents(put(tmp_path / "thesis", "summary.json", "evaluation/metrics.jsonl"))
    code, _, printed = onebase("compare", "recipes/smoke/compare.yaml", f"out={tmp_path / 'thesis'}")
    assert code == 2 and "not the folder of a run of Onebase" in printed
    assert contents(tmp_path / "thesis") == before


def test_files_of_somebody_else_are_not_written_over(onebase: Command, tmp_path: Path) -> None:
    put(tmp_path, "theirs/report.json", "theirs/card.json", "theirs/train.jsonl", "out.jsonl", "out.parquet")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "response": "b"}\n')
    before, theirs = contents(tmp_path), tmp_path / "theirs"
    for command in (
        ("eval", "reward", tmp_path / "reward", "--out", theirs),
        ("data", "card", rows, "--out", theirs),
        ("data", "convert", rows, "--out", theirs),
        ("data", "convert", rows, "--out", tmp_path / "out.jsonl"),
        ("data", "convert", rows, "--out", tmp_path / "out.parquet"),
        ("score", tmp_path / "reward", rows, "--out", tmp_path / "out.jsonl"),
        ("best-of-n", tmp_path / "sft", tmp_path / "reward", rows, "--out", tmp_path / "out.jsonl"),
    ):
        code, _, printed = onebase(*command)
        assert code == 2 and "written over" in printed and "Traceback" not in printed, command
    assert contents(tmp_path) == before


def test_a_tilde_that_no_shell_has_put_out_is_the_home_folder(
    onebase: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    assert onebase("data", "convert", tmp_path / "rows.jsonl", "--out=~/out.jsonl")[0] == 0
    assert (tmp_path / "home" / "out.jsonl").is_file()
    _, printed, _ = onebase("compare", "recipes/smoke/compare.yaml", "out=~/x", "parents.sft=~/y", "--print-config")
    assert f"out: {tmp_path / 'home' / 'x'}" in printed and f"sft: {tmp_path / 'home' / 'y'}" in printed
