"""What configs say of a model's forwards, and what no config says: on tiny random models of many architectures."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, LlamaConfig, PretrainedConfig, ViTConfig

from onebase.errors import BaseError
from onebase.inference.sampling import sample
from onebase.inference.scoring import last_token_scores, logprobs, states_at
from onebase.inference.soundness import require_sound
from onebase.model import base as bases
from onebase.model.architecture import attention_of, reach_of
from onebase.model.roles import Roles
from onebase.recipe.sections import AdapterSection, BaseSection

ZooRoles = Callable[..., Roles]

SWITCHING = ("phi3-longrope", "llama-longrope", "llama-dynamic", "qwen2-dynamic")
REFUSED = {
    "mamba": "samples with other log-probabilities",
    "mamba2": "samples with other log-probabilities",
    "rwkv": "samples with other log-probabilities",
    "recurrent-gemma": "does not take the forwards",
    "bert": "when padding follows it",
}
QUICK = ("gpt-oss", "bloom", "lfm2", "qwen3.5", "gemma2")

LONG = {"rope_type": "longrope", "original_max_position_embeddings": 4096, "factor": 4.0}


def config_with(**fields: Any) -> Any:
    """A config as transformers hands it over, with just these fields."""
    config = PretrainedConfig()
    for name, value in fields.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"max_position_embeddings": 8192}, 8192),
        ({"max_seq_len": 2048}, 2048),
        ({}, None),
        ({"max_position_embeddings": 131072, "rope_parameters": LONG}, 4096),
        (
            {"max_position_embeddings": 131072, "rope_parameters": {"full_attention": LONG, "sliding_attention": {}}},
            4096,
        ),
        (
            {
                "max_position_embeddings": 9000,
                "original_max_position_embeddings": 40,
                "rope_parameters": {"type": "su"},
            },
            40,
        ),
        ({"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 2048),
        ({"max_position_embeddings": 131072, "rope_parameters": {**LONG, "rope_type": "llama3"}}, 131072),
        ({"max_position_embeddings": 131072, "rope_parameters": {**LONG, "rope_type": "yarn"}}, 131072),
        ({"max_position_embeddings": 99999, "attn_temperature_tuning": True, "floor_scale": 8192}, 8191),
        ({"max_position_embeddings": 99999, "attn_temperature_tuning": False, "floor_scale": 8192}, 99999),
    ],
)
def test_how_far_a_model_reaches_is_read_from_its_config(fields: dict[str, Any], tokens: int | None) -> None:
    reach = reach_of(config_with(**fields))
    assert (reach and reach.tokens) == tokens
    assert reach is None or "positions" in reach.reason


def test_a_rope_that_changes_at_an_unknown_length_is_refused() -> None:
    with pytest.raises(BaseError, match=r"rope_type 'dynamic'.*max_position_embeddings"):
        reach_of(config_with(rope_parameters={"rope_type": "dynamic", "factor": 2.0}))


@pytest.mark.parametrize("name", SWITCHING)
def test_a_long_neighbour_would_move_these_models(zoo: Any, name: str) -> None:
    """What the next tests guard against is there: 25 tokens beside a row of 20, where the model reaches 24."""
    model = zoo.tiny(name)
    rows = torch.randint(3, 400, (2, 25), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        beside = model.model(input_ids=rows, use_cache=False).last_hidden_state[0, :20]
        alone = model.model(input_ids=rows[:1, :20], use_cache=False).last_hidden_state[0]
    assert float((beside - alone).abs().max()) > 0.01


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("name", SWITCHING)
def test_a_score_does_not_depend_on_its_neighbours_as_far_as_a_model_reaches(
    zoo_roles: ZooRoles, name: str, packs: bool
) -> None:
    roles = zoo_roles(name)
    assert roles.forwards.can_pack
    roles.forwards.can_pack = packs
    roles.add("reward", AdapterSection(rank=2), generator=torch.Generator().manual_seed(0))
    roles.add_head("reward").weight.data.normal_(generator=torch.Generator().manual_seed(1))
    rows = [tuple(range(10, 17)), tuple(range(30, 54)), tuple(range(60, 75))]
    with torch.no_grad():
        together = last_token_scores(roles, "reward", rows)
        alone = torch.cat([last_token_scores(roles, "reward", [row]) for row in rows])
        again = last_token_scores(roles, "reward", rows)
        with pytest.raises(BaseError, match=r"25 tokens.*positions"):
            last_token_scores(roles, "reward", [rows[0], tuple(range(100, 125))])
    assert float((together - alone).abs().max()) <= 1e-4
    assert torch.equal(together, again)


@pytest.mark.parametrize("name", ["phi3-longrope", "qwen2-dynamic"])
def test_sampling_ends_where_the_model_changes(zoo_roles: ZooRoles, name: str) -> None:
    roles = zoo_roles(name)
    prompts = [tuple(range(10, 24)), tuple(range(30, 35))]
    options: dict[str, Any] = {"temperature": 1.0, "generator": torch.Generator().manual_seed(0), "batch": 2}
    drawn = sample(roles, None, prompts, max_new_tokens=10, **options)
    scored = logprobs(roles, None, drawn.episodes, temperature=1.0, tokens_per_microbatch=64)
    assert float((scored - drawn.logprobs).abs().max()) <= 1e-4
    with pytest.raises(BaseError, match=r"25 tokens.*positions"):
        sample(roles, None, prompts, max_new_tokens=11, **options)


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("llama", "sdpa"),
        ("lfm2", "sdpa"),
        ("gemma2", "eager"),
        ("gpt-oss", "eager"),
        ("bloom", "eager"),
        ("mpt", "eager"),
    ],
)
def test_models_without_sdpa_get_the_attention_that_they_have(zoo: Any, name: str, attention: str) -> None:
    kind, fields = zoo.ZOO[name]
    assert attention_of(CONFIG_MAPPING[kind](**fields)) == attention


def test_a_model_that_predicts_no_tokens_is_refused() -> None:
    with pytest.raises(BaseError, match="no causal language model for the model type 'vit'"):
        attention_of(ViTConfig())


def test_a_model_without_sdpa_is_loaded(zoo: Any, tiny_base_folder: Path, tmp_path: Path) -> None:
    from onebase.recipe.sections import ChatSection

    folder = zoo.save("bloom", tmp_path / "bloom", tiny_base_folder)
    section = BaseSection.model_validate({"model": str(folder), "quantization": "fp32"})
    assert bases.load(section, ChatSection()).model.config._attn_implementation == "eager"
    assert bases.reach(section) is None


def check_soundness(roles: Roles, name: str) -> None:
    before = roles.base.model.config._attn_implementation
    if name in REFUSED:
        with pytest.raises(BaseError, match=REFUSED[name]):
            require_sound(roles)
    else:
        require_sound(roles)
    assert roles.base.model.config._attn_implementation == before
    assert "can_pack" not in vars(roles.forwards)


@pytest.mark.parametrize("name", ["mamba2", "bert", *QUICK])
def test_a_base_is_tried_before_a_stage_begins(zoo_roles: ZooRoles, name: str) -> None:
    check_soundness(zoo_roles(name), name)


@pytest.mark.slow
def test_every_architecture_of_the_zoo_is_sound_or_refused(zoo: Any, zoo_roles: ZooRoles) -> None:
    for name in zoo.ZOO:
        check_soundness(zoo_roles(name), name)


def check_rows(roles: Roles) -> None:
    """Scores of rows together are those of the rows alone: the law, by the way that stages score."""
    rows = [tuple(range(10, 17)), tuple(range(30, 49)), tuple(range(60, 63))]
    whole = [range(len(row)) for row in rows]
    with torch.no_grad():
        together = states_at(roles, None, rows, whole)
        alone = torch.cat([states_at(roles, None, [row], [places]) for row, places in zip(rows, whole, strict=True)])
    assert float((together - alone).abs().max() / alone.abs().max()) <= 1e-4


@pytest.mark.parametrize("name", QUICK)
def test_rows_beside_each_other_are_scored_as_if_alone(zoo_roles: ZooRoles, name: str) -> None:
    check_rows(zoo_roles(name))


@pytest.mark.slow
def test_rows_of_every_architecture_are_scored_as_if_alone(zoo: Any, zoo_roles: ZooRoles) -> None:
    for name in zoo.ZOO.keys() - {"bert"}:
        check_rows(zoo_roles(name))


# --- where adapters may sit --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer:UserWarning")
@pytest.mark.parametrize(
    ("name", "targets", "refusal"),
    [
        ("llama", ("embed_tokens", "q_proj"), r"sits on model\.embed_tokens, a layer of kind Embedding"),
        ("gpt2", ("wte",), r"LM head|sits on transformer\.wte"),
        ("gpt2", ("wpe", "c_attn"), r"sits on transformer\.wpe, a layer of kind Embedding"),
        ("llama", ("input_layernorm",), "finds no place"),
        ("lfm2", ("conv.conv",), r"a layer of kind Conv1d|finds no place"),
        ("jamba", ("dt_proj",), r"dt_proj, and the model hands the weights of that layer to its kernels"),
        ("bamba", ("out_proj",), r"out_proj, and the model hands the weights of that layer to its kernels"),
    ],
)
def test_adapters_on_anything_but_linear_layers_are_refused(
    zoo_roles: ZooRoles, name: str, targets: tuple[str, ...], refusal: str
) -> None:
    with pytest.raises(BaseError, match=refusal):
        zoo_roles(name).add("sft", AdapterSection(targets=targets), generator=torch.Generator())


@pytest.mark.parametrize(("name", "part"), [("jamba", "mamba.dt_proj"), ("falcon-h1", "mamba.out_proj")])
def test_all_linear_leaves_out_what_a_mixer_reads_past_its_adapter(zoo_roles: ZooRoles, name: str, part: str) -> None:
    roles = zoo_roles(name).add("sft", AdapterSection(rank=2), generator=torch.Generator().manual_seed(0))
    assert not any(part in key for key in roles.state("sft"))
    assert any("mamba.in_proj" in key for key in roles.state("sft"))
    roles.train("sft")
    states_at(roles, "sft", [tuple(range(5, 25))], [range(20)]).sum().backward()
    learning = [key for key, weight in roles._adapter_parameters("sft").items() if "lora_B" in key]
    assert all(roles._adapter_parameters("sft")[key].grad is not None for key in learning)


# PEFT sets ranks for parts that it then finds to be none of the targets, and says so.
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_routers_and_fused_experts_learn_in_roles_of_their_own(zoo_roles: ZooRoles, name: str, tmp_path: Path) -> None:
    roles = zoo_roles(name).add("a", AdapterSection(rank=2), generator=torch.Generator().manual_seed(0))
    assert any("experts" in key for key in roles.state("a"))
    for index, weight in enumerate(roles.parameters("a")):
        weight.data.normal_(std=0.1, generator=torch.Generator().manual_seed(index))
    roles.copy("a", "b").add("c", AdapterSection(rank=2), generator=torch.Generator().manual_seed(1))
    rows, wanted = [(5, 6, 7, 8), (9, 10)], [range(4), range(2)]
    with torch.no_grad():
        states = {role: states_at(roles, role, rows, wanted) for role in (None, "a", "b", "c")}
        roles.save("a", tmp_path / "a")
        again = states_at(zoo_roles(name).load("a", tmp_path / "a"), "a", rows, wanted)
    assert torch.equal(states["a"], states["b"]) and torch.equal(states["a"], again)
    # B of a fresh adapter is zero, so that c is the base.
    assert torch.allclose(states["c"], states[None], atol=1e-5)
    assert float((states["a"] - states[None]).abs().max()) > 0.1


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("name", ["gpt2", "gpt-neox", "opt", "mamba"])
def test_an_adapter_is_read_again_whatever_layers_it_sits_on(zoo_roles: ZooRoles, name: str, tmp_path: Path) -> None:
    """GPT-2's layers hold their weights transposed, which PEFT notes in the config."""
    roles = zoo_roles(name).add("a", AdapterSection(rank=2), generator=torch.Generator().manual_seed(0))
    for index, weight in enumerate(roles.parameters("a")):
        weight.data.normal_(std=0.1, generator=torch.Generator().manual_seed(index))
    roles.save("a", tmp_path)
    rows, wanted = [(5, 6, 7, 8), (9, 10)], [range(4), range(2)]
    with torch.no_grad():
        states = states_at(roles, "a", rows, wanted)
        assert torch.equal(states, states_at(zoo_roles(name).load("a", tmp_path), "a", rows, wanted))


def test_a_config_as_saved_by_transformers_is_read(tiny_base_folder: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_base_folder / "model.safetensors", tmp_path)
    LlamaConfig(max_position_embeddings=77, rope_parameters={"rope_type": "dynamic", "factor": 2.0}).save_pretrained(
        tmp_path
    )
    reach = reach_of(AutoConfig.from_pretrained(tmp_path, trust_remote_code=False))
    assert reach is not None and reach.tokens == 77
