"""When memory runs out: micro-batches are halved, the batch stays what it is, and the run remembers.

Gradients of micro-batches add up to exactly the batch's, so that cutting them changes time and rounding, and no result
that the recipe decides.
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
    """The smallest micro-batch there is does not fit."""


class Halving:
    """How often micro-batches have been halved so far; kept in checkpoints, for what did not fit will not fit again."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def fit(self, work: Callable[[int], T], *, size: int) -> T:
        """`work(count)`, and again with one more for every time that memory runs out; what it returns.

        work: does all of it anew with its sizes divided by 2^count. size: the largest of them; TooLargeError when
        even a size of 1 does not fit.
        """
        before = self.count
        while True:
            try:
                return work(self.count)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                said = str(error).strip().splitlines()
            # Not before the `except` has ended: the traceback holds the tensors of the attempt.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if size >> self.count <= 1:
                self.count = before  # what is saved now may be gone on with where there is more memory
                raise TooLargeError(
                    f"one sequence at a time does not fit into memory ({said[0] if said else 'out of memory'}). "
                    "Turn on activation checkpointing, lower `limits`, or take base.quantization=nf4. "
                    "What was saved before stands."
                )
            self.count += 1
            say(f"out of memory: micro-batches are halved (1/{2**self.count} of the recipe's); the batch is as before.")


def halved(size: int, count: int) -> int:
    """A size after `count` halvings, 1 at least."""
    return max(1, size >> count)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or here."""
    # A C++ library's std::bad_alloc arrives as MemoryError, or as a RuntimeError with that text.
    return isinstance(error, MemoryError) or should_reduce_batch_size(error) or "bad_alloc" in str(error)
