"""Our side of the comparison with AgileRL, the rewards that both sides share, and what is run. The peer's side needs an
environment of its own."""

import importlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(scope="module")
def load() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")

        def load(name: str) -> ModuleType:
            return importlib.import_module(name)

        yield load


@pytest.fixture(scope="module")
def paths(load: Any, tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> dict[str, Any]:
    """Prompts and stages on the tiny base."""
    work = tmp_path_factory.mktemp("agilerl")
    settings = {"work": str(work), "model": str(tiny_base_folder), "prompts": 6, "prompt_tokens": 200}
    told = load("ppo_workload").write_shared(settings)
    load("ppo_workload").prepare(settings | {"bases": {"plain": {"quantizations": ["fp32", "nf4"]}}})
    assert told == {"folder": str(tiny_base_folder)}
    return settings | {"prompts": str(work / "prompts.jsonl"), "peer_prompts": str(work / "peer.json")}


def settings_of(load: Any, paths: dict[str, Any], **changes: Any) -> dict[str, Any]:
    plan = load("agilerl_plan")
    return {**plan.common(plan.QUICK), "response_tokens": 8, **changes, **paths}


@pytest.mark.parametrize(("quantization", "value"), [("fp32", "adapter"), ("fp32", "shared"), ("nf4", "shared")])
def test_our_side_runs_against_the_clock(load: Any, paths: dict[str, Any], quantization: str, value: str) -> None:
    plan = load("agilerl_plan")
    for changes in ({}, plan.OURS_SMALLEST):
        settings = settings_of(load, paths, quantization=quantization, value=value, **changes)
        measured = load("ppo_sides").train_ours(settings)
        assert measured["episodes"] == settings["batch"] * (settings["steps"] - 1)
        # It starts where the peer does, at the base: what is left is how decoding and scoring round.
        assert abs(measured["first_kl"]) < 1e-4
        assert 0 < measured["response_length"] <= 8
        assert measured["score"] in {0.0, 0.25, 0.5, 0.75, 1.0}
        assert ("score_reward" in measured["split"]) and ("train_value" in measured["split"]) == (value == "adapter")


@pytest.mark.parametrize(("wanted", "steps", "reached"), [(0.0, 2, True), (1.1, 3, False)])
def test_our_side_learns_until_the_score_is_there(
    load: Any, paths: dict[str, Any], wanted: float, steps: int, reached: bool
) -> None:
    batch = load("agilerl_plan").QUICK.batch
    learning = {"wanted_score": wanted, "window": 2 * batch, "seconds_at_most": 1e6, "steps": 3, "value": "shared"}
    measured = load("ppo_sides").learn_ours(settings_of(load, paths, function="longest", **learning))
    assert (measured["reached"], measured["episodes"], len(measured["scores"])) == (reached, batch * steps, steps)
    assert measured["seconds"] > 0


def test_the_peer_gets_each_prompt_once_before_one_comes_again(load: Any) -> None:
    batches = list(itertools.islice(load("agilerl_peer").batches(range(6), 4, 0), 6))
    # Its loop moves the reference when all prompts have been handed out: here after one and a half batches.
    assert [passes for passes, _ in batches] == [0, 0, 1, 2, 2, 3]
    handed_out = [prompt for _, batch in batches for prompt in batch]
    for start in range(0, 24, 6):
        assert sorted(handed_out[start : start + 6]) == list(range(6))


def test_the_peer_learns_from_what_it_sampled_and_nothing_else(load: Any) -> None:
    ids, masks = load("agilerl_peer").learnable([{"ids": [5, 6, 7]}, {"ids": [8]}], [[5, 6, 7, 1, 2], [8, 3]])
    assert [row.tolist() for row in ids] == [[[5, 6, 7, 1, 2]], [[8, 3]]]
    # Of all tokens but the first, as its own masks have it: 1 and 2 were sampled, and 3.
    assert [mask.tolist() for mask in masks] == [[[False, False, True, True]], [[True]]]


def test_time_ends_a_run_that_does_not_learn(load: Any) -> None:
    goal = load("step_marks").Goal({"wanted_score": 0.8, "window": 8, "batch": 4, "seconds_at_most": 5.0})
    ended = []
    for score in (0.9, 0.6, 0.9, 0.5):
        goal.add(score=score, kl=score / 10, seconds=1.5, response_length=3.0)
        ended.append((round(goal.score, 6), goal.is_over))
    # A step alone is no window of eight episodes: 0.9 in the first one is no end.
    assert ended == [(0.9, False), (0.75, False), (0.75, False), (0.7, True)]
    assert goal.result()["kl"] == pytest.approx(0.07)  # of the last window
    assert goal.result()["reached"] is False


@pytest.mark.parametrize(
    ("prompt", "response", "constant", "longest"),
    [
        ("Name a colour and a river.", "Blue AND the river Rhine", 1.0, 0.0),
        ("Name a colour and a river.", "My colour: sandy", 0.0, 1.0),
        ("12?", "", 0.0, 0.0),
    ],
)
def test_a_reward_is_a_word_that_stands_there(
    load: Any, prompt: str, response: str, constant: float, longest: float
) -> None:
    rewards = load("word_rewards")
    told = SimpleNamespace(user_text=prompt)
    assert (rewards.constant(told, response), rewards.longest(told, response)) == (constant, longest)


def test_the_whole_budget_is_known_before_anything_runs(load: Any) -> None:
    plan, bench = load("agilerl_plan"), load("ppo_vs_agilerl")

    def planned(sizes: Any, fastest: str) -> list[Any]:
        return [*plan.tries(sizes).values(), *bench.later(["speed", "learning"], sizes, fastest)]

    for fastest in plan.PEERS:
        assert plan.minutes_at_most(planned(plan.QUICK, fastest)) <= 20
        full = planned(plan.FULL, fastest)
        assert max(run.seconds_at_most for run in full) <= 3600
        # Kept under a name of its own each: no run is taken for another.
        assert len({run.key("base", 2) for run in full}) == len(full)
    eight_at_once = plan.tries(plan.FULL)["8 at once"]
    assert len({eight_at_once.key("base", 2), eight_at_once.key("base", 1), eight_at_once.key("other", 2)}) == 3


def test_a_finished_run_is_kept_and_not_run_again(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, module = load("agilerl_plan"), load("ppo_vs_agilerl")
    arguments = SimpleNamespace(results=tmp_path / "kept", model="base", threads=1)
    bench = module.Bench(arguments, Path("python"), tmp_path)
    started = []

    def start(side: str, task: str, settings: dict[str, Any], seconds: float) -> dict[str, Any]:
        started.append(task)
        return {"seconds_per_episode": 1.0, "cpu_seconds_per_episode": 2.0, "peak_rss_bytes": 3, "load": [0, 0]}

    monkeypatch.setattr(bench, "start", start)
    run = plan.Run("ours", "ours", "ours", {"rate": 1e-4}, 1.0)
    assert bench.kept(run) is None
    measured = bench.run(run)
    assert bench.run(run) == measured == bench.kept(run)
    assert started == ["ours"]
    assert bench.kept(plan.Run("ours", "ours", "ours", {"rate": 3e-4}, 1.0)) is None
    assert len(bench.commits([run])) == 1


def test_a_rate_is_chosen_for_each_side_on_a_seed_that_is_not_reported(load: Any) -> None:
    plan = load("agilerl_plan")
    outcomes = {  # (side, rate): reached, seconds, score
        ("ours", 1e-3): (False, 300.0, 0.7),
        ("ours", 1e-4): (True, 90.0, 0.8),
        ("ours", 3e-4): (True, 60.0, 0.8),
        ("peer", 1e-3): (False, 300.0, 0.3),
        ("peer", 1e-4): (False, 280.0, 0.5),
        ("peer", 3e-4): (False, 200.0, 0.1),
    }
    runs = [run for run in plan.tuning(plan.FULL, {}) if run.settings["function"] == "longest"]
    assert {run.settings["seed"] for run in runs} == {plan.TUNED_ON} and plan.TUNED_ON not in plan.FULL.seeds
    keys = ("reached", "seconds", "score")
    tuned = [(run, dict(zip(keys, outcomes[run.side, run.settings["rate"]], strict=True))) for run in runs]
    chosen = plan.chosen_rates(tuned)
    assert chosen == {"longest": {"ours": 3e-4, "peer": 1e-4}}
    last = plan.probes(plan.FULL, {}, chosen)[-2:]
    assert [(run.side, run.settings["rate"], run.settings["seed"]) for run in last] == [
        ("ours", 3e-4, 2),
        ("peer", 1e-4, 2),
    ]


def test_ratios_are_taken_within_a_round(load: Any) -> None:
    tables = load("agilerl_tables")
    names = ("seconds_per_episode", "cpu_seconds_per_episode", "tokens_per_second", "response_length")

    def run(speed: float, peak: int) -> dict[str, Any]:
        return {**dict.fromkeys(names, 1 / speed), "episodes_per_second": speed, "peak_rss_bytes": peak, "load": [1, 2]}

    rounds = [{"peer": run(a, 2**31), "ours": run(b, 2**30)} for a, b in ((1, 3), (2, 4), (4, 20))]
    sides = tables.compare(rounds)
    assert sides["ours"]["episodes ratio"] == {"median": 3.0, "low": 2.0, "high": 5.0}
    assert sides["ours"]["memory ratio"]["median"] == 0.5
    assert (sides["peer"]["seconds"], sides["peer"]["GiB"], sides["peer"]["load"]) == (0.5, 2.0, 2)
    assert "episodes ratio" not in sides["peer"]


def test_a_probe_tells_what_the_seeds_that_reached_it_took(load: Any) -> None:
    plan, tables, homes = load("agilerl_plan"), load("agilerl_tables"), load("homes")
    keys = ("episodes", "kl", "score", "response_length", "first_response_length")

    def learnt(seed: int, side: str, reached: bool, seconds: float) -> Any:
        settings = {"function": "longest", "rate": 1e-4, "seed": seed}
        result = {**dict.fromkeys(keys, 0.5), "reached": reached, "seconds": seconds, "load": [1, 2]}
        return plan.Run("name", side, "learn", settings, 1.0), result

    probes = tables.probes([learnt(0, "ours", True, 30), learnt(1, "ours", False, 90), learnt(0, "peer", False, 80)])
    machine = {"cores": 2, "cpu": "a CPU", "memory_gib": 24}
    home = tables.home("python x", ["c"], machine, {}, {"probes": probes})
    shown = homes.markdown(homes.Home.parse(home.dump()).render("probes"))
    assert shown[2].startswith("| longest | ours | 0.0001 | 1 of 2 | 30 (30 to 30) |")
    assert shown[3].startswith("| longest | AgileRL | 0.0001 | 0 of 1 | 80 (80 to 80) |")
