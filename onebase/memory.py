"""How much goes through the model at once, and what happens when memory runs out.

Gradients of micro-batches add up to exactly the batch's. Halving the micro-batches changes time and rounding, and no
result that the recipe decides.
"""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

from onebase.errors import InputError
from onebase.terminal import say

T = TypeVar("T")


class TooLargeError(InputError):
    """Even the smallest micro-batch does not fit."""


class Budget:
    """Sizes of micro-batches and of decoding, all halved together when memory runs out.

    Checkpoints keep `halvings`: what did not fit once will not fit again.
    """

    def __init__(self, *, tokens: int = 1, episodes: int = 1, halvings: int = 0) -> None:
        """tokens: of a micro-batch. episodes: decoded at once. Both as the recipe has them."""
        self._sizes = tokens, episodes
        self.halvings = halvings

    @property
    def halvings(self) -> int:
        """How often the recipe's sizes have been halved."""
        return self._halvings

    @halvings.setter
    def halvings(self, count: int) -> None:
        self._halvings = count
        self.tokens, self.episodes = map(self.halved, self._sizes)

    def halved(self, size: int) -> int:
        """A size of the recipe's as it is now, 1 at least."""
        return max(1, size >> self._halvings)

    def fit(self, work: Callable[[], T], *, size: int | None = None) -> T:
        """`work()`, repeated with half the sizes each time that memory runs out; returns its result.

        work: starts from the beginning at every call. size: the largest size that it uses; None: the budget's.
        TooLargeError when even a size of 1 does not fit.
        """
        before, largest = self._halvings, size or max(self._sizes)
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                lines = str(error).strip().splitlines()
            # Not before the `except` has ended: the traceback holds the tensors of the attempt.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if largest >> self.halvings <= 1:
                self.halvings = before  # a run that resumes from here may have more memory
                raise TooLargeError(
                    f"one sequence at a time does not fit into memory ({lines[0] if lines else 'out of memory'}). "
                    "Turn on activation checkpointing, lower `limits`, or take base.quantization=nf4. "
                    "The last checkpoint is unharmed."
                )
            self.halvings += 1
            share = f"1/{2**self.halvings} of the recipe's"
            say(f"out of memory: micro-batches are halved ({share}); the batch is as before.")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or here."""
    # A C++ library's std::bad_alloc arrives as MemoryError, or as a RuntimeError with that text.
    return isinstance(error, MemoryError) or should_reduce_batch_size(error) or "bad_alloc" in str(error)
