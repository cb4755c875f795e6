"""Where a stage can be struck: named calls, and the signal, full disk or failing disk that waits at one of them."""

import importlib
from collections.abc import Callable
from typing import Any

Place = tuple[str, str, int]
"""module:attribute, before or after the call, and at which of its calls."""

TRIED = 5
"""Draws before a run begins: every stage tries its base first."""

SAVES: dict[str, Place] = {
    "save, after the first file": ("onebase.run.checkpoint:save_file", "after", 2),
    "save, before the manifest": ("onebase.run.checkpoint:canonical", "before", 5),
    "save, before the rename": ("onebase.run.checkpoint:os.rename", "before", 2),
    "save, after the rename": ("onebase.run.checkpoint:os.rename", "after", 2),
    "rotation": ("onebase.run.checkpoint:Checkpoints._rotate", "before", 3),
    "right after a save": ("onebase.run.checkpoint:Checkpoints.save", "after", 2),
    "finish, before the record": ("onebase.run.record:write", "before", 1),
    "finish, after the record": ("onebase.run.record:write", "after", 1),
}
TRAINING: dict[str, Place] = {
    "backward": ("torch:Tensor.backward", "before", 3),
    "before the optimiser's step": ("torch.optim:AdamW.step", "before", 3),
    "after the optimiser's step": ("torch.optim:AdamW.step", "after", 3),
}
TRL: dict[str, Place] = {
    "start": ("transformers:Trainer.training_step", "before", 1),
    "mid-epoch": ("transformers:Trainer.training_step", "after", 3),
    "epoch end": ("transformers.trainer_callback:CallbackHandler.on_epoch_end", "before", 1),
    "last step": ("transformers:Trainer.training_step", "before", 4),
    "inside an evaluation": ("transformers.trainer_callback:CallbackHandler.on_prediction_step", "before", 2),
    "generation": ("onebase.inference.sampling:draw", "before", TRIED + 5),
}
POINTS: dict[str, dict[str, Place]] = {
    "sft": {**TRL, **TRAINING, **SAVES},
    "dpo": {**TRL, **TRAINING, **SAVES},
    "reward": {
        "start": ("reward.train:candidate_scores", "before", 1),
        "mid-epoch": ("reward.train:candidate_scores", "after", 3),
        "epoch end": ("onebase.run.checkpoint:Checkpoints.due", "before", 2),
        "last step": ("reward.train:backward", "before", 4),
        "centring": ("reward.train:center", "before", 1),
        "inside an evaluation": ("reward.train:measure", "before", 1),
        **TRAINING,
        **SAVES,
    },
    "ppo": {
        "start": ("onebase.inference.sampling:draw", "before", TRIED + 3),
        "inside a rollout": ("onebase.inference.sampling:draw", "before", TRIED + 16),
        "reference": ("ppo.rollout:logprobs", "before", 2),
        "reward": ("ppo.scores:member_scores", "before", 2),
        "value": ("ppo.rollout:token_values", "before", 2),
        "mid-epoch": ("ppo.rollout:make_experience", "before", 3),
        "epoch end": ("onebase.run.checkpoint:Checkpoints.due", "before", 2),
        "last step": ("ppo.train:update", "before", 4),
        **TRAINING,
        **SAVES,
    },
}
"""By stage. Its run is `SIZES`: four steps in two epochs, saved after every one."""

POSITIONS = ("start", "mid-epoch", "epoch end", "last step", "right after a save", "inside")
"""Where every stage must go on to equal bits; 'inside' is a rollout, or for stages without one an evaluation."""

BRIEF = "limits.response_tokens=48"
"""Room for every response of these rows. Samples for a person, of a model that never ends by itself, take as long."""

SIZES: dict[str, list[str]] = {
    "sft": ["trl.packing=false", "data.0.rows=8", "trl.max_steps=4", "adapter.dropout=0.1", BRIEF],
    "reward": ["data.0.rows=8", "train.epochs=2"],
    "ppo": ["data.0.rows=16", "train.episodes=32"],
    "dpo": ["data.0.rows=8", "trl.max_steps=4", BRIEF],
}

FULL: dict[str, tuple[Place, int | None]] = {
    "full before the folder": (("onebase.run.checkpoint:Checkpoints.save", "before", 2), None),
    "full in the tensors": (("onebase.run.checkpoint:save_file", "before", 2), 8192),
    "full in the state": (("onebase.run.checkpoint:canonical", "after", 4), 0),
    "full in the manifest": (("onebase.run.checkpoint:canonical", "after", 5), 0),
    "full in the adapter": (("onebase.model.roles:Roles.save", "before", 1), 4096),
    "full in the tokenizer": (("transformers:PreTrainedTokenizerBase.save_pretrained", "before", 1), 8192),
    "full at the tokenizer's first file": (("transformers:PreTrainedTokenizerBase.save_pretrained", "before", 1), 0),
    "full in the record": (("onebase.run.record:write", "before", 1), 0),
}
"""When the disk fills up, and to how many bytes; None: no inode is left. It stays full until the process ends."""

READ_ONLY: dict[str, Place] = {
    "read-only at the start": ("onebase.run.folders:hold", "before", 1),
    "read-only before the folder": ("onebase.run.checkpoint:Checkpoints.save", "before", 2),
    "read-only in the tensors": ("onebase.run.checkpoint:save_file", "before", 2),
    "read-only before the rename": ("onebase.run.checkpoint:os.rename", "before", 2),
    "read-only in the adapter": ("onebase.model.roles:Roles.save", "before", 1),
    "read-only in the tokenizer": ("transformers:PreTrainedTokenizerBase.save_pretrained", "before", 1),
    "read-only in the record": ("onebase.run.record:write", "before", 1),
}
"""When the disk takes nothing more, until the process ends; files that are open can still be written."""

FAILING: dict[str, tuple[str, str]] = {
    "write of the tensors": ("write", "*/checkpoints/.step-*/.tmp*"),
    "write of the state": ("write", "*/state.json"),
    "write of the manifest": ("write", "*/manifest.json"),
    "sync of the tensors": ("fsync", "*/tensors.safetensors"),
    "sync of the manifest": ("fsync", "*/manifest.json"),
    "sync of the checkpoint": ("fsync", "*/checkpoints/.step-*[0-9]"),
    "sync of the folder": ("fsync", "*/checkpoints"),
    "write of a metric row": ("write", "*/metrics.jsonl"),
    "sync of the metric rows": ("fsync", "*/metrics.jsonl"),
    "write of the adapter": ("write", "*/.adapter.*/.tmp*"),
    "sync of the record": ("fsync", "*/.stage.json.*"),
}
"""Which call fails with EIO, once, and on which file; from the second save on. safetensors writes a `.tmp*` first."""
WITHIN = {"within the tensors' file": "write of the tensors", "within the adapter's file": "write of the adapter"}
"""Where SIGKILL comes in the middle of a file: at the call of `FAILING`."""
FAILS_FROM: Place = ("onebase.run.checkpoint:Checkpoints.save", "before", 2)


def arm(place: Place, strike: Callable[[], None]) -> None:
    """Call `strike` in this process at the count-th call of the named function."""
    (where, when, count), calls = place, 0
    owner, name = find(where)
    whole = getattr(owner, name)

    def struck(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        number = calls  # a call may come again within itself
        if when == "before" and number == count:
            strike()
        result = whole(*arguments, **options)
        if when == "after" and number == count:
            strike()
        return result

    setattr(owner, name, struck)


def find(where: str) -> tuple[Any, str]:
    """The object that holds the named attribute, and the attribute's name."""
    module_name, _, path = where.partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name
