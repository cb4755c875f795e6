"""Roles on one base: policy, reference, reward and value as LoRA adapters (and scalar heads) on frozen weights.

A role is active inside `with roles.active("policy"):`. Activation only says whose adapter the next forward uses; what
is trained is decided once with `roles.train(...)`, because PEFT's own `set_adapter` would freeze and thaw roles behind
our back. Adapter weights and heads are fp32 masters whatever the base is stored in.

On disk a role is a folder that PEFT can read, with the head beside it:

    adapter_config.json  adapter_model.safetensors  [head.safetensors]
"""

import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from onebase.base import Base
from onebase.errors import BaseError, RecordError
from onebase.lora import fuse
from onebase.lower import Below, LowerStates, Stack, find_stack, lower_half
from onebase.products import freeze_linear
from onebase.recipes import AdapterSection
from onebase.tree import NAME, Packed, install, pack

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
HEAD = "head.safetensors"

PACKING_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
"""How far a packed row's hidden states may be from those of separate rows, and a forward in two parts from a whole one,
relative to the largest."""


class ScalarHead(nn.Module):
    """One number for each hidden state: `score = hidden . weight + bias`, in fp32.

    The reward head's bias is the shift that makes demonstrations score 0 on average (InstructGPT, section 3.5).
    """

    def __init__(self, hidden_size: int, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, dtype=torch.float32, device=device))
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.float32, device=device))

    def forward(self, hidden: Float[Tensor, "*shape hidden"]) -> Float[Tensor, "*shape"]:
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden.float() @ self.weight + self.bias


class Roles:
    """The adapters and heads of one process, on one base."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.peft: PeftModel | None = None
        self.heads: dict[str, ScalarHead] = {}
        self._layers: list[LoraLayer] = []
        self._trained: frozenset[str] = frozenset()
        self._active: str | None = None
        self._checkpointed: list[GradientCheckpointingLayer] = []
        self.lower: LowerStates | None = None
        """Of the sequences that were kept last, inside `shared_lower`."""
        self._sharing = False
        self._splits: dict[int, bool] = {}
        for module in base.model.modules():
            freeze_linear(module)

    # --- which roles there are -------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.peft.peft_config) if self.peft is not None else ()

    def add(self, role: str, adapter: AdapterSection, *, generator: torch.Generator) -> "Roles":
        """A fresh adapter: A drawn from `generator` (Kaiming uniform, as Hu et al. 2021 in PEFT), B zero."""
        targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
        excluded = lower_half(self.base.model, self.stack) if adapter.layers == "top-half" else None
        config = LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=adapter.dropout,
            target_modules=targets,
            exclude_modules=excluded,
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

    def load(self, role: str, folder: Path, *, dropout: float = 0.0) -> "Roles":
        """An adapter (and head, where there is one) from disk, bit for bit; RecordError when keys do not fit.

        dropout: of the LoRA branch while training; 0 unless asked for, whatever the adapter was trained with.
        """
        config = _read_config(folder)
        config.lora_dropout = dropout
        self._attach(role, config)
        _copy_exactly(load_file(folder / WEIGHTS), self._adapter_parameters(role), folder / WEIGHTS)
        if (folder / HEAD).is_file():
            head = self.add_head(role)
            _copy_exactly(load_file(folder / HEAD), dict(head.named_parameters()), folder / HEAD)
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
        head = next(name for name, module in self.base.model.named_modules() if module is self.lm_head)
        if config.target_modules != "all-linear" and check_target_module_exists(config, head):
            raise BaseError(
                f"role {role}: its adapter sits on the LM head, which all roles share. Leave the head out of "
                "adapter.targets."
            )
        if self.peft is None:
            self.peft = PeftModel(self.base.model, config, adapter_name=role, autocast_adapter_dtype=True)
            self.peft.eval()
        else:
            self.peft.add_adapter(role, config)
        # The recipe's name of the base, not the cache folder it happened to be loaded from.
        config.base_model_name_or_path = self.base.identity.model
        self._layers = [module for module in self.peft.modules() if isinstance(module, LoraLayer)]
        self.lower = None  # the new adapter may sit below what was kept
        for layer in self._layers:
            fuse(layer)
        for weight in self._adapter_parameters(role).values():
            weight.data = weight.data.to(device=self.base.device, dtype=torch.float32)
        self.peft.eval()
        self.train(*self._trained)
        self._activate(self._active)

    # --- which role computes, which roles learn ---------------------------------------------------------------------

    @contextlib.contextmanager
    def active(self, role: str | None) -> Iterator[None]:
        """Forwards inside use this role's adapter (None: the bare base). Never touches `requires_grad`."""
        assert role is None or role in self.names, f"no role {role}; there are {self.names}"
        before = self._active
        self._activate(role)
        try:
            yield
        finally:
            self._activate(before)

    def _activate(self, role: str | None) -> None:
        self._active = role
        for layer in self._layers:
            layer._active_adapter = [] if role is None else [role]

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

    def enable_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them (Chen et al. 2016, arXiv:1604.06174).

        The recomputation runs under the role that was active in the forward pass: by the time of `backward()` another
        role may be active, and its adapter would silently give wrong gradients.
        """

        def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
            return contextlib.nullcontext(), self.active(self._active)

        self.base.model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False, "context_fn": contexts}
        )
        self._checkpointed = [m for m in self.base.model.modules() if isinstance(m, GradientCheckpointingLayer)]

    @contextlib.contextmanager
    def training_forward(self) -> Iterator[None]:
        """Switches checkpointing on where it is enabled. The model itself stays in eval mode: dropout never runs."""
        for layer in self._checkpointed:
            layer.training = True
        try:
            yield
        finally:
            for layer in self._checkpointed:
                layer.training = False

    # --- forwards ---------------------------------------------------------------------------------------------------

    def hidden_states(self, input_ids: Int[Tensor, "B S"]) -> Float[Tensor, "B S H"]:
        """The active role's last hidden states, for sequences padded on the RIGHT.

        There is no mask: attention is causal, so a real token never looks at the padding behind it.
        """
        with self.base.autocast():
            return self.trunk(input_ids=input_ids, use_cache=False).last_hidden_state

    def packed_states(
        self, packed: Packed, *, cache: Cache | None = None, below: Below | None = None
    ) -> Float[Tensor, "T H"]:
        """The active role's last hidden states of sequences in one row (`onebase.tree`).

        cache: keeps the row's keys and values, where decoding goes on from it. below: what the lower layers give
        for the row, where that is known; they are not run then.
        """
        assert self.base.model.config._attn_implementation == NAME, "ask `packs` first: without it the tree is ignored"
        # Four dimensions tell transformers to build no mask of its own; the tree says who sees whom.
        unused = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.input_ids.device)
        tokens = {"input_ids": packed.input_ids} if below is None else {"inputs_embeds": below.states.unsqueeze(0)}
        with self.base.autocast(), self._above(below):
            return self.trunk(
                **tokens,
                position_ids=packed.positions,
                attention_mask=unused,
                tree=packed.tree,
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state[0]

    def decoding_states(
        self, tokens: Int[Tensor, "B 1"], positions: Int[Tensor, " B"], cache: Cache, *, reach: int
    ) -> Float[Tensor, "B H"]:
        """The active role's last hidden states of one token a sequence, each with a cache from its own position 0.

        reach: of the cache, one more than the last position.
        """
        columns = torch.arange(reach, device=tokens.device)
        with self.base.autocast():
            return self.trunk(
                input_ids=tokens,
                position_ids=positions.unsqueeze(1),
                attention_mask=(columns <= positions.unsqueeze(1))[:, None, None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, 0]

    @functools.cached_property
    def packs(self) -> bool:
        """Whether this model computes the same on packed rows; set it to False to pad instead.

        Tried on a few tokens by the bare base: models with sliding windows, ALiBi or linear attention do not, whatever
        their configuration says.
        """
        config = self.base.model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        # Windows and chunks that stand in the mask alone are longer than what is tried here.
        if kinds - {"full_attention"} or getattr(config, "attention_chunk_size", None):
            return False
        sequences, packed = self._trial()
        before = self.base.model.config._attn_implementation or "eager"
        try:
            with torch.no_grad(), self.active(None):
                # Before `install`, or what the tree's attention leaves out would be missing on both sides.
                apart = [self.hidden_states(torch.tensor([one], device=self.base.device))[0, -1] for one in sequences]
                install(self.base.model)
                together = self.packed_states(packed)
        except (ValueError, TypeError, RuntimeError, KeyError, AssertionError):
            self.base.model.set_attn_implementation(before)
            return False
        last = [packed.columns(row, range(len(one) - 1, len(one)))[0] for row, one in enumerate(sequences)]
        expected = torch.stack(apart).float()
        worst = (together[last].float() - expected).abs().max() / expected.abs().max()
        same = bool(worst <= PACKING_TOLERANCE[together.dtype])
        if not same:
            self.base.model.set_attn_implementation(before)
        return same

    def _trial(self) -> tuple[list[list[int]], Packed]:
        """A few tokens that it is tried on what a model can do."""
        vocabulary = self.base.model.config.get_text_config().vocab_size
        ids = [(7 * index + 3) % vocabulary for index in range(24)]
        sequences = [ids[:13], ids[:8] + ids[13:]]
        return sequences, pack(sequences, device=self.base.device)

    # --- the layers below every adapter (`onebase.lower`) -----------------------------------------------------------

    @contextlib.contextmanager
    def shared_lower(self) -> Iterator[None]:
        """Sequences given to `keep_lower` inside go through the untouched layers once, for all roles and passes."""
        self._sharing = True
        try:
            yield
        finally:
            self._sharing, self.lower = False, None

    def keep_lower(self, sequences: Sequence[Sequence[int]], *, tokens: int) -> None:
        """Compute and keep what the untouched layers give for these sequences, `tokens` at once, instead of those kept
        before; forwards of other sequences stay whole.

        Outside `shared_lower`, or where an adapter sits on the lowest layer, nothing happens. Results differ from those
        of whole forwards by rounding, for the lower layers have seen other batches.
        """
        self.lower = None
        depth = self.untouched
        if not (self._sharing and depth and self.splits(depth)):
            return
        below = functools.partial(self._states_below, depth)
        self.lower = LowerStates.compute(depth, below, sequences, tokens=tokens, device=self.base.device)

    @torch.no_grad()
    def _states_below(self, depth: int, packed: Packed) -> Float[Tensor, "T H"]:
        """The input of layer `depth` on a packed row, by the bare base and without gradients."""
        assert self.stack is not None, "ask `untouched` first"
        found: list[Any] = []
        hook = self.stack.layers[depth - 1].register_forward_hook(lambda layer, given, out: found.append(out))
        try:
            with self.active(None), self.stack.only(0, depth):
                self.packed_states(packed)
        finally:
            hook.remove()
        return (found[0][0] if isinstance(found[0], tuple) else found[0])[0]

    @functools.cached_property
    def stack(self) -> Stack | None:
        """The decoder layers, where they can be told."""
        return find_stack(self.base.model)

    @property
    def untouched(self) -> int:
        """How many of the lowest layers hold no adapter of any role; 0 where one sits outside the layers."""
        if self.stack is None:
            return 0
        counts = [sum(isinstance(part, LoraLayer) for part in layer.modules()) for layer in self.stack.layers]
        if sum(counts) < len(self._layers):
            return 0
        return next((index for index, count in enumerate(counts) if count), 0)

    def splits(self, depth: int) -> bool:
        """Whether packed rows can go through the layers below `depth`, then through those above; tried as `packs` is.

        Models that scale what they take for embeddings, or count their layers, do not.
        """
        if not self.packs:
            return False
        if depth not in self._splits:
            _, packed = self._trial()
            try:
                with torch.no_grad(), self.active(None):
                    whole = self.packed_states(packed)
                    parts = self.packed_states(packed, below=Below(depth, self._states_below(depth, packed)))
                worst = float((parts - whole).float().abs().max() / whole.float().abs().max())
                self._splits[depth] = worst <= PACKING_TOLERANCE[whole.dtype]
            except (ValueError, TypeError, RuntimeError, KeyError, IndexError, AttributeError):
                self._splits[depth] = False
        return self._splits[depth]

    def _above(self, below: Below | None) -> contextlib.AbstractContextManager[None]:
        if below is None:
            return contextlib.nullcontext()
        assert self.stack is not None, "ask `untouched` first"
        return self.stack.only(below.depth, len(self.stack.layers))

    # ----------------------------------------------------------------------------------------------------------------

    @property
    def trunk(self) -> nn.Module:
        """The decoder without its LM head."""
        return getattr(self.base.model, self.base.model.base_model_prefix)

    @property
    def lm_head(self) -> nn.Module:
        head = self.base.model.get_output_embeddings()
        assert head is not None, "a causal language model has an LM head"
        return head

    # --- weights in and out -----------------------------------------------------------------------------------------

    def state(self, role: str) -> dict[str, Tensor]:
        """The adapter's tensors under PEFT's file names, without the head."""
        assert self.peft is not None, "there is no role yet"
        return get_peft_model_state_dict(self.peft, adapter_name=role, save_embedding_layers=False)

    def save(self, role: str, folder: Path) -> list[Path]:
        """Write adapter, config and head of a role into `folder`; returns the files written."""
        assert self.peft is not None, "there is no role yet"
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state(role).items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        fields = {**self.peft.peft_config[role].to_dict(), "inference_mode": True}
        (folder / CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True, default=_jsonable) + "\n")
        written = [folder / WEIGHTS, folder / CONFIG]
        if role in self.heads:
            head = {name: tensor.detach().cpu().contiguous() for name, tensor in self.heads[role].state_dict().items()}
            save_file(head, folder / HEAD, metadata={"format": "pt"})
            written.append(folder / HEAD)
        return written

    def _adapter_parameters(self, role: str) -> dict[str, nn.Parameter]:
        """The role's LoRA weights under the names they have in its file."""
        assert self.peft is not None
        marker = f".{role}."
        return {
            name.replace(marker, "."): parameter
            for name, parameter in self.peft.named_parameters()
            if "lora_" in name and marker in name
        }


def _read_config(folder: Path) -> LoraConfig:
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise RecordError(
                f"{folder}: expected an adapter, but {name} is missing. Pass the folder of a finished stage."
            )
    fields: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if fields.get("peft_type") != "LORA":
        raise RecordError(f"{folder / CONFIG}: expected peft_type LORA, found {fields.get('peft_type')!r}.")
    return LoraConfig(**{**fields, "inference_mode": False})


def _copy_exactly(found: dict[str, Tensor], parameters: dict[str, nn.Parameter], origin: Path) -> None:
    """Copy tensors into parameters of the same names and shapes; a missing or surplus key is an error, no warning."""
    missing, surplus = sorted(parameters.keys() - found.keys()), sorted(found.keys() - parameters.keys())
    if missing or surplus:
        raise RecordError(
            f"{origin}: does not fit this base: {_some('missing', missing)}{_some('surplus', surplus)}"
            "It was trained on another base or is damaged; train the stage again on this base."
        )
    for name, parameter in parameters.items():
        if found[name].shape != parameter.shape:
            raise RecordError(
                f"{origin}: {name}: expected shape {tuple(parameter.shape)}, found {tuple(found[name].shape)}. "
                "It was trained on another base; train the stage again on this base."
            )
        parameter.data.copy_(found[name].to(torch.float32))


def _some(label: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    return f"{len(names)} {label} key{'s' if len(names) > 1 else ''}, such as '{names[0]}'. "


def _jsonable(value: object) -> object:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
