"""TRL's options: what cannot work here, or does nothing, is refused by name before anything is written."""

from typing import Any

import pytest
from pydantic import ValidationError
from trl.trainer.sft_config import SFTConfig

from dpo.recipe import DpoRecipe
from onebase.errors import BaseError, RecipeError
from onebase.trl import arguments, trainers
from sft.recipe import SftArguments, SftRecipe

SFT: dict[str, Any] = {
    "base": {"model": "some/model"},
    "data": [{"source": "builtin:tasks"}],
    "evaluation": {"demonstrations": [{"source": "builtin:tasks", "split": "heldout"}]},
}
DPO: dict[str, Any] = {
    "base": {"model": "some/model"},
    "parents": {"sft": "runs/x/sft"},
    "data": [{"source": "builtin:tasks"}],
    "evaluation": {"rankings": [{"source": "builtin:tasks", "split": "heldout"}]},
}

EITHER: list[dict[str, Any]] = [
    {"deepspeed": "zero3.json"},
    {"fsdp": "full_shard"},
    {"parallelism_config": {"tp_size": 2}},
    {"ddp_backend": "nccl"},
    {"torch_compile": True},
    {"torch_compile_backend": "inductor"},
    {"use_liger_kernel": True},
    {"bf16_full_eval": True},
    {"fp16_full_eval": True},
    {"use_cpu": True},
    {"ignore_data_skip": True},
    {"hub_model_id": "me/mine"},
    {"run_name": "best"},
    {"do_predict": True},
    {"include_for_metrics": ["inputs"]},
    {"label_names": ["labels"]},
    {"optim_target_modules": "all-linear"},
    {"activation_offloading": True},
    {"per_device_train_batch_size": 0},
    {"gradient_accumulation_steps": 0},
    {"weight_decay": -0.1},
    {"loss_type": "no-such-loss"},
    {"truncation_mode": "middle"},
]
SFT_ONLY: list[dict[str, Any]] = [{"packing_strategy": "wrapped"}, {"loss_type": "sigmoid"}]
DPO_ONLY: list[dict[str, Any]] = [
    {"sync_ref_model": True},
    {"ref_model_sync_steps": 64},
    {"loss_type": ["sigmoid", "typo"]},
    {"f_divergence_type": "chi_squared"},
    {"f_divergence_type": "js_divergence", "loss_type": ["apo_zero"]},
    {"loss_weights": [1.0, 0.5]},
    {"use_weighting": True, "loss_type": ["aot"]},
    {"loss_type": ["exo_pair"]},
    {"label_smoothing": 0.5, "loss_type": ["robust"]},
    {"padding_free": True},
]


@pytest.mark.parametrize("options", [*EITHER, *SFT_ONLY], ids=str)
def test_options_that_sft_cannot_use_are_refused_by_name(options: dict[str, Any]) -> None:
    SftRecipe.model_validate(SFT)
    with pytest.raises(ValidationError, match=next(iter(options))):
        SftRecipe.model_validate({**SFT, "trl": options})


@pytest.mark.parametrize("options", [*EITHER, *DPO_ONLY], ids=str)
def test_options_that_dpo_cannot_use_are_refused_by_name(options: dict[str, Any]) -> None:
    DpoRecipe.model_validate(DPO)
    with pytest.raises(ValidationError, match=next(iter(options))):
        DpoRecipe.model_validate({**DPO, "trl": options})


def test_what_switches_such_an_option_off_is_let_through() -> None:
    off: dict[str, Any] = {"torch_compile": False, "deepspeed": None, "use_liger_kernel": False}
    SftRecipe.model_validate({**SFT, "trl": off})
    DpoRecipe.model_validate({**DPO, "trl": {**off, "sync_ref_model": False, "loss_type": ["sigmoid", "sft"]}})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"optim": "galore_adamw"}, r"trl\.optim=galore_adamw"),
        ({"optim": "lomo"}, r"trl\.optim=lomo"),
        ({"adam_beta1": 2.0}, r"trl\.optim"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, r"trl\.lr_scheduler_type=cosine_with_min_lr"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, r"trl\.lr_scheduler_type=warmup_stable_decay"),
        ({"gradient_checkpointing_kwargs": {"selective": True}}, r"trl\.gradient_checkpointing_kwargs"),
        ({"activation_checkpointing_kwargs": {"every_n_layer": 2}}, r"did you mean 'every_n_layers'"),
        ({"gradient_checkpointing_kwargs": {"every_n_layers": 0}}, r"every_n_layers: expected a whole number"),
        ({"gradient_checkpointing_kwargs": "all"}, r"trl\.gradient_checkpointing_kwargs: expected keys"),
        ({"router_aux_loss_coef": 0.1}, r"trl\.router_aux_loss_coef"),
        ({"log_level": "loud"}, r"trl\.log_level"),
        ({"dataloader_persistent_workers": True}, r"trl\.dataloader_"),
    ],
)
def test_what_a_trainer_would_find_when_it_starts_is_found_before(
    options: dict[str, Any], named: str, zoo_roles: Any, tmp_path: Any
) -> None:
    roles = zoo_roles("llama")
    plain: dict[str, Any] = {"output_dir": str(tmp_path / "out"), "bf16": False, "use_cpu": True, "report_to": "none"}
    trainers.rehearse(SFTConfig(**plain, router_aux_loss_coef=0.0), roles)
    with pytest.raises(RecipeError, match=named):
        trainers.rehearse(SFTConfig(**plain, **options), roles)
    assert not (tmp_path / "out").exists()


def test_recomputing_is_refused_where_a_model_has_none(zoo_roles: Any, tmp_path: Any) -> None:
    """As CTRL and JetMoE have none: it would be found when the first step is made."""
    roles = zoo_roles("llama")
    plain: dict[str, Any] = {"output_dir": str(tmp_path), "bf16": False, "use_cpu": True, "router_aux_loss_coef": 0.0}
    trainers.rehearse(SFTConfig(**plain, gradient_checkpointing_kwargs={"every_n_layers": 2}), roles)
    roles.base.model.supports_gradient_checkpointing = False
    trainers.rehearse(SFTConfig(**plain, gradient_checkpointing=False), roles)
    with pytest.raises(RecipeError, match=r"trl\.gradient_checkpointing=true .* for LlamaForCausalLM"):
        trainers.rehearse(SFTConfig(**plain), roles)
    with pytest.raises(BaseError, match=r"train\.activation_checkpointing: .* for LlamaForCausalLM"):
        roles.forwards.enable_checkpointing()


def test_the_load_balancing_loss_of_experts_is_off_unless_asked_for(zoo_roles: Any, tmp_path: Any) -> None:
    """It is a function of the whole micro-batch: neighbours would change a row's gradient."""
    roles = zoo_roles("mixtral")
    for options, coefficient in (({}, 0.0), ({"router_aux_loss_coef": 0.02}, 0.02)):
        section = SftArguments.model_validate(options)
        config = trainers.configure(SFTConfig, section, roles, folder=tmp_path, seed=0)
        assert config.router_aux_loss_coef == coefficient


@pytest.mark.parametrize(("multiple", "tokens"), [(None, 1), ("auto", 1), (64, 64), ("8", 8)])
def test_rows_are_padded_to_multiples_where_the_recipe_says_so(multiple: int | str | None, tokens: int) -> None:
    recipe = SftRecipe.model_validate({**SFT, "trl": {} if multiple is None else {"pad_to_multiple_of": multiple}})
    assert arguments.padded_to(recipe.trl) == tokens
