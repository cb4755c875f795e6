"""What SFT and DPO share: TRL's trainers on our roles, with fp32 masters, our metrics and our checkpoints."""

import itertools
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, get_scheduler
from transformers.utils.logging import log_levels

from onebase.errors import Interrupted, RecipeError
from onebase.model.roles import Roles
from onebase.recipe.reader import unknown_key
from onebase.run.session import Session
from onebase.tracking import usage
from onebase.tracking.progress import track
from onebase.trl.arguments import CHECKPOINTING, TrlSection
from onebase.trl.resumable import ROLE, Resumable

REFUSALS = (ValueError, TypeError, NotImplementedError, ImportError, KeyError)
"""How libraries refuse a setting."""

T = TypeVar("T", bound=Resumable)


def configure(
    config: Callable[..., Any], section: TrlSection, roles: Roles, *, folder: Any, seed: int, **decided: Any
) -> Any:
    """TRL's config: the recipe's block, and what follows from base and hardware; RecipeError where TRL refuses.

    decided: what the stage has settled where the recipe leaves it open.
    """
    settings = {
        "output_dir": str(folder),
        "seed": seed,
        "data_seed": seed,
        # TRL defaults to bf16, which AVX2 CPUs emulate 25 times slower than fp32.
        "bf16": roles.base.computes_in_bf16,
        "fp16": False,
        "use_cpu": roles.base.device.type == "cpu",
        "report_to": "none",
        "logging_steps": 1,
        # Else a NaN loss is logged as 0 from then on.
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        # TRL would add the load-balancing loss of a mixture of experts: a function of the whole micro-batch, on routers
        # that are frozen.
        "router_aux_loss_coef": 0.0,
        **decided,
    }
    try:
        made = config(**{**settings, **section.arguments()})
    except REFUSALS as error:
        raise RecipeError(f"trl: {config.__name__} refuses these settings: {error}") from error
    if made.n_gpu > 1:  # one process, one GPU: Trainer would spread the model over all that it sees, which TRL refuses
        made._n_gpu = 1
    return made


def rehearse(config: Any, roles: Roles) -> None:
    """RecipeError where what Trainer makes only when it starts to train cannot be made, before there is anything to
    lose: optimiser, schedule, loader."""
    _require_checkpointing(config, roles)
    if config.router_aux_loss_coef and not hasattr(roles.base.model.config.get_text_config(), "output_router_logits"):
        raise RecipeError(
            f"trl.router_aux_loss_coef={config.router_aux_loss_coef}: {type(roles.base.model).__name__} is not a "
            "mixture of experts and has no such loss. Remove the key."
        )
    rows: Any = [0]
    loader = {
        name: getattr(config, f"dataloader_{name}")
        for name in ("num_workers", "persistent_workers", "prefetch_factor", "multiprocessing_context")
    }

    def optimizer() -> torch.optim.Optimizer:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(config, roles.base.model)
        return kind([torch.nn.Parameter(torch.zeros(1))], **options)

    schedule = partial(
        get_scheduler,
        config.lr_scheduler_type,
        num_warmup_steps=0,
        num_training_steps=10,
        scheduler_specific_kwargs=config.lr_scheduler_kwargs,
    )
    trials: dict[str, Callable[[], object]] = {
        f"log_level: expected one of {', '.join(log_levels)}, found": config.get_process_log_level,
        "dataloader_...: no loader can be made with these": lambda: DataLoader(rows, **loader),
        f"optim={_plain(config.optim)}: this optimiser cannot be used here": optimizer,
        f"lr_scheduler_type={_plain(config.lr_scheduler_type)}, with trl.lr_scheduler_kwargs="
        f"{config.lr_scheduler_kwargs}: this schedule cannot be made": lambda: schedule(optimizer()),
    }
    for problem, trial in trials.items():
        try:
            trial()
        except (*REFUSALS, RuntimeError, AttributeError) as error:
            raise RecipeError(f"trl.{problem}: {error}") from error


def _require_checkpointing(config: Any, roles: Roles) -> None:
    options = config.gradient_checkpointing_kwargs or {}
    if not isinstance(options, dict):
        raise RecipeError(f"trl.gradient_checkpointing_kwargs: expected keys with values, found {options!r}.")
    unknown = sorted(options.keys() - CHECKPOINTING)
    if unknown:
        raise RecipeError(unknown_key("trl.gradient_checkpointing_kwargs", unknown[0], sorted(CHECKPOINTING)))
    every = options.get("every_n_layers", 1)
    if type(every) is not int or every < 1:
        raise RecipeError(
            f"trl.gradient_checkpointing_kwargs: every_n_layers: expected a whole number above 0, found {every!r}."
        )
    if config.gradient_checkpointing and not roles.base.model.supports_gradient_checkpointing:
        raise RecipeError(
            f"trl.gradient_checkpointing=true (TRL's default): transformers has none for "
            f"{type(roles.base.model).__name__}. Pass trl.gradient_checkpointing=false."
        )


def _plain(value: Any) -> str:
    return str(getattr(value, "value", value))


def construct(
    kind: Callable[..., T],
    config: Any,
    roles: Roles,
    rows: Sequence[list[dict[str, Any]]],
    *,
    session: Session,
    names: Mapping[str, str],
) -> T:
    """A trainer that starts from exactly the adapter that `roles` holds under the name 'default', in fp32.

    rows: to train on, and held out. names: of metrics, as TRL and we call them.

    On a quantised base TRL casts everything trainable to bf16 in its constructor, and at the learning rates of RL most
    steps would round away: so everything is frozen while it is built and thawed afterwards.
    """
    before = {name: tensor.clone() for name, tensor in roles.state(ROLE).items()}
    roles.train()
    options: dict[str, Any] = {"model": roles.peft, "args": config, "processing_class": roles.base.tokenizer}
    try:
        training, held_out = map(Dataset.from_list, rows)
        trainer = kind(train_dataset=training, eval_dataset=held_out, **options)
    except REFUSALS as error:
        raise RecipeError(f"trl: the trainer refuses these settings: {error}") from error
    roles.train(ROLE)
    for name, tensor in roles.state(ROLE).items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[name]), f"TRL's constructor changed {name}"
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    trainer.roles, trainer.session = roles, session
    trainer.batch, trainer.losses, trainer.latest, trainer.tokens_logged = [], [], {}, 0.0
    trainer.add_callback(Report(trainer, names))
    return trainer


def measure_and_train(trainer: Resumable, *, check: Callable[[Mapping[str, float]], None] | None = None) -> None:
    """Measure on held-out rows before and after. check: what must hold of the first numbers."""
    with trainer.roles.active(ROLE):
        if trainer.session.resumed is None:
            trainer.evaluate()
            if check is not None:
                check(trainer.latest)
        train(trainer)
        trainer.evaluate()


def train(trainer: Resumable) -> None:
    """Train to the end, from the session's checkpoint where there is one."""
    session = trainer.session
    resumed = session.resumed
    try:
        trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed.folder))
    except Interrupted:
        if not trainer.changed:
            trainer.save_boundary()
        raise


class Report(TrainerCallback):
    """Sends what a trainer logs to the tracker, shows progress, and skips a step with a gradient that is not finite."""

    def __init__(self, trainer: Resumable, names: Mapping[str, str]) -> None:
        """names: what TRL calls a metric -> its name in ours, without the stage; what is not named is not logged."""
        self._trainer, self._names = trainer, names
        self._last = 0.0

    def on_train_begin(self, *arguments: Any, **options: Any) -> None:
        trainer = self._trainer
        trainer.note_boundary()
        stage, total = trainer.session.tracker.stage, trainer.state.max_steps
        self._bar: Generator[int] = track(itertools.count(1), total=total, description=stage)
        next(self._bar)
        self._last = time.perf_counter()

    def on_pre_optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Also from here on the weights are between two steps."""
        trainer, weights = self._trainer, self._trainer.roles.parameters(ROLE)
        total = math.hypot(*(float(weight.grad.norm()) for weight in weights if weight.grad is not None))
        # A boundary saved after this would hold a strike that the repeated step counts again.
        trainer.changed = True
        step = trainer.state.global_step + 1
        if not trainer.session.is_finite(step, *trainer.losses, total, batch=trainer.batch):
            # AdamW would carry a NaN into its moments: without gradients the step changes nothing.
            for weight in weights:
                weight.grad = None

    def on_step_end(self, *arguments: Any, **options: Any) -> None:
        state = self._trainer.state
        if state.global_step < state.max_steps:
            next(self._bar)

    def on_train_end(self, *arguments: Any, **options: Any) -> None:
        self._bar.close()

    def on_evaluate(self, *arguments: Any, **options: Any) -> None:
        # Time spent evaluating is no training time.
        self._last = time.perf_counter()

    def on_log(self, *arguments: Any, logs: Mapping[str, float], **options: Any) -> None:
        trainer, tracker = self._trainer, self._trainer.session.tracker
        values = {self._names[name]: float(value) for name, value in logs.items() if name in self._names}
        if not values:
            return
        if "loss" in logs:
            now, tokens = time.perf_counter(), float(logs.get("num_tokens", trainer.tokens_logged))
            values["tokens_per_second"] = (tokens - trainer.tokens_logged) / (now - self._last)
            trainer.tokens_logged, self._last = tokens, now
        rows = {f"{tracker.stage}/{name}": value for name, value in values.items()}
        tracker.log(trainer.state.global_step, {**rows, **usage.peaks()})
        trainer.latest.update(rows)
