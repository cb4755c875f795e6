"""`--profile` through the command line: what it writes, and that the run is the same."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from onebase.model.roles import WEIGHTS
from pipeline import stages
from pipeline.cli import app


@pytest.fixture
def ppo(tiny_base_folder: Path, finish_run: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    parents = finish_run("fp32")

    def ppo(name: str, *arguments: str) -> Path:
        out = tmp_path / name
        settings = [
            *(f"base.model={tiny_base_folder}", "base.quantization=fp32", f"out={out}", "track.wandb=off"),
            *(f"parents.{stage}={parents / stage}" for stage in ("sft", "reward")),
        ]
        assert app(["ppo", "recipes/smoke/ppo.yaml", *settings, *arguments], standalone_mode=False) in (0, None)
        return out

    return ppo


def test_a_profiled_run_has_the_bits_of_any_other_and_its_trace_names_every_part(
    ppo: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    plain, watched = ppo("plain"), ppo("watched", "--profile")
    assert not (plain / "profile").exists()
    assert str(watched / "profile") in capsys.readouterr().err
    assert (plain / "adapter" / WEIGHTS).read_bytes() == (watched / "adapter" / WEIGHTS).read_bytes()

    row = json.loads((watched / "metrics.jsonl").read_text().splitlines()[-1])
    parts = {name.removeprefix("ppo/time/") for name in row if name.startswith("ppo/time/")}
    with gzip.open(watched / "profile" / "trace.json.gz", "rt") as stream:
        traced = {event.get("name") for event in json.load(stream)["traceEvents"]}
    assert parts - {"other", "step"} <= traced
    assert [path.name for path in (watched / "profile").iterdir()] == ["trace.json.gz"]
    assert any(str(name).startswith("aten::addmm") for name in traced)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_only_ppo_takes_profile(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    from onebase.cli.parser import main

    with pytest.raises(SystemExit) as ended:
        app([stage, f"recipes/smoke/{stage}.yaml", "--profile"])
    by_module = main(stage, stages.loader(stage), "", "", [f"recipes/smoke/{stage}.yaml", "--profile"])
    assert (ended.value.code, by_module) == (2, 2)
    assert capsys.readouterr().err.count("No such option: --profile") == 2
