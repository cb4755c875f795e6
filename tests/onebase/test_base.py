"""Tokenizers as publishers have them: which token pads, and which end a response."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from onebase.base import load_tokenizer
from onebase.errors import BaseError
from onebase.recipes import BaseSection, ChatSection


def publish(source: Path, folder: Path, further: list[str]) -> BaseSection:
    """The tiny base as Qwen's are published: `<|endoftext|>` pads and ends a response as well."""
    shutil.copytree(source, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": further})
    tokenizer.save_pretrained(folder)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return BaseSection.model_validate({"model": str(folder), "quantization": "fp32"})


@pytest.mark.parametrize("further", ["<|vision_pad|>", "<|fim_pad|>", "<|finetune_right_pad_id|>"])
def test_where_the_pad_token_ends_responses_too_another_one_pads(
    tiny_base_folder: Path, tmp_path: Path, further: str
) -> None:
    tokenizer, stop_ids = load_tokenizer(publish(tiny_base_folder, tmp_path / "base", [further]), ChatSection())
    assert tokenizer.pad_token == further
    assert len(stop_ids) == 2 and tokenizer.pad_token_id not in stop_ids


def test_a_tokenizer_without_any_other_token_is_refused(tiny_base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="no pad token apart from its stop tokens"):
        load_tokenizer(publish(tiny_base_folder, tmp_path / "base", ["<|other|>"]), ChatSection())
