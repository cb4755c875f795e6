"""Random numbers: one seed in the recipe, a stream of its own for every use.

What a use draws never depends on what ran before it, so adding a print of samples does not change a training run.
"""

import hashlib
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def stream(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one use, such as stream(seed, "rollout", step): stable over machines and versions."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seeded_order(count: int, seed: int) -> list[int]:
    """Positions 0 .. count-1, sorted by a hash of seed and position: more positions never reorder the first ones."""
    return sorted(range(count), key=lambda index: hashlib.sha256(f"{seed}/order/{index}".encode()).digest())


def generator(seed: int, *names: str | int) -> "torch.Generator":
    """A CPU generator for one use."""
    import torch

    return torch.Generator().manual_seed(stream(seed, *names))


def seed_everything(seed: int) -> None:
    """The global generators of python, numpy and torch, for libraries that draw from them."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The global random number generators of python, numpy, torch and the GPU that computes, as a tree for `save`."""
    import numpy
    import torch

    kind, keys, position, has_gauss, gauss = numpy.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(numpy.asarray(keys).astype(numpy.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put the generators back to what `random_state` has seen."""
    import numpy
    import torch

    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype(numpy.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    for device_state in state["cuda"][:1] if torch.cuda.is_available() else ():
        torch.cuda.set_rng_state(device_state)
