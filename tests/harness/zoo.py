"""Tiny random models of many architectures, for tests of what a forward does; weights from a fixed seed, no network."""

import shutil
from pathlib import Path
from typing import Any

VOCABULARY = 400

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
SMALL_GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in COMMON.items() if name != key}


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "factor": 4.0,
}
MAMBA = {"num_heads": 8, "n_groups": 2, "state_size": 8, "chunk_size": 4, "expand": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GATED = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}

ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", COMMON),
    "llama-dynamic": (
        "llama",
        {
            **COMMON,
            "max_position_embeddings": 24,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
        },
    ),
    "qwen2-dynamic": (
        "qwen2",
        {
            **COMMON,
            "max_position_embeddings": 24,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        },
    ),
    "phi3-longrope": (
        "phi3",
        {
            **COMMON,
            "original_max_position_embeddings": 24,
            "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 24},
        },
    ),
    "llama-longrope": ("llama", {**COMMON, "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 24}}),
    "gemma2": ("gemma2", {**COMMON, "query_pre_attn_scalar": 8, "sliding_window": 16, "final_logit_softcapping": None}),
    "gemma2-capped": ("gemma2", {**COMMON, "query_pre_attn_scalar": 8, "sliding_window": 16}),
    "gemma3": ("gemma3_text", {**COMMON, "query_pre_attn_scalar": 8, "sliding_window": 16}),
    "gpt-oss": (
        "gpt_oss",
        {
            **COMMON,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "bloom": (
        "bloom",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    ),
    "mpt": ("mpt", {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "falcon-alibi": (
        "falcon",
        {**without("head_dim"), "alibi": True, "new_decoder_architecture": False},
    ),
    "gpt2": ("gpt2", SMALL_GPT),
    "opt": ("opt", {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt-neox": ("gpt_neox", COMMON),
    "mamba": ("mamba", {**COMMON, "state_size": 8}),
    "mamba2": ("mamba2", {**COMMON, **MAMBA, "head_dim": 8}),
    "rwkv": (
        "rwkv",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "attention_hidden_size": 32,
            "context_length": 64,
        },
    ),
    "recurrent-gemma": (
        "recurrent_gemma",
        {**COMMON, "lru_width": 32, "attention_window_size": 16, "logits_soft_cap": 0.0},
    ),
    "qwen3-next": ("qwen3_next", {**COMMON, **GATED, **EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3.5": ("qwen3_5_text", {**COMMON, **GATED}),
    "lfm2": ("lfm2", {**COMMON, "layer_types": ["conv", "full_attention"]}),
    "jamba": (
        "jamba",
        {
            **COMMON,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "mamba_d_state": 8,
            "use_mamba_kernels": False,
        },
    ),
    "bamba": (
        "bamba",
        {
            **COMMON,
            "attn_layer_indices": [1],
            "mamba_n_heads": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 2,
            "mamba_chunk_size": 4,
            "mamba_d_head": 8,
        },
    ),
    "falcon-h1": (
        "falcon_h1",
        {
            **COMMON,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_n_groups": 2,
            "mamba_d_state": 8,
            "mamba_chunk_size": 4,
        },
    ),
    "nemotron-h": (
        "nemotron_h",
        {
            **COMMON,
            "layers_block_type": ["mamba", "attention"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "ssm_state_size": 8,
            "chunk_size": 4,
        },
    ),
    "granite-hybrid": (
        "granitemoehybrid",
        {
            **COMMON,
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_n_groups": 2,
            "mamba_d_state": 8,
            "mamba_chunk_size": 4,
            "num_local_experts": 0,
            "shared_intermediate_size": 32,
        },
    ),
    "llama4": (
        "llama4_text",
        {
            **COMMON,
            "attention_chunk_size": 8,
            "floor_scale": 24,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 48,
            "no_rope_layers": [1, 0],
        },
    ),
    "mixtral": ("mixtral", {**COMMON, "num_local_experts": 4, "sliding_window": None}),
    "qwen3-moe": ("qwen3_moe", {**COMMON, **EXPERTS}),
    "bert": ("bert", {**COMMON, "is_decoder": False}),
    "deepseek-v3": (
        "deepseek_v3",
        {
            **COMMON,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "kv_lora_rank": 8,
            "q_lora_rank": None,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
        },
    ),
    "ministral3": (
        "ministral3",
        {
            **COMMON,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 2.0,
                "original_max_position_embeddings": 16,
                "llama_4_scaling_beta": 0.1,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        },
    ),
}
"""Name: (transformers' model type, fields of its config)."""


def tiny(name: str, **changes: Any) -> Any:
    """A model of the zoo with random weights, in eval mode, in fp32. changes: of its config."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    kind, fields = ZOO[name]
    config = CONFIG_MAPPING[kind](**{**fields, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False).float().eval()


def save(name: str, folder: Path, tokenizer: Path, **changes: Any) -> Path:
    """A model of the zoo as a base on disk, with the tokenizer of another one."""
    tiny(name, **changes).save_pretrained(folder)
    for file in tokenizer.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, folder)
    return folder
