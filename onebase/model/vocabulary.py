"""Whether each token has a row in the base's embedding."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from onebase.errors import BaseError, DataError


def require_rows(tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], rows: int, folder: Path) -> None:
    """BaseError for a token that a text may become and the embedding has no row for.

    Special tokens without a part to play are let be (see `watch`): Gemma 3's text models name one for images.
    """
    roles = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    played = {id for id in (*roles, *stop_ids) if isinstance(id, int)}
    idle = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special} - played
    known = {id: token for token, id in tokenizer.get_vocab().items()}
    beyond = sorted(id for id in {*known, *played} - idle if not 0 <= id < rows)
    if beyond:
        pad = f", its pad token among them ({tokenizer.pad_token})" if tokenizer.pad_token_id in beyond else ""
        raise BaseError(
            f"base.model: {folder}: {len(beyond)} tokens have no row in the embedding of {rows} rows (vocab_size of "
            f"config.json): {', '.join(_named(known.get(id), id) for id in beyond[:3])}{pad}. Tokenizer and model "
            "do not belong together, or tokens were added without resizing the model: pass the tokenizer's own model, "
            "or save it again after resize_token_embeddings."
        )


def _named(token: str | None, id: int) -> str:
    return f"eos_token_id {id} of generation_config.json" if token is None else f"{token!r} is {id}"


def watch(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse, in each forward, the tokens without a row that `require_rows` lets be: a text may spell one out.

    Without such tokens, which is so for nearly every model, nothing is watched.
    """
    rows = model.config.get_text_config().vocab_size
    beyond = {id: token for token, id in tokenizer.get_vocab().items() if id >= rows}
    if not beyond:
        return

    def refuse(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        largest = int(inputs[0].max())
        if largest >= rows:
            raise DataError(
                f"data: a text spells out {beyond.get(largest)!r}, a special token that the base has no row for "
                f"({largest} of {rows}). Take it out of the texts."
            )

    model.get_input_embeddings().register_forward_pre_hook(refuse)
