"""Tokenizers as publishers have them: which token pads, and which end a response."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from onebase.errors import BaseError
from onebase.model import base as bases
from onebase.model.base import Base, load_tokenizer
from onebase.model.roles import Roles
from onebase.recipe.sections import BaseSection, ChatSection
from onebase.trl.arguments import TrlSection
from onebase.trl.trainers import configure


def publish(source: Path, folder: Path, further: list[str]) -> BaseSection:
    """The tiny base as Qwen's are published: `<|endoftext|>` pads and ends a response as well."""
    shutil.copytree(source, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.add_special_tokens({"additional_special_tokens": further})
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": len(tokenizer)}))
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


@pytest.mark.parametrize(
    ("quantization", "device", "fast", "half"),
    [
        ("nf4", "cuda", True, True),
        ("nf4", "cuda", False, False),  # a T4: emulated, which is slower than fp32
        ("fp32", "cuda", True, False),
        ("nf4", "cpu", True, False),
    ],
)
def test_bf16_is_computed_in_where_the_gpu_has_it(
    load_base: Callable[[str], Base],
    monkeypatch: pytest.MonkeyPatch,
    quantization: str,
    device: str,
    fast: bool,
    half: bool,
) -> None:
    monkeypatch.setattr(bases, "has_fast_bf16", lambda device: fast)
    assert replace(load_base(quantization), device=torch.device(device)).computes_in_bf16 is half


def test_a_tokenizer_without_any_other_token_is_refused(tiny_base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseError, match="no pad token apart from its stop tokens"):
        load_tokenizer(publish(tiny_base_folder, tmp_path / "base", ["<|other|>"]), ChatSection())


def test_one_process_trains_on_one_gpu_of_several(load_base: Callable[[str], Base]) -> None:
    """Where Trainer sees two GPUs it would spread the model over both, which TRL refuses."""

    class Config:
        def __init__(self, **options: object) -> None:
            self._n_gpu = 2

        @property
        def n_gpu(self) -> int:
            return self._n_gpu

    roles = Roles(load_base("fp32"))
    assert configure(Config, TrlSection(), roles, folder=Path("out"), seed=0).n_gpu == 1
