"""The reward stage on the tiny model: one score per response, whatever the batch, before and after reload."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from data.chat.conversations import EncodedRanking
from data.records import Message, Origin, Prompt, Ranking
from onebase.inference.scoring import score
from onebase.model.roles import Roles
from onebase.run import record
from reward.losses import bradley_terry_loss
from reward.recipe import RewardRecipe
from reward.scale import center
from reward.train import backward, read_data, start_roles
from tests.factories import load_base_of, rows_of

MakeRecipe = Callable[..., RewardRecipe]


def start(recipe: RewardRecipe) -> Roles:
    return start_roles(load_base_of(recipe), record.read(recipe.parents.sft, stage="sft"), recipe)


def encoded(prompt: Sequence[int], responses: Sequence[Sequence[int]], tiers: Sequence[int]) -> EncodedRanking:
    text = Prompt(messages=(Message("user", "q"),), origin=Origin("here", 1))
    names = tuple(f"answer {index}" for index in range(len(responses)))
    ranking = Ranking(prompt=text, responses=names, tiers=tuple(tiers))
    return EncodedRanking(ranking, tuple(prompt), tuple(tuple(response) for response in responses))


RANKINGS = [
    encoded([5, 6, 7], [[8, 9, 2], [10, 2], [11, 12, 13, 14, 2], [15, 2]], [0, 1, 2, 3]),
    encoded([20, 21], [[22, 2], [23, 24, 2], [25, 2]], [1, 0, 1]),
    encoded([30, 31, 32, 33, 34], [[35, 2], [36, 37, 38, 2]], [0, 1]),
    encoded([40], [[41, 2], [42, 43, 2], [44, 2], [45, 46, 2], [47, 2]], [2, 0, 1, 3, 2]),
]


def gradients(roles: Roles) -> list[torch.Tensor]:
    return [p.grad.clone() for p in roles.parameters("reward") if p.grad is not None]


def zero(roles: Roles) -> None:
    for parameter in roles.parameters("reward"):
        parameter.grad = None


@pytest.mark.parametrize("layout", ["packed", "padded", "both"])
def test_one_microbatch_of_all_rankings_gives_the_gradients_of_one_each(
    make_quantized: MakeRecipe, layout: str
) -> None:
    roles = start(make_quantized())
    assert roles.forwards.can_pack
    roles.forwards.can_pack = layout == "packed"
    backward(roles, RANKINGS, tokens_per_microbatch=10_000, loss_of=bradley_terry_loss)
    whole = gradients(roles)
    zero(roles)
    roles.forwards.can_pack = layout != "padded"
    backward(roles, RANKINGS, tokens_per_microbatch=1, loss_of=bradley_terry_loss)
    parts = gradients(roles)
    largest = max(float(gradient.abs().max()) for gradient in whole)
    assert largest > 0
    for at_once, other in zip(whole, parts, strict=True):
        assert float((at_once - other).abs().max()) <= 1e-5 * largest


def test_the_loss_is_instructgpts_written_out_pair_by_pair(make_quantized: MakeRecipe) -> None:
    roles = start(make_quantized())
    loss, accuracy = backward(roles, RANKINGS, tokens_per_microbatch=10_000, loss_of=bradley_terry_loss)
    expected, right = [], []
    for ranking in RANKINGS:
        scores = [
            float(score(roles, "reward", [sequence], tokens_per_microbatch=999)) for sequence in ranking.sequences
        ]
        tiers = ranking.ranking.tiers
        pairs = [(i, j) for i in range(len(tiers)) for j in range(len(tiers)) if tiers[i] < tiers[j]]
        expected.append(sum(math.log1p(math.exp(scores[j] - scores[i])) for i, j in pairs) / len(pairs))
        right.append(sum(scores[i] > scores[j] for i, j in pairs) / len(pairs))
    assert loss == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    assert accuracy == pytest.approx(sum(right) / len(right), abs=1e-6)


def test_each_response_goes_through_the_model_once_however_many_pairs_it_is_in(make_quantized: MakeRecipe) -> None:
    roles = start(make_quantized())
    roles.forwards.can_pack = False
    rows = 0

    def count(module: torch.nn.Module, arguments: tuple, keywords: dict) -> None:
        nonlocal rows
        rows += keywords["input_ids"].shape[0]

    handle = roles.forwards.trunk.register_forward_pre_hook(count, with_kwargs=True)
    backward(roles, RANKINGS, tokens_per_microbatch=10_000, loss_of=bradley_terry_loss)
    handle.remove()
    assert rows == sum(len(ranking.sequences) for ranking in RANKINGS)
    assert rows < 2 * sum(len(ranking.ranking.pairs) for ranking in RANKINGS)


def test_demonstrations_score_zero_on_average_after_centring_and_differences_stay(make_quantized: MakeRecipe) -> None:
    recipe = make_quantized()
    roles, data = start(recipe), read_data(recipe)
    sequences = [tuple(demonstration.input_ids) for demonstration in data.demonstrations]
    before = score(roles, "reward", sequences, tokens_per_microbatch=512)
    shift = center(roles, data.demonstrations, tokens_per_microbatch=512)
    after = score(roles, "reward", sequences, tokens_per_microbatch=512)
    assert float(after.mean()) == pytest.approx(0, abs=1e-5)
    assert torch.allclose(after - before, torch.tensor(shift), atol=1e-5)


def test_scores_after_reload_are_the_bits_of_those_after_training(
    finished_run: Path, make_quantized: MakeRecipe
) -> None:
    """The samples that the stage wrote right after training, against the adapter and head from disk."""
    recipe = make_quantized()
    rows = rows_of(finished_run / "reward", "samples")
    roles = Roles(load_base_of(recipe)).load("reward", finished_run / "reward" / "adapter")
    seen = 0
    for ranking in read_data(recipe).held_out[:4]:
        scores = score(
            roles, "reward", ranking.sequences, tokens_per_microbatch=recipe.train.tokens_per_microbatch
        ).tolist()
        for response, value in zip(ranking.ranking.responses, scores, strict=True):
            assert rows[seen]["response"] == response
            assert rows[seen]["score"] == value, "a score differs after reload"
            seen += 1
    assert seen == len(rows) > 0


def test_the_head_starts_small_and_its_bias_is_not_learned(make_quantized: MakeRecipe) -> None:
    roles = start(make_quantized())
    head = roles.heads["reward"]
    assert float(head.weight.detach().std()) == pytest.approx((len(head.weight) + 1) ** -0.5, rel=0.3)
    assert head.weight.requires_grad and not head.bias.requires_grad
