"""What a PPO run starts from: parents and data, read and verified, four roles on one base, and the optimiser."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from data.chat.conversations import Chat, EncodedPrompt, Limiter, encode_prompts
from data.records import Prompt
from data.select.room import require_room
from data.select.sources import LoadedRecords
from data.select.sources import load as load_records
from evaluation.reward_model import verdict
from onebase.custom.functions import load_function
from onebase.inference.ensemble import FIRST
from onebase.inference.sampling import Engine, sample
from onebase.inference.soundness import require_sound
from onebase.model import base as bases
from onebase.model.base import Base
from onebase.model.roles import Roles
from onebase.run import record, stages
from onebase.run.identity import RunIdentity
from onebase.run.learning import learning_rate_factor
from onebase.run.members import load_members, read_members
from onebase.run.record import DataIdentity, Found
from onebase.run.stages import Stopwatch
from onebase.seeding import generator, seed_everything
from onebase.terminal import say
from ppo.engines import CustomEngine
from ppo.recipe.recipe import PpoRecipe
from ppo.scores import ARGUMENTS, TERMS
from ppo.steering.alarms import unable
from ppo.steering.side_stages import Origin
from ppo.steering.steering import Steering, read_steering_data
from ppo.update import Learner


@dataclass(frozen=True, kw_only=True)
class Data:
    chat: Chat
    prompts: list[EncodedPrompt]
    loaded: LoadedRecords[Prompt]
    """The prompts as they were read, for the data card."""
    identities: list[DataIdentity]


@dataclass(frozen=True, kw_only=True)
class Started:
    """A run before its first step: all that it was given is read and verified, all roles are loaded."""

    origin: Origin
    data: Data
    roles: Roles
    learner: Learner
    steering: Steering

    @property
    def recipe(self) -> PpoRecipe:
        return self.origin.recipe


def start(recipe: PpoRecipe) -> Started:
    """What can be refused is refused before a weight is loaded."""
    watch = Stopwatch()
    parents = read_parents(recipe)
    data = read_data(recipe)
    steered = read_steering_data(recipe, data.chat, data.prompts)
    waiting = recipe.value.warmup_steps
    silent = unable(recipe.alarms, steps=recipe.steps, waiting=waiting, has_value=recipe.has_value)
    if silent is not None:
        say(silent)
    seed_everything(recipe.seed)
    base = bases.load(recipe.base, recipe.chat)
    roles = start_roles(base, parents, recipe)
    learner = start_learner(roles, recipe)
    identities = [*data.identities, *steered.identities]
    identity = stages.run_identity(
        stages.loaded_identity(recipe, base), parents, identities, functions=recipe.function_names
    )
    origin = Origin(recipe=recipe, base=base, parents=parents, data=identities, identity=identity, watch=watch)
    steering = Steering(roles, steered, origin, learner.optimizer)
    return Started(origin=origin, data=data, roles=roles, learner=learner, steering=steering)


def identify(recipe: PpoRecipe) -> RunIdentity:
    """What a run of this recipe goes by today, without a weight loaded."""
    parents, data = read_parents(recipe), read_data(recipe)
    identities = [*data.identities, *read_steering_data(recipe, data.chat, data.prompts).identities]
    return stages.run_identity(stages.identify(recipe), parents, identities, functions=recipe.function_names)


def read_parents(recipe: PpoRecipe) -> dict[str, Found]:
    """The SFT and reward stages, verified; every reward model must come from this very SFT stage."""
    for term in recipe.reward.terms:
        if term.function is not None:
            load_function(term.function, TERMS, takes=ARGUMENTS)  # refused before a weight is loaded
    engine_of(recipe)
    identity = stages.identify(recipe)
    sft = stages.read_parent(recipe.parents.sft, "sft", identity)
    rewards = read_members(recipe.parents.rewards, lambda folder: stages.read_parent(folder, "reward", identity))
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


def start_roles(base: Base, parents: dict[str, Found], recipe: PpoRecipe) -> Roles:
    """All of them, each from its file. LoRA dropout is 0 for every one, whatever SFT used."""
    roles = require_sound(Roles(base))
    roles.load("policy", parents["sft"].adapter)
    roles.load("reference", parents["sft"].adapter)
    load_members(roles, {name: found for name, found in parents.items() if name != "sft"})
    if not recipe.has_value:
        roles.train("policy")
    elif recipe.value.kind == "adapter":
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
        roles.enable_checkpointing()
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
    warmup, kind = recipe.train.warmup_steps, recipe.train.schedule

    def after(waits: int) -> Callable[[int], float]:
        total = recipe.optimizer_steps - waits
        return lambda step: learning_rate_factor(max(0, step - waits), total, warmup, kind)

    factors = [after(alone if role == "policy" else 0) for role in trained]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
    return Learner(optimizer=optimizer, schedule=schedule, trained=trained)


def engine_of(recipe: PpoRecipe) -> Engine:
    """What draws the responses: the recipe's own, or this process."""
    name = recipe.sampling.engine
    if name is None:
        return sample
    return CustomEngine(load_function(name, "sampling.engine"), name, recipe.functions.seconds)


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
