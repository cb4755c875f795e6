"""Roles on one base: policy, reference, reward and value as LoRA adapters (and scalar heads) on frozen weights.

A role is active inside `with roles.active("policy"):`. Activation only decides which adapter a forward uses.
`roles.train(...)` decides once what learns, because PEFT's own `set_adapter` would freeze and thaw roles behind our
back. Adapter weights and heads are fp32 masters whatever the base is stored in.

On disk a role is a folder that PEFT can read, with the head beside it:

    adapter_config.json  adapter_model.safetensors  [head.safetensors]
"""

import json
import re
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from onebase.errors import BaseError, RecordError
from onebase.model.adapter_config import CONFIG, WEIGHTS, read_config
from onebase.model.architecture import bypassed_layers
from onebase.model.base import Base
from onebase.model.forwards import Forwards, ScalarHead
from onebase.model.lora import fuse
from onebase.model.tensor_file import read_tensors
from onebase.recipe.sections import AdapterSection

HEAD = "head.safetensors"


class Roles:
    """The adapters and heads of one process, on one base."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.forwards = Forwards(base)
        self.active = self.forwards.active
        """`with roles.active("policy"):` forwards inside use this role's adapter (None: the bare base)."""
        self.peft: PeftModel | None = None
        self.heads: dict[str, ScalarHead] = {}
        self.names: tuple[str, ...] = ()
        self._trained: frozenset[str] = frozenset()
        self._bypassed = bypassed_layers(base.model)

    # --- which roles there are -------------------------------------------------------------------------------------

    def add(self, role: str, adapter: AdapterSection, *, generator: torch.Generator) -> "Roles":
        """A fresh adapter: A drawn from `generator` (Kaiming uniform, as Hu et al. 2021 in PEFT), B zero."""
        targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
        bypassed = "|".join(map(re.escape, self._bypassed)) if targets == "all-linear" else None
        config = LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=adapter.dropout,
            target_modules=targets,
            exclude_modules=bypassed or None,
            task_type="CAUSAL_LM",
        )
        self._attach(role, config)
        for name, weight in sorted(self._adapter_parameters(role).items()):
            # In place of PEFT's own draw, which takes from the global generator and so depends on what ran before.
            if "lora_A" in name:
                bound = (1 / weight.shape[1]) ** 0.5
                drawn = torch.rand(weight.shape, generator=generator, dtype=torch.float32) * 2 * bound - bound
                weight.data.copy_(drawn)
        return self

    def load(self, role: str, folder: Path) -> "Roles":
        """An adapter (and head, where there is one) from disk, bit for bit; RecordError when keys do not fit.

        Without dropout, whatever the adapter was trained with.
        """
        self._attach(role, read_config(folder))
        _copy_exactly(read_tensors(folder / WEIGHTS), self._adapter_parameters(role), folder / WEIGHTS)
        if (folder / HEAD).exists():
            head = self.add_head(role)
            _copy_exactly(read_tensors(folder / HEAD), dict(head.named_parameters()), folder / HEAD)
        return self

    def copy(self, source: str, role: str) -> "Roles":
        """A new role that starts with the weights of `source`, head included."""
        assert self.peft is not None, "there is no role to copy yet"
        config = LoraConfig(**{**self.peft.peft_config[source].to_dict(), "inference_mode": False, "lora_dropout": 0.0})
        self._attach(role, config)
        _copy_exactly(self.state(source), self._adapter_parameters(role), Path(source))
        if source in self.heads:
            self.add_head(role).load_state_dict(self.heads[source].state_dict())
        return self

    def add_head(self, role: str) -> ScalarHead:
        """A head of zeros for this role; `torch.nn.init` it where that is not wanted."""
        assert role not in self.heads, f"role {role} has a head already"
        self.heads[role] = ScalarHead(self.base.model.config.get_text_config().hidden_size, self.base.device)
        self.train(*self._trained)
        return self.heads[role]

    def _attach(self, role: str, config: LoraConfig) -> None:
        assert role not in self.names, f"role {role} exists already"
        head = next(name for name, module in self.base.model.named_modules() if module is self.forwards.lm_head)
        if config.target_modules != "all-linear" and check_target_module_exists(config, head):
            raise BaseError(
                f"role {role}: its adapter sits on the LM head, which all roles share. Leave the head out of "
                "adapter.targets."
            )
        if self.peft is None:
            try:
                self.peft = PeftModel(self.base.model, config, adapter_name=role, autocast_adapter_dtype=True)
            except ValueError as error:
                raise BaseError(
                    f"role {role}: PEFT finds no place for its adapter: {error}. See adapter.targets."
                ) from None
            self.peft.eval()
        else:
            self.peft.add_adapter(role, config)
        # The recipe's name of the base, not the cache folder it happened to be loaded from.
        config.base_model_name_or_path = self.base.identity.model
        self.names = (*self.names, role)
        adapted = [module for module in self.peft.modules() if isinstance(module, LoraLayer)]
        self._require_plain_layers(role)
        for layer in adapted:
            fuse(layer)
        for weight in self._adapter_parameters(role).values():
            weight.data = weight.data.to(device=self.base.device, dtype=torch.float32)
        self.peft.eval()
        self.train(*self._trained)
        self.forwards.adapted = adapted
        self.forwards.activate(self.forwards.active_role)

    def _require_plain_layers(self, role: str) -> None:
        """BaseError where PEFT has put the adapter on anything but a linear layer of the decoder.

        On embeddings and convolutions its weights have other names and shapes than all that is done with them here
        (drawing, copying, checkpoints); embeddings are often the LM head's weights besides, which all roles share.
        """
        assert self.peft is not None
        for name, module in self.peft.named_modules():
            if not isinstance(module, LoraLayer):
                continue
            place = name.removeprefix("base_model.model.")
            if place in self._bypassed:
                raise BaseError(
                    f"role {role}: its adapter sits on {place}, and the model hands the weights of that layer to its "
                    "kernels past any adapter. Leave it out of adapter.targets."
                )
            # A parameter that is no module of its own (routers, fused experts) has PEFT's wrapper for it.
            if not isinstance(module, ParamWrapper) and not isinstance(module.get_base_layer(), nn.Linear | Conv1D):
                raise BaseError(
                    f"role {role}: its adapter sits on {place}, a layer of kind "
                    f"{type(module.get_base_layer()).__name__}; only linear layers are trained. Leave it out of "
                    "adapter.targets."
                )

    # --- which roles learn --------------------------------------------------------------------------------------------

    def train(self, *roles: str) -> "Roles":
        """Let exactly these roles (adapter and head) receive gradients; everything else is frozen."""
        self._trained = frozenset(roles)
        for role in self.names:
            for parameter in self._adapter_parameters(role).values():
                parameter.requires_grad_(role in self._trained)
        for role, head in self.heads.items():
            head.requires_grad_(role in self._trained)
        return self

    def parameters(self, role: str) -> list[nn.Parameter]:
        """The fp32 masters of a role, adapter first, head last, always in the same order."""
        adapter = [weight for _, weight in sorted(self._adapter_parameters(role).items())]
        return adapter + (list(self.heads[role].parameters()) if role in self.heads else [])

    # --- weights in and out -----------------------------------------------------------------------------------------

    def state(self, role: str) -> dict[str, Tensor]:
        """The adapter's tensors under PEFT's file names, without the head."""
        assert self.peft is not None, "there is no role yet"
        return get_peft_model_state_dict(self.peft, adapter_name=role, save_embedding_layers=False)

    def save(self, role: str, folder: Path) -> list[Path]:
        """Write adapter, config and head of a role into `folder`; returns the files written."""
        assert self.peft is not None, "there is no role yet"
        folder.mkdir(parents=True, exist_ok=True)
        fields = {**self.peft.peft_config[role].to_dict(), "inference_mode": True}
        (folder / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True, default=_jsonable) + "\n")
        states = {WEIGHTS: self.state(role)} | ({HEAD: self.heads[role].state_dict()} if role in self.heads else {})
        for file, state in states.items():
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
            save_file(tensors, folder / file, metadata={"format": "pt"})
        return [folder / CONFIG, *(folder / file for file in states)]

    def _adapter_parameters(self, role: str) -> dict[str, nn.Parameter]:
        """The role's LoRA weights under the names they have in its file."""
        assert self.peft is not None
        marker = f".{role}."
        return {
            name.replace(marker, "."): parameter
            for name, parameter in self.peft.named_parameters()
            if "lora_" in name and marker in name
        }


def _copy_exactly(tensors: dict[str, Tensor], parameters: dict[str, nn.Parameter], origin: Path) -> None:
    """Copy tensors into parameters of the same names and shapes; a missing or surplus key is an error, no warning."""
    missing, surplus = sorted(parameters.keys() - tensors.keys()), sorted(tensors.keys() - parameters.keys())
    if missing or surplus:
        wrong = "".join(
            f"{len(names)} {label} key{'s' if len(names) > 1 else ''}, such as '{names[0]}'. "
            for label, names in (("missing", missing), ("surplus", surplus))
            if names
        )
        raise RecordError(
            f"{origin}: does not fit this base: {wrong}"
            "It was trained on another base or is damaged; train the stage again on this base."
        )
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise RecordError(
                f"{origin}: {name}: expected shape {tuple(parameter.shape)}, found {tuple(tensors[name].shape)}. "
                "It was trained on another base; train the stage again on this base."
            )
        parameter.data.copy_(tensors[name].to(torch.float32))


def _jsonable(value: object) -> object:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
