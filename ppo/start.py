"""What a PPO run starts from: parents and data, read and verified, four roles on one base, and the optimiser."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from data.chat.conversations import Chat, EncodedPrompt, Limiter, encode_prompts
from data.records import Prompt
from data.select.room import require_room
from data.select.sources import LoadedRecords
from data.select.sources import load as load_records
from evaluation.reward_model import verdict
from onebase.inference.scoring import FIRST
from onebase.inference.soundness import require_sound
from onebase.model import base as bases
from onebase.model.base import Base
from onebase.model.roles import Roles
from onebase.run import record, stages
from onebase.run.identity import RunIdentity
from onebase.run.learning import learning_rate_factor, learning_state, restore_learning, restoring
from onebase.run.record import DataIdentity, FinishedStage
from onebase.seeding import generator, seed_everything
from onebase.terminal import say
from onebase.tracking.usage import Stopwatch
from ppo.maths.rewards import ScoreMoments
from ppo.method import Method, method_of
from ppo.recipe.recipe import PpoRecipe
from ppo.rollout import PpoState
from ppo.steering.alarms import unable
from ppo.steering.steering import Steering, read_steering_data
from ppo.update import Learner


@dataclass(frozen=True, kw_only=True)
class Data:
    chat: Chat
    prompts: list[EncodedPrompt]
    loaded: LoadedRecords[Prompt]
    """The prompts as they were read, for the data card."""
    identities: list[DataIdentity]


@dataclass(kw_only=True)
class PpoRun:
    """The state of a run between two steps: its verified inputs, and everything that changes."""

    origin: stages.Origin[PpoRecipe]
    data: Data
    method: Method
    roles: Roles
    learner: Learner
    steering: Steering
    state: PpoState
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the last step."""

    @property
    def recipe(self) -> PpoRecipe:
        return self.origin.recipe

    def checkpoint(self) -> dict[str, Any]:
        """All of a run between two steps."""
        learner = self.learner
        learning = learning_state(self.roles, tuple(learner.trained), learner.optimizer, learner.schedule)
        more = {"ppo": asdict(self.state), "metrics": self.metrics, "steering": self.steering.state()}
        return learning | more

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Put back what `checkpoint` saved."""
        learner = self.learner
        restore_learning(saved, self.roles, tuple(learner.trained), learner.optimizer, learner.schedule)
        with restoring("what steers the run"):
            self.steering.restore(saved["steering"])
            moments = ScoreMoments(**saved["ppo"]["score_moments"])
            self.state = PpoState(kl_weight=saved["ppo"]["kl_weight"], score_moments=moments)
            self.metrics = dict(saved["metrics"])


def start(recipe: PpoRecipe) -> PpoRun:
    """Read and verify everything, then load the roles: what can be refused is refused before a weight is loaded."""
    watch = Stopwatch()
    method, parents, data = method_of(recipe), read_parents(recipe), read_data(recipe)
    steering_data = read_steering_data(recipe, data.chat, data.prompts)
    has_value, waiting = method.value_role is not None, recipe.value.warmup_steps
    warning = unable(recipe.alarms, steps=recipe.steps, waiting=waiting, has_value=has_value)
    if warning is not None:
        say(warning)
    seed_everything(recipe.seed)
    base = bases.load(recipe.base, recipe.chat)
    roles = start_roles(base, parents, recipe)
    learner = start_learner(roles, recipe)
    identities = [*data.identities, *steering_data.identities]
    origin = stages.Origin(
        stage="ppo",
        recipe=recipe,
        base=base,
        parents=parents,
        data=identities,
        functions=recipe.function_names,
        watch=watch,
    )
    return PpoRun(
        origin=origin,
        data=data,
        method=method,
        roles=roles,
        learner=learner,
        steering=Steering(roles, steering_data, origin, method, learner.optimizer),
        state=PpoState(kl_weight=recipe.kl.weight),
    )


def identify(recipe: PpoRecipe) -> RunIdentity:
    """The identity of a run of this recipe today, without loading a weight."""
    method_of(recipe)  # loads the functions, which count
    parents, data = read_parents(recipe), read_data(recipe)
    identities = [*data.identities, *read_steering_data(recipe, data.chat, data.prompts).identities]
    today = stages.identify(recipe.base, recipe.chat)
    return stages.run_identity(today.base, today.tokenizer, parents, identities, functions=recipe.function_names)


def read_parents(recipe: PpoRecipe) -> dict[str, FinishedStage]:
    """The SFT and reward stages, verified; every reward model must come from this very SFT stage."""
    identity = stages.identify(recipe.base, recipe.chat)
    sft = stages.read_parent(recipe.parents.sft, "sft", identity)
    rewards = stages.read_members(recipe.parents.rewards, lambda folder: stages.read_parent(folder, "reward", identity))
    for reward in rewards.values():
        record.require_descends(reward, "sft", sft)
        if recipe.reward.require_better_than_baselines:
            verdict.require_better(reward, "reward.require_better_than_baselines")
        verdict.warn(reward, "PPO will learn what it pays for. reward.require_better_than_baselines=true refuses it.")
    return {"sft": sft, **rewards}


def read_data(recipe: PpoRecipe) -> Data:
    chat = Chat(*bases.load_tokenizer(recipe.base, recipe.chat), recipe.chat)
    limiter = Limiter(recipe.limits)
    loaded = load_records(recipe.data, Prompt, seed=recipe.seed)
    prompts = encode_prompts(chat, loaded.records, limiter)
    require_room(prompts, bases.reach(recipe.base), new_tokens=recipe.sampling.max_new_tokens)
    identities = [*loaded.identities, *limiter.settle("ppo")]
    return Data(chat=chat, prompts=prompts, loaded=loaded, identities=identities)


def start_roles(base: Base, parents: dict[str, FinishedStage], recipe: PpoRecipe) -> Roles:
    """All of them, each from its file. LoRA dropout is 0 for every one, whatever SFT used."""
    roles = Roles(base)
    require_sound(roles)
    roles.load("policy", parents["sft"].adapter)
    roles.load("reference", parents["sft"].adapter)
    stages.load_members(roles, {name: parent for name, parent in parents.items() if name != "sft"})
    if recipe.value_role is None:
        roles.train("policy")
    elif recipe.value_role == "value":
        if recipe.parents.rewards:
            roles.copy(FIRST, "value")
        else:
            # What the policy starts from reads problems and answers already; of their worth it knows nothing yet.
            roles.copy("reference", "value").add_head("value")
        roles.train("policy", "value")
    else:
        # A head of zeros: it predicts 0, the mean score of demonstrations, until it has learned better.
        roles.add_head("policy")
        roles.train("policy")
    if recipe.train.activation_checkpointing:
        roles.forwards.enable_checkpointing()
    return roles


def start_learner(roles: Roles, recipe: PpoRecipe) -> Learner:
    """AdamW over the trained roles; eps 1e-5 as in OpenAI baselines, for second moments are tiny at the start."""
    trained = {role: roles.parameters(role) for role in ("policy", "value") if role in roles.names}
    value_rate = recipe.value.learning_rate or recipe.train.learning_rate
    rates = {"policy": recipe.train.learning_rate, "value": value_rate}
    groups = [{"params": parameters, "lr": rates[role]} for role, parameters in trained.items()]
    optimizer = torch.optim.AdamW(groups, eps=1e-5, weight_decay=0.0, fused=True)
    # While the value function learns alone, the policy's own warm-up has not begun.
    alone = recipe.value.warmup_steps * recipe.optimizer_steps // recipe.steps
    last, warmup, kind = recipe.optimizer_steps, recipe.train.warmup_steps, recipe.train.schedule

    def after(waits: int) -> Callable[[int], float]:
        factors = [learning_rate_factor(max(0, step - waits), last - waits, warmup, kind) for step in range(last + 1)]
        return lambda step: factors[min(step, last)]

    factors = [after(alone if role == "policy" else 0) for role in trained]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
    return Learner(optimizer=optimizer, schedule=schedule, trained=trained)


def batches(data: Data, recipe: PpoRecipe) -> Iterator[list[EncodedPrompt]]:
    """Prompts of each step, each one repeated for its responses. All prompts are seen before one comes again."""
    queue: list[int] = []
    passes = itertools.count()
    for _ in range(recipe.steps):
        while len(queue) < recipe.prompts_per_step:
            order = generator(recipe.seed, "prompts", next(passes))
            queue += torch.randperm(len(data.prompts), generator=order).tolist()
        chosen, queue = queue[: recipe.prompts_per_step], queue[recipe.prompts_per_step :]
        yield [data.prompts[index] for index in chosen for _ in range(recipe.sampling.responses_per_prompt)]
