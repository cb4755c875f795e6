"""`onebase score`, `eval reward` and `best-of-n` with several reward models, through the real command line."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data.records import Demonstration, Message, Origin, Prompt
from data.select.sources import Source, load
from data.tasks import generate
from data.writing import row_of
from evaluation import best_of_n
from evaluation.reward_model import heldout, loading
from onebase.inference.sampling import sample
from onebase.inference.scoring import CombineSection, score
from onebase.run import record
from onebase.seeding import generator

Command = Callable[..., tuple[int, str, str]]

ROWS = [
    {"id": 7, "prompt": "What is the opposite of cold?", "responses": ["hot", "It is hot, I think.", "blue"]},
    {"prompt": "Name a city.", "response": "Paris"},
]


def put(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def with_others(folders: list[Path]) -> list[object]:
    return [word for folder in folders[1:] for word in ("--with", folder)]


# --- onebase score


def test_an_ensemble_scores_by_its_rule_and_shows_each_member(
    onebase: Command, other_rewards: list[Path], tmp_path: Path
) -> None:
    path = put(tmp_path / "rows.jsonl", *ROWS)
    alone = [lines_of(onebase("score", folder, path)[1]) for folder in other_rewards]
    names = ["reward", "reward_2", "reward_3"]
    for rule, combined in (("min", min), ("mean", lambda *scores: sum(scores) / 3)):
        code, out, err = onebase("score", other_rewards[0], path, *with_others(other_rewards), "--combine", rule)
        assert code == 0, err
        several, single = lines_of(out)
        for name, rows in zip(names, alone, strict=True):
            assert several["members"][name] == rows[0]["scores"], "the same micro-batches: the same bits"
            assert single["members"][name] == rows[1]["score"]
        by_response = list(zip(*(rows[0]["scores"] for rows in alone), strict=True))
        assert several["scores"] == pytest.approx([combined(*scores) for scores in by_response], abs=1e-5)
        assert single["score"] == pytest.approx(combined(*(rows[1]["score"] for rows in alone)), abs=1e-5)
        assert len(several["spread"]) == 3 and single["spread"] > 0
        assert several["id"] == 7


def test_best_of_n_goes_by_the_combined_score(onebase: Command, other_rewards: list[Path], tmp_path: Path) -> None:
    path = put(tmp_path / "rows.jsonl", ROWS[0])
    options = [*with_others(other_rewards), "--combine", "mean-minus-deviation", "--spread-weight", "3"]
    whole = lines_of(onebase("score", other_rewards[0], path, *options)[1])[0]
    best = lines_of(onebase("score", other_rewards[0], path, *options, "--best")[1])[0]
    place = whole["scores"].index(max(whole["scores"]))
    assert (best["response"], best["score"]) == (ROWS[0]["responses"][place], whole["scores"][place])
    assert best["members"] == {name: scores[place] for name, scores in whole["members"].items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--combine", "min"], "Name more with --with"),
        (["--spread-weight", "2"], "Name more with --with"),
        (["--with", "OTHER", "--combine", "median"], "Pass one of: mean, min, mean-minus-variance"),
        (["--with", "OTHER", "--combine", "min", "--spread-weight", "2"], "'spread_weight' is read by rules"),
        (["--with", "FIRST"], "copies always agree"),
        (["--with", "SFT"], "expected a run of stage 'reward', found stage 'sft'"),
    ],
)
def test_an_ensemble_that_makes_no_sense_is_refused(
    onebase: Command, other_rewards: list[Path], tmp_path: Path, options: list[str], message: str
) -> None:
    names = {"FIRST": other_rewards[0], "OTHER": other_rewards[1], "SFT": other_rewards[0].parent / "sft"}
    path = put(tmp_path / "rows.jsonl", *ROWS)
    code, out, err = onebase("score", other_rewards[0], path, *(names.get(option, option) for option in options))
    assert code == 2 and out == "" and message in err and "Traceback" not in err


def test_a_member_on_another_base_is_refused(onebase: Command, other_rewards: list[Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(other_rewards[1], tmp_path / "other" / "reward"))
    content = json.loads((copy / "stage.json").read_text())
    content["parents"]["sft"]["path"] = str((other_rewards[1] / content["parents"]["sft"]["path"]).resolve())
    content["base"]["weights_sha256"] = "0" * 64
    (copy / "stage.json").write_text(json.dumps(content))
    path = put(tmp_path / "rows.jsonl", *ROWS)
    code, out, err = onebase("score", other_rewards[0], path, "--with", copy)
    assert code == 2 and out == "" and "trained on a base with other weights" in err and str(copy) in err


def test_a_row_that_has_what_would_be_added_is_refused(
    onebase: Command, other_rewards: list[Path], tmp_path: Path
) -> None:
    path = put(tmp_path / "rows.jsonl", {**ROWS[1], "spread": 1})
    assert onebase("score", other_rewards[0], path)[0] == 0, "one reward model adds no spread"
    code, _, err = onebase("score", other_rewards[0], path, *with_others(other_rewards))
    assert code == 2 and "has a 'spread' already" in err


# --- onebase eval reward


def test_the_report_of_an_ensemble_measures_every_member_alone(
    onebase: Command, other_rewards: list[Path], tmp_path: Path
) -> None:
    # A file: the built-in rankings of stages with other seeds are other ones.
    rankings = generate.rankings("heldout", 10, 7, responses=(3, 4))
    data = ("--data", put(tmp_path / "rankings.jsonl", *map(row_of, rankings)))
    for place, folder in enumerate(other_rewards):
        assert onebase("eval", "reward", folder, "--out", tmp_path / str(place), *data)[0] == 0
    alone = [json.loads((tmp_path / str(place) / "report.json").read_text()) for place in range(3)]
    options = [*with_others(other_rewards), "--combine", "min", "--out", tmp_path / "several", *data]
    code, printed, err = onebase("eval", "reward", other_rewards[0], *options)
    assert code == 0, err
    report = json.loads((tmp_path / "several" / "report.json").read_text())
    measured = report["ensemble"]
    assert list(measured["members"]) == ["reward", "reward_2", "reward_3"]
    for member, single in zip(measured["members"].values(), alone, strict=True):
        for key in ("mean", "prompts", "pairs"):  # the interval's resamples go by the stage's own seed
            assert member["accuracy"][key] == pytest.approx(single["accuracy"][key], abs=2e-6)
        better = report["accuracy"]["mean"] - single["accuracy"]["mean"]
        assert member["ensemble_is_better_by"]["mean"] == pytest.approx(better, abs=2e-6)
    assert measured["spread"] > 0 and len(measured["stages_sha256"]) == 3
    assert "reward_2 alone" in printed and "apart" in printed
    assert alone[0]["ensemble"] == {"no_data": "there is one reward model"}


# --- onebase best-of-n


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    texts = ["Name a city.", "Sort: b, a.", "Say yes.", "What is the opposite of cold?", "Say no."]
    return put(tmp_path / "prompts.jsonl", *({"prompt": text} for text in texts))


def test_every_prompt_gets_the_best_of_its_own_responses(
    onebase: Command, other_rewards: list[Path], prompts: Path, tmp_path: Path
) -> None:
    policy = other_rewards[0].parent / "ppo"
    small = ("--n", 3, "--max-new-tokens", 8, "--batch", 6)
    code, out, err = onebase("best-of-n", policy, other_rewards[0], prompts, *small, "--all")
    assert code == 0, err
    everything = lines_of(out)
    code, out, err = onebase("best-of-n", policy, other_rewards[0], prompts, *small)
    best = lines_of(out)
    assert [row["prompt"] for row in best] == [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]
    for all_of_it, kept in zip(everything, best, strict=True):
        assert len(all_of_it["responses"]) == 3 and kept["scores"] == all_of_it["scores"]
        place = all_of_it["scores"].index(max(all_of_it["scores"]))
        assert (kept["response"], kept["score"]) == (all_of_it["responses"][place], max(all_of_it["scores"]))
        assert kept["stopped"] == all_of_it["stopped"][place]
    assert len({score for row in everything for score in row["scores"]}) > 3


def test_scores_are_those_of_the_sampled_tokens_by_separate_roles(other_rewards: list[Path]) -> None:
    model = loading.load(other_rewards, CombineSection(rule="min"))
    best_of_n.add_policy(model, other_rewards[0].parent / "sft")
    prompts = [Prompt((Message("user", text),), Origin("here", 1)) for text in ("Name a city.", "Say yes.")]
    sampling = best_of_n.Sampling(n=4, max_new_tokens=6, temperature=0.7, batch=8, seed=5)
    rows = list(best_of_n.answered(model, iter(prompts), sampling, keep_all=True))
    ids = [model.chat.prompt_ids(prompt) for prompt in prompts for _ in range(4)]
    drawn = sample(
        model.roles,
        "policy",
        ids,
        max_new_tokens=6,
        temperature=0.7,
        generator=generator(5, "best-of-n", 0),
        batch=8,
    )
    for place, folder in enumerate(other_rewards):
        single = loading.load([folder])
        expected = score(single.roles, "reward", drawn.episodes.sequences, tokens_per_microbatch=1).tolist()
        name = ["reward", "reward_2", "reward_3"][place]
        scores = [value for row in rows for value in row["members"][name]]
        assert scores == pytest.approx(expected, abs=1e-4)
    lowest = [min(scores) for row in rows for scores in zip(*row["members"].values(), strict=True)]
    assert [value for row in rows for value in row["scores"]] == lowest


def test_rows_come_out_before_later_prompts_are_read(other_rewards: list[Path]) -> None:
    model = loading.load(other_rewards[:1])
    best_of_n.add_policy(model, other_rewards[0].parent / "sft")
    read = []

    def arriving() -> Iterator[Prompt]:
        for line in range(1, 9):
            read.append(line)
            yield Prompt((Message("user", f"Count to {line}."),), Origin("here", line))

    sampling = best_of_n.Sampling(n=2, max_new_tokens=3, temperature=1.0, batch=4, seed=0)
    rows = best_of_n.answered(model, arriving(), sampling, keep_all=False)
    next(rows)
    assert read == [1, 2], "two prompts of two responses make a batch of four"
    assert len(list(rows)) == 7 and len(read) == 8


def test_what_comes_out_is_read_as_demonstrations_and_the_seed_decides(
    onebase: Command, other_rewards: list[Path], tmp_path: Path
) -> None:
    policy, written = other_rewards[0].parent / "sft", {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = tmp_path / f"{name}.jsonl"
        options = ("--split", "rl", "--rows", 4, "--n", 2, "--max-new-tokens", 6, "--seed", seed, "--out", out)
        code, printed, err = onebase("best-of-n", policy, other_rewards[0], "builtin:tasks", *options)
        assert code == 0 and printed == "" and "4 prompts answered" in err
        written[name] = out.read_text()
    assert written["a"] == written["b"] != written["c"]
    # A model of random weights also says nothing, or a NUL, which no demonstration may.
    source = Source(source=str(tmp_path / "a.jsonl"), on_bad_row="drop")
    demonstrations = load([source], Demonstration, seed=0).records
    expected = {row["prompt"]: row["response"] for row in lines_of(written["a"])}
    readable = {prompt: response for prompt, response in expected.items() if response and "\0" not in response}
    assert {demo.prompt.user_text: demo.response for demo in demonstrations} == readable != {}


def test_what_cannot_be_answered_is_refused(
    onebase: Command, other_rewards: list[Path], prompts: Path, tmp_path: Path
) -> None:
    reward, sft = other_rewards[0], other_rewards[0].parent / "sft"
    long = put(tmp_path / "long.jsonl", {"prompt": "Hi."}, {"prompt": "word " * 600})
    empty = put(tmp_path / "empty.jsonl")
    cases: list[tuple[tuple[object, ...], str]] = [
        ((reward, reward, prompts), "expected a policy (a run of stage sft, ppo, dpo), found stage 'reward'"),
        ((sft, sft, prompts), "expected a run of stage 'reward', found stage 'sft'"),
        ((sft, reward, tmp_path / "nowhere.jsonl"), "there is no file"),
        ((sft, reward, long), f"{long}:2: the prompt is"),
        ((sft, reward, empty), "there are no prompts"),
        ((sft, reward, prompts, "--max-new-tokens", 512), "the model has 512 positions"),
        ((sft, reward, prompts, "--out", sft / "best.jsonl"), "lies in"),
        ((sft, reward, prompts, "--combine", "min"), "Name more with --with"),
    ]
    for arguments, message in cases:
        code, _, err = onebase("best-of-n", *arguments)
        assert code == 2 and message in err and "Traceback" not in err, err


def test_a_policy_on_another_base_is_refused(
    onebase: Command, other_rewards: list[Path], prompts: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(other_rewards[0].parent / "sft", tmp_path / "other" / "sft"))
    content = json.loads((copy / "stage.json").read_text())
    content["base"]["weights_sha256"] = "0" * 64
    (copy / "stage.json").write_text(json.dumps(content))
    code, out, err = onebase("best-of-n", copy, other_rewards[0], prompts)
    assert code == 2 and out == "" and "trained on a base with other weights" in err


def test_a_temperature_near_zero_draws_the_greedy_response_nearly_every_time(
    onebase: Command, other_rewards: list[Path], prompts: Path
) -> None:
    agreeing: dict[float, list[Any]] = {}
    for temperature in (0.01, 1.0):
        options = ("--n", 2, "--max-new-tokens", 6, "--temperature", temperature, "--all")
        code, out, _ = onebase("best-of-n", other_rewards[0].parent / "sft", other_rewards[0], prompts, *options)
        assert code == 0
        agreeing[temperature] = [row for row in lines_of(out) if len(set(row["responses"])) == 1]
        rows = len(lines_of(out))
    # A few have two tokens that are nearly as likely, and a hundred times their difference is still little.
    assert len(agreeing[0.01]) >= rows / 2 > len(agreeing[1.0])
    assert torch.tensor([row["scores"] for row in agreeing[0.01]]).std(dim=1).max() < 1e-3


def test_prompts_that_a_further_member_was_trained_on_are_not_in_the_report(
    onebase: Command, other_rewards: list[Path], tmp_path: Path
) -> None:
    (trained, *_) = heldout.training_of(loading.recipe_of(record.read(other_rewards[1]))).training
    path = put(tmp_path / "rankings.jsonl", *map(row_of, [*generate.rankings("heldout", 3, 7), trained]))
    options = ["--with", other_rewards[1], "--data", path, "--out", tmp_path / "out"]
    code, _, err = onebase("eval", "reward", other_rewards[0], *options)
    assert code == 0 and "1 rankings are left out, because their prompts were trained on." in err, err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["rankings_of_trained_prompts"], report["rankings"]) == (1, 3)
    alone = put(tmp_path / "trained.jsonl", row_of(trained))
    code, _, err = onebase("eval", "reward", other_rewards[1], "--data", alone, "--out", tmp_path / "none")
    assert code == 2 and "all 1 held-out rankings are of prompts that were trained on" in err
    assert not (tmp_path / "none").exists()
