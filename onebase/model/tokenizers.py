"""The tokenizer of a base, with its chat template, stop tokens and pad token."""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from onebase.errors import BaseError
from onebase.model import template_files, vocabulary, weights
from onebase.model.identity import TokenizerIdentity
from onebase.model.location import read_config
from onebase.recipe.sections import ChatSection

PAD_TOKENS = (
    "<|endoftext|>",
    "<|finetune_right_pad_id|>",
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<|vision_pad|>",
    "<|fim_pad|>",
    "<unk>",
    "<|reserved_special_token_0|>",
)
"""Tokens that may replace a missing pad token: none of them is ever an answer, none may be a stop token."""


def fitting_tokenizer(folder: Path, chat: ChatSection) -> PreTrainedTokenizerBase:
    """The folder's tokenizer; BaseError where it has tokens that the folder's model does not know."""
    rows = read_config(folder).get_text_config().vocab_size
    template_files.require_readable_templates(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a wrong value in one of its files may raise anything
        raise BaseError(
            f"base.model: {folder} holds no tokenizer that transformers can read ({type(error).__name__}: {error}). "
            "Download the folder again."
        ) from error
    if chat.template is not None:
        tokenizer.chat_template = template_files.read_template(chat.template)
    if not tokenizer.chat_template:
        raise BaseError(
            f"base.model: the tokenizer of {folder} has no chat template. Pass one with chat.template=FILE.jinja."
        )
    tokenizer.chat_template = template_files.normalised(tokenizer.chat_template)
    stop_ids = find_stop_ids(tokenizer, folder)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(_find_pad_id(tokenizer, stop_ids))
    tokenizer.padding_side = "right"
    vocabulary.require_rows(tokenizer, stop_ids, rows, folder)
    return tokenizer


def find_stop_ids(tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[int]:
    """EOS of the tokenizer and every EOS of the publisher's generation settings."""
    stop_ids: set[int] = set()
    if tokenizer.eos_token_id is not None:
        stop_ids.add(_only_id(tokenizer.eos_token_id))
    settings = folder / "generation_config.json"
    if settings.is_file():
        stop_ids.update(_declared_stop_ids(settings))
    if not stop_ids:
        raise BaseError(
            f"base.model: neither the tokenizer nor generation_config.json of {folder} names an end-of-text token."
        )
    return sorted(stop_ids)


def _declared_stop_ids(settings: Path) -> list[int]:
    """What generation_config.json says of the ends of a response; an editor may have put a byte order mark first."""
    content = weights.read_json(settings, encoding="utf-8-sig")
    declared = content.get("eos_token_id")
    listed = declared if isinstance(declared, list) else [] if declared is None else [declared]
    if not all(type(token_id) is int for token_id in listed):
        raise BaseError(f"base.model: {settings}: eos_token_id is {declared!r}; expected a token's number, or a list.")
    return listed


def _find_pad_id(tokenizer: PreTrainedTokenizerBase, stop_ids: list[int]) -> int:
    """A pad token apart from the stop tokens: where pad is EOS, a mask of the padding hides EOS: no response ends."""
    vocabulary = tokenizer.get_vocab()
    candidates = [tokenizer.pad_token, *PAD_TOKENS]
    for token in candidates:
        if isinstance(token, str) and token in vocabulary and vocabulary[token] not in stop_ids:
            return vocabulary[token]
    raise BaseError(
        "base.model: the tokenizer has no pad token apart from its stop tokens. Give its tokenizer_config.json a "
        f"'pad_token' that is in the vocabulary; tried {', '.join(PAD_TOKENS)}."
    )


def identify_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, chat: ChatSection) -> TokenizerIdentity:
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    rules = vocabulary if backend is None else backend.to_str()
    template = json.dumps([tokenizer.chat_template, chat.system], ensure_ascii=True)
    return TokenizerIdentity(
        tokenizer_sha256=hashlib.sha256(rules.encode()).hexdigest(),
        template_sha256=hashlib.sha256(template.encode()).hexdigest(),
        pad_id=_only_id(tokenizer.pad_token_id),
        stop_ids=find_stop_ids(tokenizer, folder),
    )


def _only_id(value: Any) -> int:
    """A special token's id. transformers types it as whatever any tokenizer may return."""
    assert isinstance(value, int), f"expected one token id, found {value!r}"
    return value
