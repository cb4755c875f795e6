"""The base: one pretrained causal language model, loaded once, frozen, in nf4, bf16 or fp32.

Every role of every stage is a small adapter on it (see `onebase.model.roles`). What a stage must know of a base to
check that another stage used the same one is its identity, which is computed without loading a weight.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from onebase.errors import BaseError
from onebase.files.writing import hash_file
from onebase.memory import is_out_of_memory
from onebase.model import loaded, model_folder, vocabulary, weights
from onebase.model.architecture import Reach, attention_of, reach_of, trunk_of
from onebase.model.identity import BaseIdentity, TokenizerIdentity
from onebase.model.location import hub_revision, read_config, resolve
from onebase.model.tokenizers import find_stop_ids, fitting_tokenizer, identify_tokenizer
from onebase.recipe.sections import BaseSection, ChatSection
from onebase.terminal import say


@dataclass(frozen=True, kw_only=True)
class Base:
    """A loaded, frozen base."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: BaseIdentity
    tokenizer_identity: TokenizerIdentity
    pad_id: int
    stop_ids: frozenset[int]
    """Tokens that end a response (a set: Llama 3.1 has three)."""
    device: torch.device

    @property
    def computes_in_bf16(self) -> bool:
        """Where the base is bf16 or nf4 on a GPU that has bf16; plain fp32 elsewhere."""
        return self.device.type == "cuda" and self.identity.quantization != "fp32" and has_fast_bf16(self.device)


def default_device() -> torch.device:
    """CUDA when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the hardware itself computes in bf16. AVX2 CPUs emulate it, 25 to 100 times slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def identify(section: BaseSection, chat: ChatSection) -> tuple[BaseIdentity, TokenizerIdentity]:
    """What the recipe's base and tokenizer are, without loading a weight into memory (the files are hashed)."""
    folder = resolve(section.model, section.revision)
    return _identify_base(section, folder), identify_tokenizer(fitting_tokenizer(folder, chat), folder, chat)


def load_tokenizer(section: BaseSection, chat: ChatSection) -> tuple[PreTrainedTokenizerBase, frozenset[int]]:
    """The base's tokenizer and its stop tokens, without the model: data is checked before a weight is loaded."""
    folder = resolve(section.model, section.revision)
    tokenizer = fitting_tokenizer(folder, chat)
    return tokenizer, frozenset(find_stop_ids(tokenizer, folder))


def reach(section: BaseSection) -> Reach | None:
    """How many tokens, prompt and response, the base can take; None where its config has no limit."""
    folder = resolve(section.model, section.revision)
    weights.files_of(folder)
    return reach_of(read_config(folder))


def load(section: BaseSection, chat: ChatSection, *, device: torch.device | None = None) -> Base:
    """Load the base frozen, in eval mode. BaseError if hardware or folder do not allow what the recipe says."""
    device = device or default_device()
    if section.quantization == "bf16" and not has_fast_bf16(device):
        raise BaseError(
            f"base.quantization: bf16 on this {device.type} would run 25 to 100 times slower than fp32: it has no "
            "bf16 in hardware. Use base.quantization=fp32 or nf4."
        )
    folder = resolve(section.model, section.revision)
    tokenizer = fitting_tokenizer(folder, chat)
    files = weights.files_of(folder)
    transformers_logging.disable_progress_bar()
    model, report = _load_model(folder, _loading_options(section, device, folder))
    loaded.require_whole(model, report, folder)
    loaded.require_quantization(model, section.quantization)
    weights.require_finite(files, ignored=model._keys_to_ignore_on_load_unexpected or ())
    model.requires_grad_(False)
    model.eval()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # On CPUs with AVX512-BF16 bitsandbytes repacks the weights at the first forward without gradients and then
            # computes in bf16: scores would depend on whether gradients are on.
            module.support_avx512bf16_for_cpu = False
    # Generation settings of the publisher (temperature, top_p ...) must not leak into rollouts or warnings.
    model.config.use_cache = True
    vocabulary.watch(model, tokenizer)
    _require_plain_head(model, device)
    if model_folder.ships_code(folder):
        say(f"{section.model} ships code of its publisher; it is not run: transformers' own {type(model).__name__} is.")
    tokenizer_identity = identify_tokenizer(tokenizer, folder, chat)
    return Base(
        model=model,
        tokenizer=tokenizer,
        identity=_identify_base(section, folder),
        tokenizer_identity=tokenizer_identity,
        pad_id=tokenizer_identity.pad_id,
        stop_ids=frozenset(tokenizer_identity.stop_ids),
        device=device,
    )


def _load_model(folder: Path, options: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and transformers' report of what did not fit."""
    # Shapes that do not fit are reported with the rest, not raised without a name.
    settings: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with loaded.without_table():
        try:
            both: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **settings, **options)
        except Exception as error:  # a wrong value in config.json or generation_config.json may raise anything
            if is_out_of_memory(error):
                raise
            raise BaseError(
                f"base.model: transformers cannot make the model of {folder} ({type(error).__name__}: "
                f"{' '.join(str(error).split()) or 'no reason given'}). Look at its config.json and "
                "generation_config.json, or download the folder again."
            ) from error
    return both


def _loading_options(section: BaseSection, device: torch.device, folder: Path) -> dict[str, Any]:
    # fp32 on every CPU, also on those with bf16: only so do decoding and training give the same log-probabilities.
    half = torch.bfloat16 if device.type == "cuda" and has_fast_bf16(device) else torch.float32
    attention = attention_of(read_config(folder))
    options: dict[str, Any] = {"use_safetensors": True, "attn_implementation": attention, "device_map": {"": device}}
    if section.quantization == "nf4":
        options["dtype"] = half
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=half,
        )
    else:
        options["dtype"] = {"bf16": torch.bfloat16, "fp32": torch.float32}[section.quantization]
    return options


def _identify_base(section: BaseSection, folder: Path) -> BaseIdentity:
    config = read_config(folder)
    files = weights.files_of(folder)
    # Fields that say where or by which library a config was saved differ between equal models.
    config_fields = {k: v for k, v in config.to_dict().items() if k not in {"_name_or_path", "transformers_version"}}
    weights_hash = hashlib.sha256("".join(f"{file.name}:{hash_file(file)}\n" for file in files).encode())
    text = config.get_text_config()
    return BaseIdentity(
        model=section.model,
        revision=hub_revision(folder) or section.revision,
        quantization=section.quantization,
        config_sha256=hashlib.sha256(json.dumps(config_fields, sort_keys=True, default=str).encode()).hexdigest(),
        weights_sha256=weights_hash.hexdigest(),
        vocabulary=text.vocab_size,
        hidden_layers=text.num_hidden_layers,
    )


@torch.no_grad()
def _require_plain_head(model: PreTrainedModel, device: torch.device) -> None:
    """Refuse models that change their logits after the LM head (soft-capping, scaling): we apply the head ourselves."""
    tokens = torch.arange(4, device=device).unsqueeze(0) % model.config.get_text_config().vocab_size
    hidden = trunk_of(model)(input_ids=tokens, use_cache=False).last_hidden_state
    head = model.get_output_embeddings()
    assert head is not None, "a causal language model has an LM head"
    ours = head(hidden).float()
    theirs = model(input_ids=tokens, use_cache=False).logits.float()
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
        raise BaseError(
            f"base.model: {type(model).__name__} changes its logits after the LM head (soft-capping or scaling), "
            "which Onebase does not reproduce. Use a model without it, such as Llama, Qwen or SmolLM."
        )
