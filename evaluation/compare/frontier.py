"""The frontier of reward against KL: the most reward at each KL (Gao et al. 2022, https://arxiv.org/abs/2210.10760,
compare policies at equal KL in the same way)."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def frontier(items: Iterable[T], at: Callable[[T], tuple[float, float]]) -> list[T]:
    """The items that no other one dominates (at least their reward at no more KL), by rising KL; of equal ones the
    first. at: KL and reward of an item."""
    best: list[T] = []
    for item in sorted(items, key=lambda item: (at(item)[0], -at(item)[1])):
        if not best or at(item)[1] > at(best[-1])[1]:
            best.append(item)
    return best
