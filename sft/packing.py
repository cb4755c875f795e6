"""Whether demonstrations can share a row in TRL's way: told apart by positions that restart with each.

Attention in transformers takes note of such positions. Layers with a state (linear attention, convolutions), ALiBi and
positions that are counted from a mask do not:
silently, each demonstration would see those before it.
"""

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from onebase.errors import RecipeError
from onebase.model.forwards import PACKING_TOLERANCE, trial_sequences
from onebase.model.roles import Roles
from onebase.trl.arguments import TrlSection

KEYS = ("packing", "eval_packing", "padding_free")
"""Of the `trl:` block: each puts several demonstrations into one row."""


def decide(roles: Roles, section: TrlSection) -> bool:
    """Whether this run packs: as the recipe says, or else wherever the model can.

    RecipeError where the recipe wants what the model cannot do.
    """
    wanted = section.arguments()
    if wanted.get("padding_free") and wanted.get("packing") is False:
        raise RecipeError(
            "trl.padding_free=true puts several demonstrations into one row, and trl.packing=false wants each in its "
            "own. Remove one of the two."
        )
    shared = [key for key in KEYS if wanted.get(key)]
    if wanted.get("packing") is False and not shared:
        return False
    able = keeps_apart(roles)
    if shared and not able:
        raise RecipeError(
            f"trl.{shared[0]}=true: {type(roles.base.model).__name__} does not keep the demonstrations of one row "
            "apart (linear attention, ALiBi, or positions that it takes no note of), so each would be learned as if "
            f"those before it were its prompt. Leave trl.{shared[0]} out: rows are padded then."
        )
    return bool(wanted.get("packing", able))


def keeps_apart(roles: Roles) -> bool:
    """Tried by the bare base on two short sequences, alone and in one row as TRL's collator makes it."""
    config = roles.base.model.config.get_text_config()
    # Chunks are cut by the place in the row, and are longer than what is tried here.
    if getattr(config, "attention_chunk_size", None):
        return False
    sequences = trial_sequences(roles.base.model)
    collate = DataCollatorForLanguageModeling(pad_token_id=roles.base.pad_id, padding_free=True)
    batch = collate([{"input_ids": ids, "labels": ids, "seq_lengths": [len(ids)]} for ids in sequences])
    row = {name: value.to(roles.base.device) if torch.is_tensor(value) else value for name, value in batch.items()}
    del row["labels"]
    with torch.no_grad(), roles.active(None), roles.forwards.autocast():
        alone = [
            roles.forwards.trunk(
                input_ids=torch.tensor([ids], device=roles.base.device), use_cache=False
            ).last_hidden_state[0]
            for ids in sequences
        ]
        try:
            together = roles.forwards.trunk(**row, use_cache=False).last_hidden_state[0]
        except (ValueError, TypeError, RuntimeError, KeyError, IndexError, NotImplementedError):
            return False
    expected = torch.cat(alone).float()
    worst = (together.float() - expected).abs().max() / expected.abs().max()
    return bool(worst <= PACKING_TOLERANCE[together.dtype])
