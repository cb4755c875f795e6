"""The moving average by hand, and distinct-n by counting."""

from collections.abc import Callable

import pytest
import torch

from onebase.model.roles import Roles
from onebase.sequences.episodes import Episodes
from ppo.recipe.steering import EmaSection
from ppo.steering import ema
from ppo.steering.evaluate import distinct


def test_the_average_keeps_its_share_at_every_step_of_the_optimiser(make_roles: Callable[..., Roles]) -> None:
    """Two steps by hand: e = d e + (1 - d) p, once after each."""
    roles = make_roles("policy").train("policy")
    optimizer = torch.optim.SGD(roles.parameters("policy"), lr=0.5)
    ema.start(roles, EmaSection(decay=0.9), optimizer)
    expected = [parameter.detach().clone() for parameter in roles.parameters("policy")]
    draws = torch.Generator().manual_seed(0)
    for _ in range(2):
        for parameter in roles.parameters("policy"):
            parameter.grad = torch.randn(parameter.shape, generator=draws)
        optimizer.step()
        expected = [
            0.9 * old + 0.1 * new.detach() for old, new in zip(expected, roles.parameters("policy"), strict=True)
        ]
    for average, by_hand in zip(roles.parameters("ema"), expected, strict=True):
        torch.testing.assert_close(average.detach(), by_hand)
        assert not average.requires_grad


@pytest.mark.parametrize(
    ("responses", "n", "expected"),
    [
        ([[5, 5, 5, 5]], 1, 1 / 4),
        ([[5, 6, 5, 6]], 2, 2 / 3),
        ([[5, 6], [6, 5]], 2, 1.0),
        ([[5, 6], [5, 6, 7]], 2, 2 / 3),
        ([[5]], 2, 1.0),
    ],
)
def test_distinct_is_the_share_of_different_ngrams_within_responses(
    responses: list[list[int]], n: int, expected: float
) -> None:
    episodes = Episodes.of([[1]] * len(responses), responses, pad_id=0)
    assert distinct(episodes, n) == pytest.approx(expected)
