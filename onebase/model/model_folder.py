"""What a base's folder says of itself in JSON, checked before transformers reads any of it.

Refused here is what transformers would ask about (code of the publisher), add silently (an adapter), or load as
something else than the recipe says (weights that are stored quantised).
"""

from pathlib import Path
from typing import Any

from transformers import __version__ as transformers_version
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from onebase.errors import BaseError
from onebase.model import weights

READ = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")
READ_TOO = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.json", "vocab.txt")
KINDS = {
    "awq": "AWQ",
    "compressed-tensors": "compressed-tensors (llm-compressor)",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8 (FBGEMM)",
    "gptq": "GPTQ",
    "mxfp4": "MXFP4",
    "modelopt": "ModelOpt (NVFP4 or FP8)",
}
"""How `quant_method` of a config is called."""
MARKS = {"hf_quant_config.json": "ModelOpt", "quantize_config.json": "GPTQ", "quant_config.json": "AWQ"}
"""Files that tools write beside the weights that they have quantised."""


def require_usable(folder: Path) -> None:
    """BaseError for a folder that is not one plain model of transformers' own kinds, as its publisher trained it."""
    for name in (*READ, *READ_TOO, "merges.txt"):
        if (folder / name).is_file():
            weights.require_content(folder / name)
    if not (folder / "config.json").is_file():
        raise BaseError(
            f"base.model: {folder} holds no config.json. Pass a saved transformers model (GGUF files are not read)."
        )
    config = weights.read_json(folder / "config.json")
    _require_known_model(folder, config)
    _require_known_tokenizer(folder)
    _require_unquantised(folder, config)
    if (folder / "adapter_config.json").exists():
        raise BaseError(
            f"base.model: {folder} holds an adapter beside the model (adapter_config.json), which transformers would "
            "silently put on it. Merge it into the weights, or move the adapter's files out."
        )


def ships_code(folder: Path) -> bool:
    """Whether the publisher's config names code of its own for a model that transformers knows as well."""
    return bool(weights.read_json(folder / "config.json").get("auto_map"))


def _require_known_model(folder: Path, config: dict[str, Any]) -> None:
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    known = f"transformers {transformers_version} knows no causal language model of that type"
    if config.get("auto_map"):
        raise BaseError(
            f"base.model: {folder / 'config.json'}: model_type {kind!r} needs code of its publisher (auto_map: "
            f"{_named_code(config['auto_map'])}), for {known}. Onebase never runs such code. "
            "Pass a model of a type that transformers has itself, such as Llama, Qwen or SmolLM."
        )
    raise BaseError(
        f"base.model: {folder / 'config.json'}: model_type is {kind!r}, and {known}. "
        "Pass a causal language model, such as Llama, Qwen or SmolLM, or a newer transformers."
    )


def _require_known_tokenizer(folder: Path) -> None:
    """A tokenizer class of the publisher's is refused also where transformers would quietly take another one."""
    if not (folder / "tokenizer_config.json").is_file():
        return
    config = weights.read_json(folder / "tokenizer_config.json")
    code = config.get("auto_map")
    if isinstance(code, dict):
        code = code.get("AutoTokenizer")
    if not code:
        return
    name = config.get("tokenizer_class") or _named_code(code).rpartition(".")[2]
    if tokenizer_class_from_name(str(name)) is None:
        raise BaseError(
            f"base.model: {folder / 'tokenizer_config.json'}: the tokenizer {name!r} needs code of its publisher "
            f"(auto_map: {_named_code(code)}). Onebase never runs such code. "
            "Pass a model with a tokenizer that transformers has itself."
        )


def _named_code(entries: Any) -> str:
    """The code that an `auto_map` names: a text, a list with gaps, or those by the class that they replace."""
    if isinstance(entries, dict):
        entries = list(entries.values())
    if isinstance(entries, list):
        flat = [part for entry in entries for part in (entry if isinstance(entry, list) else [entry])]
        return ", ".join(dict.fromkeys(str(part) for part in flat if part))
    return str(entries)


def _require_unquantised(folder: Path, config: dict[str, Any]) -> None:
    for place in (config, config.get("text_config")):
        for key in ("quantization_config", "compression_config"):
            if isinstance(place, dict) and place.get(key) is not None:
                _refuse_quantised(f"{folder / 'config.json'}: {key}", _kind_of(place[key]))
    for name, kind in MARKS.items():
        if (folder / name).is_file():
            _refuse_quantised(str(folder / name), kind)


def _refuse_quantised(where: str, kind: str) -> None:
    raise BaseError(
        f"base.model: {where}: the weights are stored quantised, as {kind}. Onebase quantises itself, from the weights "
        "as they were trained, and would record something else than what it computes with. Pass the publisher's bf16 "
        "or fp16 model (with base.quantization=nf4 where memory is short)."
    )


def _kind_of(settings: Any) -> str:
    if not isinstance(settings, dict):
        return repr(settings)
    method = str(settings.get("quant_method", "")).lower()
    if method in ("bitsandbytes", "") and (settings.get("load_in_4bit") or settings.get("_load_in_4bit")):
        return f"bitsandbytes 4-bit ({str(settings.get('bnb_4bit_quant_type', 'fp4')).upper()})"
    if method in ("bitsandbytes", "") and (settings.get("load_in_8bit") or settings.get("_load_in_8bit")):
        return "bitsandbytes 8-bit"
    return KINDS.get(method, method or "a kind that is not named")
