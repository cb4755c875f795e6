"""What our trainers override or read of TRL and transformers, beyond what these libraries promise to keep.

`tests/onebase/trl/test_overrides.py` fails when one of these changes, or when the list is not complete.
"""

from collections.abc import Mapping

METHODS: Mapping[str, Mapping[str, str]] = {
    "transformers.trainer.Trainer": {
        "_save_checkpoint": "a9111e30faa9",
        "_load_from_checkpoint": "a2804e8d93a2",
        "_load_optimizer_and_scheduler": "741032f57d6f",
        "_load_rng_state": "d5ebdfc0a088",
        "_maybe_log_save_evaluate": "af101534f0f7",
        "compute_loss": "160dea726d2f",
        "evaluate": "47001f3acc99",
        "log": "73b8e3acd21a",
        "prediction_step": "d12d7a1d2f99",
        "training_step": "e9760c8ee103",
    },
    "trl.trainer.sft_trainer.SFTTrainer": {
        "_save_checkpoint": "b6ee0a370c26",
        "compute_loss": "ca448211ff65",
        "evaluate": "77fd4eda985f",
        "log": "0d4c8e5d64f8",
        "prediction_step": "2db888fb0567",
        "training_step": "bba41f264647",
    },
    "trl.trainer.dpo_trainer.DPOTrainer": {
        "_save_checkpoint": "b6ee0a370c26",
        "_prepare_dataset": "35e349e8e826",
        "compute_loss": "c453890e84be",
        "evaluate": "c4ef502ba33a",
        "log": "e80e122cfe5f",
        "prediction_step": "1b6b7f23f5e0",
        "training_step": "bba41f264647",
    },
}
"""By class, the methods that ours override: the first digits of the sha256 of their source."""

READ: Mapping[str, Mapping[str, str]] = {
    "transformers.trainer.Trainer": {
        "_inner_training_loop": "20ec4276e99f",
        "_run_epoch": "31aff00f34c3",
        "_finalize_training": "6d6d83d6a271",
        "train": "9a3c2bcd066d",
        "evaluation_loop": "a0fe4d6536f8",
    },
}
"""Methods that ours do not override: a run resumes exactly because of the order in which they call the others."""

ATTRIBUTES: Mapping[str, str] = {
    "_metrics": "lists of each metric since the last log: cut back when a micro-batch is repeated in pieces",
    "_total_train_tokens": "tokens so far: part of a checkpoint",
}
"""Private attributes that TRL's trainers make in their constructors, and what for."""
