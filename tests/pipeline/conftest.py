"""Stages run through their command, and a finished run to damage."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Stage = Callable[..., tuple[int, str]]


@pytest.fixture
def run_stage(tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Stage:
    """Run a stage of the smoke recipes through its command; exit code and what it said."""

    from onebase.cli.parser import main as stage_main
    from pipeline import stages

    def run(stage: str, *overrides: str, recipe: Path | None = None) -> tuple[int, str]:
        path = recipe or Path(f"recipes/smoke/{stage}.yaml")
        settings = [f"base.model={tiny_base_folder}", f"out={tmp_path / 'out' / stage}", "track.wandb=off"]
        code = stage_main(stage, stages.loader(stage), "", "", [str(path), *settings, *overrides])
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def parents(finish_run: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a finished fp32 run, to damage."""
    return Path(shutil.copytree(finish_run("fp32"), tmp_path / "run"))


@pytest.fixture
def onebase(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `onebase ARGUMENTS`; exit code, stdout and stderr."""

    from pipeline.cli import app

    def run(*arguments: object) -> tuple[int, str, str]:
        code = app([str(argument) for argument in arguments], standalone_mode=False)
        printed = capsys.readouterr()
        return code or 0, printed.out, printed.err

    return run
