"""Whether the longest sequence of one forward fits into the model: checked before a weight is loaded."""

from collections.abc import Iterable, Sequence

from data.chat.conversations import EncodedPrompt
from data.select.texts import Piece
from onebase.errors import DataError, RecipeError
from onebase.model.architecture import Reach
from onebase.recipe.sections import LimitsSection


def require_limits(limits: LimitsSection, reach: Reach | None, *, multiple: int = 1) -> None:
    """RecipeError where a row within the limits may be longer than the model can take. multiple: rows are padded to a
    multiple of it."""
    longest = limits.prompt_tokens + limits.response_tokens
    padded = -(-longest // multiple) * multiple
    if reach is not None and padded > reach.tokens:
        wider = "" if padded == longest else f", padded to {padded},"
        raise RecipeError(
            f"limits.prompt_tokens + limits.response_tokens = {longest}{wider} and {reach.reason}. Lower the limits "
            f"to {reach.tokens} together (limits.over=drop leaves longer rows out), or use a model that takes more."
        )


def require_room(
    prompts: Iterable[EncodedPrompt], reach: Reach | None, *, new_tokens: int, key: str = "sampling.max_new_tokens"
) -> None:
    """DataError at the first prompt that leaves no room for a response of `new_tokens`. key: what the user calls
    new_tokens."""
    if reach is None:
        return
    if new_tokens >= reach.tokens:
        raise DataError(f"{key} {new_tokens} leaves no room for a prompt: {reach.reason}. Lower {key}.")
    for encoded in prompts:
        if len(encoded.ids) + new_tokens > reach.tokens:
            raise DataError(
                f"{encoded.prompt.origin}: the prompt is {len(encoded.ids)} tokens; with {key} {new_tokens} it may be "
                f"{reach.tokens - new_tokens}: {reach.reason}. Shorten or remove it, or lower {key}."
            )


def require_pieces(pieces: Sequence[Piece], reach: Reach | None, *, key: str) -> None:
    """DataError where a piece of text is longer than the model can take. key: what the user calls its length."""
    longest = max((len(context) + len(predicted) for context, predicted in pieces), default=0)
    if reach is not None and longest > reach.tokens:
        raise DataError(f"{key}: a piece of text is {longest} tokens, and {reach.reason}. Lower {key}.")
