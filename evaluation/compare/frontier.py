"""The frontier of reward against KL: what can be had for what price (Gao et al. 2022, https://arxiv.org/abs/2210.10760,
compare policies at equal KL in the same way)."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def frontier(items: Iterable[T], at: Callable[[T], tuple[float, float]]) -> list[T]:
    """Those for which no other has at least the reward at no more KL, by rising KL; one of several at one place. at: KL
    and reward of an item."""
    found: list[T] = []
    for one in sorted(items, key=lambda item: (at(item)[0], -at(item)[1])):
        if not found or at(one)[1] > at(found[-1])[1]:
            found.append(one)
    return found
