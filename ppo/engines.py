"""A custom sampling engine, called with the same safeguards as a custom reward function.

Its samples are checked before they are trained on. An engine that leaves a prompt out, or answers another one, would
teach the wrong thing silently.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from onebase.custom.custom_calls import CallError, call, text_of
from onebase.errors import CodeError
from onebase.inference.sampling import Sample
from onebase.memory import is_out_of_memory
from onebase.model.roles import Roles
from onebase.sequences.episodes import Episodes
from onebase.tracking.usage import Clock

FIX = "Fix the engine."


class EngineError(CodeError):
    """An engine that breaks the contract of `onebase.inference.sampling.Engine`."""


@dataclass(frozen=True)
class CustomEngine:
    """As `onebase.inference.sampling.Engine`."""

    function: Callable[..., Any]
    name: str
    seconds: float
    """Longest time, for each prompt of a call."""

    def __call__(
        self,
        roles: Roles,
        role: str | None,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        generator: torch.Generator,
        batch: int,
        value_head: str | None = None,
        clock: Clock | None = None,
    ) -> Sample:
        def draw() -> tuple[Any, str]:
            sample = self.function(
                roles,
                role,
                copy.deepcopy(prompts),
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                generator=generator,
                batch=batch,
                value_head=value_head,
                clock=clock,
            )
            return sample, "" if isinstance(sample, Sample) else text_of(sample)

        try:
            # When memory runs out the caller tries again with a smaller batch.
            sample, text = call(
                draw,
                self.function,
                seconds=self.seconds * len(prompts),
                seed=generator.initial_seed(),
                passes=is_out_of_memory,
            )
        except CallError as error:
            raise EngineError(f"sampling.engine '{self.name}' {error}, for {len(prompts)} prompts. {FIX}") from error
        if not isinstance(sample, Sample):
            raise EngineError(
                f"sampling.engine '{self.name}' returned {text} where a Sample is expected "
                f"(onebase.inference.sampling). {FIX}"
            )
        vocabulary = roles.base.model.config.vocab_size
        problem = problem_of(sample, prompts, vocabulary=vocabulary, longest=max_new_tokens)
        if problem is not None:
            raise EngineError(f"sampling.engine '{self.name}' returned a Sample in which {problem}. {FIX}")
        return sample


def problem_of(sample: Sample, prompts: Sequence[Sequence[int]], *, vocabulary: int, longest: int) -> str | None:
    """What is wrong with a sample, as the end of a sentence; None if nothing is. longest: tokens of a response."""
    unchecked: Any = sample  # its fields may hold anything
    if not isinstance(unchecked.episodes, Episodes):
        return f"episodes is {text_of(unchecked.episodes)}, not Episodes (onebase.sequences.episodes)"
    episodes, mask = sample.episodes, sample.episodes.mask
    tensors = {"responses": episodes.responses, "mask": mask, "logprobs": sample.logprobs, "stopped": sample.stopped}
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            return f"{name} is not a tensor of torch: {text_of(value)}"
    if list(map(tuple, prompts)) != list(episodes.prompts):
        return f"the prompts are not the {len(prompts)} of the call, in their order"
    shapes = {tuple(tensor.shape) for tensor in (episodes.responses, mask, sample.logprobs)}
    if len(shapes) > 1 or next(iter(shapes))[:1] != (len(prompts),) or tuple(sample.stopped.shape) != (len(prompts),):
        return f"responses, mask, logprobs and stopped should have {len(prompts)} rows of one width: {sorted(shapes)}"
    if mask.dtype != torch.bool or sample.stopped.dtype != torch.bool:
        return f"mask and stopped are not of dtype bool: {mask.dtype}, {sample.stopped.dtype}"
    lengths = mask.sum(dim=1, keepdim=True)
    if not torch.equal(mask, torch.arange(mask.shape[1], device=mask.device) < lengths) or not (lengths > 0).all():
        return "the mask of a response has a gap, or marks no token"
    if int(lengths.max()) > longest:
        return f"a response has {int(lengths.max())} tokens, more than sampling.max_new_tokens={longest}"
    tokens = episodes.responses[mask]
    if tokens.is_floating_point() or int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
        return f"a response holds a token outside 0 .. {vocabulary - 1}"
    return None
