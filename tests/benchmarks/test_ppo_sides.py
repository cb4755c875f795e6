"""What PPO's benchmark computes from what was measured, and what it does to the peer so that both sides stop alike."""

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        return importlib.import_module(name)

    return load


def test_the_chosen_stop_token_makes_responses_as_long_as_asked(load: Any) -> None:
    responses = [[5, 7, 5, 9, 5, 5], [7, 9, 5, 5, 5, 5], [5, 5, 5, 9, 5, 5], [5, 5, 5, 5]]
    # 5 would end them after 1, 3, 1 and 1 tokens; 7 after 2, 1, 6 and 4; 9 after 4, 2, 4 and 4.
    workload = load("ppo_workload")
    assert workload.choose_stop(responses, 1.4) == (5, 1.5)
    assert workload.choose_stop(responses, 3.3) == (7, 3.25)
    assert workload.choose_stop(responses, 3.6) == (9, 3.5)


def test_the_first_step_only_warms_up(load: Any) -> None:
    marks = load("ppo_sides").Marks()
    steps = [(100.0, 10.0, 50.0, 9.0), (104.0, 16.0, 6.0, 1.0), (108.0, 18.0, 10.0, 3.0)]
    marks.rows = [
        {"wall": wall, "cpu": cpu, "response_length": length, "kl": kl, "score": 0.5, "time/rollout": length / 4}
        for wall, cpu, length, kl in steps
    ]
    measured = marks.measured(batch=4)
    assert measured["episodes"] == 8
    assert measured["seconds_per_episode"] == 1.0
    assert measured["tokens_per_second"] == 8.0  # a mean of 8 tokens an episode, one episode a second
    assert measured["cpu_seconds_per_episode"] == 1.0
    assert (measured["kl"], measured["first_kl"]) == (2.0, 9.0)
    assert measured["split"] == {"rollout": 0.5}  # 1.5 and 2.5 s a step, 4 episodes a step


def test_the_peer_stops_at_every_stop_token(load: Any) -> None:
    """Its own truncation knows one token. Both have to see the same responses, or one side would do less."""
    queries = torch.tensor([[8, 8], [8, 8], [8, 8]])
    drawn = torch.tensor([[5, 2, 6, 6], [5, 5, 5, 5], [3, 2, 0, 0]])

    def batch_generation(model: Any, queries: Any, batch: int, pad: int, generation: Any) -> Any:
        assert generation.eos_token_id == [2, 3]
        return torch.cat([queries, drawn], dim=1), None

    module = SimpleNamespace(batch_generation=batch_generation, truncate_response=None, get_reward=None, forward=None)
    parts = load("ppo_trl_side").Parts()
    parts.watch(module, [2, 3])
    module.batch_generation(None, queries, 3, 0, SimpleNamespace())
    assert parts.lengths == [2, 4, 1]
    truncate: Any = module.truncate_response
    assert truncate(2, 0, drawn).tolist() == [[5, 2, 0, 0], [5, 5, 5, 5], [3, 0, 0, 0]]


def test_ratios_are_taken_within_a_round(load: Any) -> None:
    """A busy minute slows down both sides of its round."""

    def runs(*speeds: float) -> list[dict[str, float]]:
        return [
            {"episodes_per_second": speed, "tokens_per_second": 10 * speed, "peak_rss_bytes": 100 * speed}
            for speed in speeds
        ]

    summary = load("ppo_vs_trl").summarise(runs(4.0, 2.0, 9.0), runs(2.0, 1.0, 3.0))
    assert summary["episodes_ratio"] == {"median": 2.0, "low": 2.0, "high": 3.0}
    assert summary["memory_ratio"] == 3.0  # the largest peak of each side


@pytest.mark.parametrize(("power", "factor"), [(1.0, 3.0), (0.5, 2.0), (0.0, 7.0), (2.0, 0.1)])
def test_the_slope_is_the_exponent(load: Any, power: float, factor: float) -> None:
    sizes = [8, 16, 64, 128]
    assert load("scaling").slope(sizes, [factor * size**power for size in sizes]) == pytest.approx(power, abs=1e-9)
