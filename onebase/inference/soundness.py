"""Tried on a loaded base before a stage begins: that a sequence gets the same whatever shares its forward.

Configurations do not say it all. A model may look ahead (an encoder
loaded as a decoder), let padding into its state, or use another cache than the given one. It would train and sample
silently.
"""

import contextlib
from collections.abc import Iterator

import torch

from onebase.errors import BaseError, InputError
from onebase.inference.sampling import sample
from onebase.inference.scoring import logprobs
from onebase.model.forwards import PACKING_TOLERANCE, trial_sequences
from onebase.model.roles import Roles

FAILURES = (ValueError, TypeError, RuntimeError, LookupError, AttributeError)

SAMPLED = 5
"""Tokens of each response that is tried."""

SAMPLING_TOLERANCE = {False: 1e-2, True: 0.5}
"""Nats a token between sampling and scoring; True where the base computes in bf16. A cache that is not read is off by
far more."""


def require_sound(roles: Roles) -> None:
    """BaseError where rows depend on each other, or sampling gives other log-probabilities than
    scoring. Leaves nothing behind, in the model or in a generator."""
    name = type(roles.base.model).__name__
    with torch.no_grad(), _leaving_no_trace(roles):
        try:
            _require_rows_apart(roles, name)
            _require_sampling(roles, name)
        except (InputError, torch.OutOfMemoryError):
            raise
        except FAILURES as error:
            raise BaseError(
                f"base.model: {name} does not take the forwards that roles need (caches, padding): "
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}. Use another model, such "
                "as Llama, Qwen or SmolLM."
            ) from error


@contextlib.contextmanager
def _leaving_no_trace(roles: Roles) -> Iterator[None]:
    """`can_pack` exchanges the attention where it finds that it can: a stage that has not read it keeps its own."""
    model, known = roles.base.model, "can_pack" in vars(roles.forwards)
    before = model.config._attn_implementation or "eager"
    try:
        yield
    finally:
        if not known and vars(roles.forwards).pop("can_pack", False):
            model.set_attn_implementation(before)


def _require_rows_apart(roles: Roles, name: str) -> None:
    """No real token looks at later tokens or other rows."""
    device = roles.base.device
    sequences = trial_sequences(roles.base.model)
    with roles.active(None):
        rows = roles.forwards.hidden_states(roles.forwards.pad(sequences))
        for row, ids in zip(rows, sequences, strict=True):
            alone = roles.forwards.hidden_states(torch.tensor([ids], device=device))[0].float()
            # The median: rounding may send a token to another expert; what depends on the batch does so in all tokens.
            apart = (row[: len(ids)].float() - alone).abs().amax(dim=1).median() / alone.abs().max()
            if not bool(apart <= PACKING_TOLERANCE[row.dtype]):
                raise BaseError(
                    f"base.model: {name} gives a sequence other states when padding follows it or another one "
                    f"shares its batch (by {float(apart):.2g} of the largest): scores would depend on the batch. "
                    "Use a causal language model, such as Llama, Qwen or SmolLM."
                )


def _require_sampling(roles: Roles, name: str) -> None:
    first, second = trial_sequences(roles.base.model)
    drawn = sample(
        roles,
        None,
        [first[:9], second[:12]],
        max_new_tokens=SAMPLED,
        temperature=1.0,
        generator=torch.Generator().manual_seed(0),
        batch=2,
    )
    scored = logprobs(roles, None, drawn.episodes, temperature=1.0, tokens_per_microbatch=64)
    apart = float((scored.cpu() - drawn.logprobs)[drawn.episodes.mask].abs().median())
    if not apart <= SAMPLING_TOLERANCE[roles.base.computes_in_bf16]:
        raise BaseError(
            f"base.model: {name} samples with other log-probabilities than it scores with (by {apart:.2g} nats a "
            "token): its cache is not the one that Onebase gives it. Use a model with attention, such as Llama, Qwen "
            "or SmolLM."
        )
