"""What a user may get wrong: exit code 2, a message that names file, line or key, and nothing written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Stage = Callable[..., tuple[int, str]]


def refused(result: tuple[int, str], *parts: str, out: Path) -> None:
    code, text = result
    assert code == 2, text
    for words in parts:
        assert words in text
    assert "Traceback" not in text
    assert not out.exists(), "something was written"


def test_unknown_recipe_key(run_stage: Stage, tmp_path: Path) -> None:
    content = Path("recipes/smoke/ppo.yaml").read_text().replace("learning_rate:", "learning_rte:")
    (tmp_path / "ppo.yaml").write_text(content)
    line = next(n for n, text in enumerate(content.splitlines(), start=1) if "learning_rte" in text)
    refused(
        run_stage("ppo", recipe=tmp_path / "ppo.yaml"),
        *(f"{tmp_path / 'ppo.yaml'}:{line}", "'learning_rte'", "did you mean 'learning_rate'?"),
        out=tmp_path / "out",
    )


def test_unknown_key_for_trl(run_stage: Stage, tmp_path: Path) -> None:
    result = run_stage("dpo", "trl.bta=0.2")
    refused(result, "override 'trl.bta=0.2'", "unknown key 'bta'", "did you mean 'beta'?", out=tmp_path / "out")


def test_wrong_type(run_stage: Stage, tmp_path: Path) -> None:
    result = run_stage("reward", "train.epochs=several")
    refused(result, "override 'train.epochs=several'", "train.epochs", "'several'", out=tmp_path / "out")


def test_prompts_that_leave_no_room_for_an_answer(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    settings = [f"parents.{stage}={parents / stage}" for stage in ("sft", "reward")]
    result = run_stage("ppo", *settings, "sampling.max_new_tokens=500")
    refused(result, "builtin:tasks", "sampling.max_new_tokens 500", "the model has 512 positions", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("stage", "key", "row"),
    [
        ("sft", "evaluation.demonstrations", {"response": "b"}),
        ("reward", "evaluation.rankings", {"responses": ["b", "c"], "tiers": [0, 1]}),
        ("dpo", "evaluation.rankings", {"responses": ["b", "c"], "tiers": [0, 1]}),
    ],
)
def test_held_out_rows_that_are_trained_on(
    run_stage: Stage, parents: Path, tmp_path: Path, stage: str, key: str, row: dict[str, object]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {n}", **row}) + "\n" for n in range(5)))
    settings = [] if stage == "sft" else [f"parents.sft={parents / 'sft'}"]
    result = run_stage(stage, *settings, f"data=[{{source: {path}}}]", f"{key}=[{{source: {path}, rows: 2}}]")
    refused(result, f"{key}: 2 of 2 prompts are trained on as well, such as {path}:", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.targets=[q_prj]", "See adapter.targets"),
        ("trl.loss_type=nlll", "trl.loss_type: expected one of nll, dft, chunked_nll, found 'nlll'"),
    ],
)
def test_what_peft_or_trl_refuse(run_stage: Stage, tmp_path: Path, override: str, message: str) -> None:
    code, text = run_stage("sft", override)
    assert code == 2 and message in text and "Traceback" not in text


def test_missing_parent(run_stage: Stage, tmp_path: Path) -> None:
    result = run_stage("reward", f"parents.sft={tmp_path / 'nowhere'}")
    refused(result, str(tmp_path / "nowhere"), "there is no such stage folder", out=tmp_path / "out")


def test_unfinished_parent(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    (parents / "sft" / "stage.json").unlink()
    result = run_stage("reward", f"parents.sft={parents / 'sft'}")
    refused(result, "holds no stage.json", "has not finished", out=tmp_path / "out")


def test_parent_of_the_wrong_stage(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    result = run_stage("ppo", f"parents.sft={parents / 'sft'}", f"parents.reward={parents / 'dpo'}")
    refused(result, "expected a run of stage 'reward', found stage 'dpo'", "parents.reward=", out=tmp_path / "out")


def test_adapter_of_another_base_of_the_same_shape(
    run_stage: Stage, parents: Path, other_base_folder: Path, tmp_path: Path
) -> None:
    result = run_stage("reward", f"parents.sft={parents / 'sft'}", f"base.model={other_base_folder}")
    refused(result, "base.model", "other weights", "only fits the base", out=tmp_path / "out")


def test_adapter_of_another_quantisation(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    result = run_stage("reward", f"parents.sft={parents / 'sft'}", "base.quantization=nf4")
    refused(result, "base.quantization", "expected fp32", "found nf4", out=tmp_path / "out")


def test_flipped_bit_in_an_adapter_file(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    weights = parents / "sft" / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(bytes(content))
    result = run_stage("dpo", f"parents.sft={parents / 'sft'}")
    refused(result, str(weights), "damaged or edited", "sha256", out=tmp_path / "out")


def test_flipped_bit_in_a_grandparent(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    head = parents / "reward" / "adapter" / "head.safetensors"
    content = bytearray(head.read_bytes())
    content[-1] ^= 128
    head.write_bytes(bytes(content))
    result = run_stage("ppo", f"parents.sft={parents / 'sft'}", f"parents.reward={parents / 'reward'}")
    refused(result, str(head), "damaged or edited", out=tmp_path / "out")


def test_other_chat_template(run_stage: Stage, parents: Path, tmp_path: Path, tiny_base_folder: Path) -> None:
    template = tmp_path / "other.jinja"
    template.write_text("{{ 'Be kind.' }}" + (tiny_base_folder / "chat_template.jinja").read_text())
    result = run_stage("reward", f"parents.sft={parents / 'sft'}", f"chat.template={template}")
    theirs = parents / "sft" / "tokenizer" / "chat_template.jinja"
    texts = (str(theirs), str(template), "differ first in line 1", "Be kind.")
    refused(result, "another chat template", *texts, out=tmp_path / "out")
    assert "sha256" not in result[1]


def test_other_system_message(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    result = run_stage("reward", f"parents.sft={parents / 'sft'}", "chat.system=Answer at length.")
    refused(result, "another system message", "found 'Answer at length.'", "chat.system", out=tmp_path / "out")


@pytest.mark.parametrize("part", ["adapter", "adapter/adapter_config.json", "stage.json", "tokenizer", ""])
def test_a_part_of_a_stage_in_its_place(run_stage: Stage, parents: Path, tmp_path: Path, part: str) -> None:
    """Or the run around it: the stage that was meant is named."""
    folder = parents / "sft" / part if part else parents
    result = run_stage("reward", f"parents.sft={folder}")
    refused(result, str(folder), f"Did you mean {parents / 'sft'}?", out=tmp_path / "out")


@pytest.mark.parametrize("command", ["verify", "eval reward", "score", "best-of-n"])
def test_every_command_that_takes_a_stage_says_which_was_meant(
    onebase: Callable[..., tuple[int, str, str]], parents: Path, tmp_path: Path, command: str
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "response": "b"}\n')
    adapter = parents / "reward" / "adapter"
    arguments = {"score": [adapter, rows], "best-of-n": [parents / "sft", adapter, rows]}.get(command, [adapter])
    code, _, printed = onebase(*command.split(), *arguments)
    assert code == 2 and f"Did you mean {parents / 'reward'}?" in printed


def test_reward_of_another_sft_stage(run_stage: Stage, finish_run: Callable[[str], Path], tmp_path: Path) -> None:
    runs = [Path(shutil.copytree(finish_run("fp32"), tmp_path / name)) for name in ("one", "two")]
    record_file = runs[1] / "sft" / "stage.json"
    content = json.loads(record_file.read_text())
    content["created"] = "2020-01-01T00:00:00+00:00"
    record_file.write_text(json.dumps(content))
    result = run_stage("ppo", f"parents.sft={runs[1] / 'sft'}", f"parents.reward={runs[0] / 'reward'}")
    refused(result, "does not descend from", str(runs[1] / "sft"), out=tmp_path / "out")


def test_empty_data_file(run_stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    result = run_stage("sft", f"data.0.source={tmp_path / 'empty.jsonl'}", "data.0.split=null", "data.0.rows=null")
    refused(result, str(tmp_path / "empty.jsonl"), "empty", out=tmp_path / "out")


def test_malformed_json_line(run_stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "c", "response": \n')
    result = run_stage("sft", f"data.0.source={path}", "data.0.split=null", "data.0.rows=null")
    refused(result, f"{path}:2", out=tmp_path / "out")


def test_ranking_with_one_response(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    path = tmp_path / "rankings.jsonl"
    path.write_text(
        '{"prompt": "a", "responses": ["b", "c"], "tiers": [0, 1]}\n{"prompt": "d", "responses": ["e"], "tiers": [0]}\n'
    )
    overrides = (f"data.0.source={path}", "data.0.split=null", "data.0.rows=null", f"parents.sft={parents / 'sft'}")
    refused(run_stage("reward", *overrides), f"{path}:2", out=tmp_path / "out")


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_prompt_over_the_limit(run_stage: Stage, parents: Path, tmp_path: Path, stage: str) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "word " * 500, "response": "b"}) + "\n")
    overrides = [f"data.0.source={path}", "data.0.split=null", "data.0.rows=null"]
    if stage == "ppo":
        overrides += [f"parents.sft={parents / 'sft'}", f"parents.reward={parents / 'reward'}"]
    result = run_stage(stage, *overrides)
    refused(result, f"{path}:1", "limits.prompt_tokens=320", "limits.over=drop", out=tmp_path / "out")


def test_several_processes(run_stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(run_stage("ppo"), "num_processes", "python -m ppo", out=tmp_path / "out")


def test_a_run_with_a_wrong_last_recipe_starts_no_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from onebase.cli.command import guarded
    from pipeline import chain

    folder = Path(shutil.copytree("recipes/smoke", tmp_path / "smoke"))
    content = yaml.safe_load((folder / "dpo.yaml").read_text())
    content["paris"] = "all"
    (folder / "dpo.yaml").write_text(yaml.safe_dump(content))

    def plan() -> None:
        chain.plan(folder, [f"runs_dir={tmp_path / 'out'}"])

    code = guarded(plan)
    refused((code, capsys.readouterr().err), "dpo.yaml", "did you mean 'pairs'?", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pppo.train.clip=0.1", "a stage first"),
        ("ppo.train.clp=0.1", "did you mean 'clip'?"),
        ("nonsense", "expected name or runs_dir, or a stage first"),
        ("name=", "override 'name=': has no value"),
        ("runs_dir=", "override 'runs_dir=': has no value"),
    ],
)
def test_a_wrong_override_of_a_run(override: str, message: str) -> None:
    from onebase.errors import RecipeError
    from pipeline import chain

    with pytest.raises(RecipeError) as caught:
        chain.plan(Path("recipes/smoke"), [override])
    assert message in str(caught.value)


def test_a_finished_stage_is_not_trained_over_with_another_recipe(
    run_stage: Stage, finish_run: Callable[[str], Path]
) -> None:
    finished = finish_run("fp32") / "sft"
    before = (finished / "stage.json").read_bytes()
    code, text = run_stage("sft", f"out={finished}", "seed=7")
    assert code == 2
    # The base stands in another folder where another worker has made the run.
    assert "finished with another recipe: " in text and "seed: it had 0, this one says 7. Pass" in text
    assert "--restart" in text
    assert (finished / "stage.json").read_bytes() == before
