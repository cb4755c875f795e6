"""The whole chain on a tiny model, through `onebase run`, in fp32 and in NF4."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.compare import compare
from evaluation.compare.compare import run as run_comparison
from evaluation.compare.recipe import CompareRecipe
from evaluation.compare.responses import Responder, adapter_sha256
from onebase.cli.parser import main as stage_main
from onebase.errors import RecipeError, RecordError
from onebase.files.writing import hash_file
from onebase.inference.scoring import score
from onebase.model import base as bases
from onebase.recipe import reader
from onebase.run import record
from pipeline import chain
from tests.factories import rows_of

STAGES = ("sft", "reward", "ppo", "dpo")

LOGGED = {
    "sft": {"sft/loss", "sft/eval_loss", "sft/tokens_per_second"},
    "reward": {"reward/loss", "reward/accuracy"},
    "ppo": {
        "ppo/score",
        "ppo/kl",
        "ppo/entropy",
        "ppo/clip_fraction",
        "ppo/value_loss",
        "ppo/explained_variance",
        "ppo/response_length",
        "ppo/stop_rate",
        *(f"ppo/time/{part}" for part in ("rollout_prefill", "rollout_decode", "score_reference", "score_reward")),
        *(f"ppo/time/{part}" for part in ("score_value", "train_policy", "train_value", "optimizer", "other", "step")),
    },
    "dpo": {"dpo/loss", "dpo/margin"},
}


def wandb_records(stage: Path) -> list[dict[str, Any]]:
    """The offline W&B run of a stage, read back by W&B's own tool."""
    (log,) = stage.glob("wandb/offline-run-*/*.wandb")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(log)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


def test_every_stage_of_a_run_is_recorded_and_verifies(finished_run: Path, quantization: str) -> None:
    stages = {stage: record.read(finished_run / stage, stage=stage) for stage in STAGES}
    assert {stage.record.base.quantization for stage in stages.values()} == {quantization}
    assert set(stages["ppo"].parents) == {"sft", "reward"}
    assert stages["ppo"].parents["reward"].parents["sft"].sha256 == stages["sft"].sha256
    assert stages["dpo"].parents["sft"].sha256 == stages["sft"].sha256
    assert stages["ppo"].record.recipe["train"]["episodes"] == 24
    assert stages["sft"].record.data[0].kept == 24


def test_a_data_card_of_what_was_trained_on_lies_beside_every_record(finished_run: Path) -> None:
    for stage, kind in zip(STAGES, ("demonstration", "ranking", "prompt", "ranking"), strict=True):
        card = json.loads((finished_run / stage / "data" / "card.json").read_text())
        content = record.read(finished_run / stage, stage=stage).record
        assert card["kind"] == kind
        assert card["lengths"]["unit"] == "tokens"
        assert card["limits"]["prompt_tokens"] == content.recipe["limits"]["prompt_tokens"]
        (source,) = card["sources"]
        assert source["sha256"] == content.data[0].sha256
        assert card["rows"]["kept"] == content.data[0].kept
        plots = {path.name for path in (finished_run / stage / "data").glob("*.svg")}
        assert plots == {"lengths.svg", "tasks.svg"} | ({"rankings.svg"} if kind == "ranking" else set())


def test_each_stage_trains_its_adapter_and_leaves_its_parents_alone(finished_run: Path) -> None:
    hashes = {stage: hash_file(finished_run / stage / "adapter" / "adapter_model.safetensors") for stage in STAGES}
    assert len(set(hashes.values())) == len(STAGES)
    recorded = record.read(finished_run / "sft").record.files["adapter/adapter_model.safetensors"]
    assert hashes["sft"] == recorded


def test_a_finished_run_is_verified_and_not_run_again(finished_run: Path, tiny_base_folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*") if path.is_file()}
    from sft.__main__ import load

    overrides = [f"base.model={tiny_base_folder}", f"out={finished_run / 'sft'}", f"track.group={finished_run.name}"]
    overrides.append(f"base.quantization={record.read(finished_run / 'sft').record.base.quantization}")
    # Another worker of the test run has built its own copy of the base: the same files in another folder.
    overrides[0] = f"base.model={record.read(finished_run / 'sft').record.base.model}"
    assert stage_main("sft", load, "", "", ["recipes/smoke/sft.yaml", *overrides]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*") if path.is_file()} == before


def test_summary_and_table_hold_every_model_with_intervals(finished_run: Path, capsys: pytest.CaptureFixture) -> None:
    from evaluation.compare import summary

    content = json.loads((finished_run / "summary.json").read_text())
    assert list(content["models"]) == ["base", "dpo", "ppo", "sft"]  # canonical JSON sorts its keys
    for row in content["models"].values():
        assert set(row) == {*summary.GREEDY, *summary.SAMPLED}
        assert all(estimate["low"] <= estimate["mean"] <= estimate["high"] for estimate in row.values())
    assert content["models"]["sft"]["kl_to_sft"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert content["models"]["ppo"]["kl_to_sft"]["mean"] > 0
    assert set(content["stages"]) == {*STAGES, "compare"}
    assert all(stage["peak_rss_bytes"] > 0 and stage["seconds"] > 0 for stage in content["stages"].values())
    summary.show(content)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("base", "sft", "ppo", "dpo", "pair accuracy", "peak memory"))
    assert content["samples"][0]["prompt"].split()[0] in printed
    assert "builtin:tasks/heldout-templates, 4 prompts" in printed


def test_each_source_of_prompts_has_a_table_of_its_own(finished_run: Path) -> None:
    content = json.loads((finished_run / "summary.json").read_text())
    parts = content["by_source"]
    assert set(parts) == {"builtin:tasks/heldout-families", "builtin:tasks/heldout-templates"}
    assert [part["prompts"] for part in parts.values()] == [4, 4]
    for model, row in content["models"].items():
        for name, estimate in row.items():
            halves = [part["models"][model][name]["mean"] for part in parts.values()]
            assert estimate["mean"] == pytest.approx(sum(halves) / 2, abs=2e-6)
        both = (row["correctness"]["mean"] + row["form"]["mean"]) / 2
        assert row["task_score"]["mean"] == pytest.approx(both, abs=2e-6)


def test_the_figures_of_a_run_show_every_stage(finished_run: Path) -> None:
    drawn = {path.stem: path.read_text() for path in (finished_run / "plots").glob("*.svg")}
    assert {"sft_loss", "reward_loss", "ppo_score", "ppo_kl", "dpo_loss", "reward_against_kl"} <= set(drawn)
    assert all("<svg" in text and "<script" not in text for text in drawn.values())


def test_answers_in_the_summary_are_those_of_the_table(finished_run: Path) -> None:
    rows = rows_of(finished_run / "evaluation", "answers")
    content = json.loads((finished_run / "summary.json").read_text())
    assert len(rows) == content["prompts"] == 8
    for model, estimates in content["models"].items():
        for name, estimate in estimates.items():
            mean = sum(row[model][name] for row in rows) / len(rows)
            assert estimate["mean"] == pytest.approx(mean, abs=2e-6)  # both are rounded to six digits


def test_lineage_links_every_stage_to_what_it_came_from(finished_run: Path) -> None:
    records = json.loads((finished_run / "lineage.json").read_text())["records"]
    by_stage = {node["stage"]: sha for sha, node in records.items()}
    assert set(by_stage) == set(STAGES)
    assert records[by_stage["ppo"]]["parents"] == {"sft": by_stage["sft"], "reward": by_stage["reward"]}
    assert records[by_stage["sft"]]["parents"] == {}
    for node in records.values():
        assert (finished_run / node["path"] / "stage.json").is_file()


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_leaves_an_offline_wandb_run_with_its_metrics_and_samples(finished_run: Path, stage: str) -> None:
    records = wandb_records(finished_run / stage)
    text = json.dumps(records)
    logged = {name for row in rows_of(finished_run / stage) for name in row}
    for name in LOGGED[stage]:
        assert name in logged, f"{name} is not in metrics.jsonl"
        assert f'"{name}"' in text or name in text, f"{name} is not in the W&B run"
    assert finished_run.name in text, "the run is not in the group of its pipeline run"
    assert f"{stage}/samples" in text
    assert rows_of(finished_run / stage, "samples")


def test_wandb_runs_hold_the_same_numbers_as_metrics_jsonl(finished_run: Path) -> None:
    log = next((finished_run / "ppo").glob("wandb/offline-run-*/*.wandb"))
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--summary", "--json", str(log)]
    shown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["summary"]
    last = rows_of(finished_run / "ppo")[-1]
    for name in ("ppo/score", "ppo/kl", "ppo/entropy", "ppo/value_loss"):
        assert shown[name] == pytest.approx(last[name])


def test_a_variant_of_a_stage_is_run_after_it_with_its_parents_and_compared_by_its_name(tmp_path: Path) -> None:
    folder = Path(shutil.copytree("recipes/smoke", tmp_path / "recipes"))
    (folder / "ppo-rloo.yaml").write_text((folder / "ppo.yaml").read_text())
    (folder / "reward-small.yaml").write_text((folder / "reward.yaml").read_text())
    (folder / "sft-gold.yaml").write_text((folder / "sft.yaml").read_text())
    steps = {step.name: step for step in chain.plan(folder, ["runs_dir=r", "name=n", "ppo-rloo.train.clip=0.1"])}
    assert list(steps) == ["sft", "sft-gold", "reward", "reward-small", "ppo", "ppo-rloo", "dpo", "compare"]
    variant = steps["ppo-rloo"]
    assert (variant.stage, variant.out) == ("ppo", Path("r/n/ppo-rloo"))
    assert {"train.clip=0.1", "parents.sft=r/n/sft", "parents.reward=r/n/reward"} <= {*variant.overrides}
    assert "train.clip=0.1" not in steps["ppo"].overrides
    compared = {override for override in steps["compare"].overrides if override.startswith(("parents.", "policies."))}
    assert compared == {f"parents.{stage}=r/n/{stage}" for stage in STAGES} | {
        "policies.ppo-rloo=r/n/ppo-rloo",
        "policies.sft-gold=r/n/sft-gold",
    }
    (folder / "dpo-x.yaml").write_text("bse: {}\n")
    with pytest.raises(RecipeError, match=r"dpo-x\.yaml:1: unknown key 'bse'"):
        chain.plan(folder, [])
    (folder / "dpo-x.yaml").rename(folder / "dpo-0.05.yaml")
    with pytest.raises(RecipeError, match=r"dpo-0\.05\.yaml: a variant's name consists of letters"):
        chain.plan(folder, [])


def parents_of(step: chain.Step) -> set[str]:
    return {override for override in step.overrides if override.startswith("parents.")}


def test_a_run_fills_in_the_parents_that_are_left_to_it(tmp_path: Path) -> None:
    folder = Path(shutil.copytree("recipes/smoke", tmp_path / "recipes"))
    text = (folder / "ppo.yaml").read_text()
    variant = text.replace(", reward: runs/smoke/reward", "").replace("{kind: adapter}", "{kind: shared}")
    rewards = variant.replace("{kind: adapter, weight: 1.0}", '{kind: function, function: "brevity:reward"}')
    (folder / "ppo-function.yaml").write_text(rewards)
    settings = ["name=n", "runs_dir=r", "ppo.parents.reward=elsewhere"]
    steps = {step.name: step for step in chain.plan(folder, settings)}
    assert parents_of(steps["ppo-function"]) == {"parents.sft=r/n/sft"}
    assert parents_of(steps["ppo"]) == {"parents.sft=r/n/sft", "parents.reward=elsewhere"}
    steps = {step.name: step for step in chain.plan(folder, [*settings, "compare.parents.ppo=r/n/ppo/best"])}
    compared = steps["compare"]
    best = {parent for parent in parents_of(compared) if parent.startswith("parents.ppo=")}
    assert best == {"parents.ppo=r/n/ppo/best"}
    for gone in ("ppo", "dpo"):
        (folder / f"{gone}.yaml").unlink()
    last = {step.name: step for step in chain.plan(folder, ["name=n", "runs_dir=r"])}["compare"]
    recipe = reader.read(last.recipe, CompareRecipe, last.overrides)
    assert (recipe.parents.ppo, recipe.parents.dpo) == (None, None)
    assert recipe.policies == {"ppo-function": Path("r/n/ppo-function")}
    for gone in ("ppo-function", "reward"):
        (folder / f"{gone}.yaml").unlink()
    shutil.copy("recipes/smoke/dpo.yaml", folder)
    last = {step.name: step for step in chain.plan(folder, ["name=n", "runs_dir=r"])}["compare"]
    parents = reader.read(last.recipe, CompareRecipe, last.overrides).parents
    assert (parents.sft, parents.reward, parents.dpo) == (Path("r/n/sft"), None, Path("r/n/dpo"))


def test_greedy_and_sampled_answers_are_scored_as_if_each_stood_alone(finish_run: Callable[[str], Path]) -> None:
    home = finish_run("fp32")
    settings = [f"base.model={record.read(home / 'sft').record.base.model}", f"out={home}"]
    parents = [f"parents.{stage}={home / stage}" for stage in STAGES]
    recipe = reader.read(Path("recipes/smoke/compare.yaml"), CompareRecipe, [*settings, *parents])
    models = compare.read_parents(recipe)
    chat, prompts, _, _ = compare.read_data(recipe)
    roles = compare.load_roles(bases.load(recipe.base, recipe.chat), models)
    sizes = {"max_new_tokens": recipe.sampling.max_new_tokens, "batch": recipe.sampling.batch, "seed": recipe.seed}
    ids, folder = [prompt.ids for prompt in prompts], home / "evaluation" / "responses"
    respond = Responder(roles=roles, prompts=ids, folder=folder, **sizes)
    answers = compare.judge(roles, "ppo", models["ppo"], respond, chat, prompts, [], recipe)
    sha256 = adapter_sha256(models["ppo"].record.files)
    for name, temperature in (("reward", 0.0), ("sampled_reward", 1.0)):
        episodes = respond("ppo", adapter_sha256=sha256, temperature=temperature)
        expected = score(roles, "reward", episodes.sequences, tokens_per_microbatch=64)
        assert answers.metrics[name] == pytest.approx(expected.tolist(), abs=1e-4)
    assert answers.metrics["reward"] != answers.metrics["sampled_reward"]


def test_further_policies_and_texts_are_compared(
    finish_run: Callable[[str], Path], run_stage: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    home = finish_run("fp32")
    parents = [f"parents.{stage}={home / stage}" for stage in STAGES]
    model = record.read(home / "sft").record.base.model
    code, printed = run_stage("sft", f"base.model={model}", "seed=5", f"out={tmp_path / 'alone'}")
    assert code == 0, printed
    settings = [f"base.model={model}", f"out={tmp_path / 'out'}", "track.wandb=off", *parents]
    settings.append("texts=[{source: builtin:python-manual, text: text, split: heldout, rows: 1}]")
    recipe = Path("recipes/smoke/compare.yaml")
    folder = tmp_path / "out" / "evaluation"
    folder.mkdir(parents=True)
    for name in ("metrics", "samples"):  # of a comparison that was made before
        (folder / f"{name}.jsonl").write_text('{"step": 0}\n')
    (tmp_path / "out" / "summary.json").write_text('{"schema_version": 1, "run": "out", "models": {}}\n')
    others = [f"policies.keys={home / 'ppo'}", f"policies.alone={tmp_path / 'alone'}"]
    content = run_comparison(reader.read(recipe, CompareRecipe, [*settings, *others]))
    models = content["models"]
    assert [len(rows_of(folder, name)) for name in ("metrics", "samples")] == [1, 8]
    assert list(models) == ["base", "sft", "ppo", "dpo", "keys", "alone"]
    # Another SFT stage on the same base, from which none of the others comes.
    assert models["alone"]["kl_to_sft"]["mean"] != 0 == models["sft"]["kl_to_sft"]["mean"]
    assert models["keys"] == models["ppo"] != models["dpo"]
    assert content["differences"]["keys over sft"] == content["differences"]["ppo over sft"]
    assert {difference["mean"] for difference in content["differences"]["keys over ppo"].values()} == {0.0}
    losses = [models[name]["lm_loss"]["mean"] for name in ("base", "sft", "ppo", "dpo")]
    assert len(set(losses)) == 4 and all(0 < loss < 12 for loss in losses)
    assert {"keys_score.svg", "ppo_score.svg"} <= {path.name for path in (tmp_path / "out" / "plots").iterdir()}
    with pytest.raises(RecordError, match=r"policies.again: .* is a finished stage 'reward'"):
        run_comparison(reader.read(recipe, CompareRecipe, [*settings, f"policies.again={home / 'reward'}"]))
    taken = (("sft", "'sft' is the name of another"), ("step", "'step' is the name of another"))
    for name, message in (*taken, ("ä b", "a name is made of letters, digits")):
        with pytest.raises(RecipeError, match=message):
            reader.read(recipe, CompareRecipe, [*settings, f"policies.{name}={home / 'ppo'}"])
