"""The comparison at the end of a run: base, SFT, PPO, DPO and others answer the same held-out prompts.

Responses are judged by the task's own check, if the prompt has one, and by the reward model. Each model answers twice:
greedily, and with samples at temperature 1, which is the policy that PPO optimises. The samples also give the KL to the
SFT policy. Every number has a 95 % interval over prompts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.chat.conversations import Chat, EncodedPrompt, Limiter, encode_prompts
from data.records import Prompt, conversation_of
from data.select.room import require_pieces, require_room
from data.select.sources import load as load_records
from data.select.texts import Piece, load_pieces
from evaluation.compare import run_plots, summary
from evaluation.compare.language import as_episodes, piece_losses, piece_tokens
from evaluation.compare.recipe import POLICIES, CompareRecipe
from evaluation.compare.responses import Responder, adapter_sha256, task_grades, texts
from evaluation.reward_model import verdict
from evaluation.statistics import Estimate, clustered, differences, grouped, ratio
from onebase.errors import RecordError
from onebase.files.writing import canonical, replace_file
from onebase.inference.scoring import kl_between, score
from onebase.inference.soundness import require_sound
from onebase.model import base as bases
from onebase.model.base import Base
from onebase.model.roles import Roles
from onebase.run import folders, record, stages
from onebase.run.record import DataIdentity, FinishedStage, Resources
from onebase.tracking.tracker import METRICS, Tracker
from onebase.tracking.usage import Stopwatch


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One model's responses to all prompts with their metrics. Lists have one entry per prompt."""

    name: str
    texts: list[str]
    metrics: dict[str, list[float]]
    """correctness, form, task_score (their mean), stop_rate: in [0, 1]; reward; kl_to_sft: nats; length: tokens."""
    text_losses: list[float] = field(default_factory=list)
    """The loss of each text that is not an answer, in nats, summed over its tokens: one entry per text, not
    per prompt."""
    text_tokens: list[int] = field(default_factory=list)
    """Tokens of each loss; the same for every model."""

    def only(self, rows: Sequence[int]) -> "Answers":
        """The answers to these prompts. Texts belong to no prompt."""
        return Answers(
            name=self.name,
            texts=[self.texts[row] for row in rows],
            metrics={name: [values[row] for row in rows] for name, values in self.metrics.items()},
        )

    def row(self, prompt: int) -> dict[str, Any]:
        """One answer with its metrics."""
        return {"answer": self.texts[prompt]} | {name: round(row[prompt], 6) for name, row in self.metrics.items()}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    prompts: list[EncodedPrompt]
    answers: list[Answers]
    variants: Mapping[str, str] = field(default_factory=dict[str, str])
    """Further policies, each with the policy of the run that it is a variant of."""

    def by_source(self) -> dict[str, "Comparison"]:
        """The comparison on each source of prompts alone, by its name; built-in tasks by split."""
        rows_of = grouped((encoded.prompt.origin.source, row) for row, encoded in enumerate(self.prompts))
        return {
            source: Comparison(
                prompts=[self.prompts[row] for row in rows],
                answers=[model.only(rows) for model in self.answers],
                variants=self.variants,
            )
            for source, rows in sorted(rows_of.items())
        }

    @property
    def conversations(self) -> list[str]:
        """Of each row. Answers to equal conversations are not independent, so they are resampled together."""
        return [conversation_of(encoded.prompt) for encoded in self.prompts]

    def estimates(self, seed: int) -> dict[str, dict[str, Estimate]]:
        """Mean and interval of every metric, by model."""
        units = self.conversations
        return {
            model.name: {name: clustered(values, units, seed=seed) for name, values in model.metrics.items()}
            | ({"lm_loss": ratio(model.text_losses, model.text_tokens, seed=seed)} if model.text_losses else {})
            for model in self.answers
        }

    def differences(self, seed: int) -> dict[str, dict[str, Estimate]]:
        """Paired by prompt: SFT over base, every other policy over SFT, and each variant over its policy."""
        by_name = {model.name: model for model in self.answers}
        over_sft = [(name, "sft") for name in by_name if name not in ("base", "sft")]
        pairs = dict.fromkeys([("sft", "base"), *over_sft, *self.variants.items()])
        return {
            f"{after} over {before}": self._difference(by_name[after], by_name[before], seed)
            for after, before in pairs
            if after in by_name and before in by_name
        }

    def _difference(self, after: Answers, before: Answers, seed: int) -> dict[str, Estimate]:
        units = self.conversations
        rows = {
            name: clustered(differences(values, before.metrics[name]), units, seed=seed)
            for name, values in after.metrics.items()
            if name in before.metrics
        }
        if not (after.text_losses and before.text_losses):
            return rows
        # The same texts on both sides, so the same numbers of tokens.
        losses = differences(after.text_losses, before.text_losses)
        return rows | {"lm_loss": ratio(losses, after.text_tokens, seed=seed)}


def run(recipe: CompareRecipe) -> dict[str, Any]:
    """Let every model answer, judge the answers, write summary.json and lineage.json; returns the summary."""
    watch = Stopwatch()
    folders.require_run(recipe.out)
    parents = read_parents(recipe)
    chat, prompts, pieces, identities = read_data(recipe)
    base = bases.load(recipe.base, recipe.chat)
    roles = load_roles(base, parents)
    folder = recipe.out / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    respond = Responder(
        roles=roles,
        prompts=[encoded.ids for encoded in prompts],
        folder=folder / "responses",
        max_new_tokens=recipe.sampling.max_new_tokens,
        batch=recipe.sampling.batch,
        seed=recipe.seed,
    )
    models = {"base": None, **{name: parents[name] for name in (*POLICIES, *recipe.policies) if name in parents}}
    answers = [judge(roles, name, stage, respond, chat, prompts, pieces, recipe) for name, stage in models.items()]
    variants = {name: parents[name].record.stage for name in recipe.policies}
    comparison = Comparison(prompts=prompts, answers=answers, variants=variants)
    content = summary.build(
        run=recipe.out.resolve().name,
        recipe=recipe.model_dump(mode="json"),
        estimates=comparison.estimates(recipe.seed),
        differences=comparison.differences(recipe.seed),
        by_source={
            source: (len(part.prompts), part.estimates(recipe.seed), part.differences(recipe.seed))
            for source, part in comparison.by_source().items()
        },
        samples=samples(comparison, recipe.shown),
        prompts=len(prompts),
        data=identities,
        parents=parents,
        resources=Resources.model_validate(watch.usage()),
        device=str(base.device),
    )
    write_answers(comparison, folder / "answers.jsonl")
    replace_file(recipe.out / "lineage.json", canonical(summary.lineage(parents, recipe.out)))
    replace_file(recipe.out / "summary.json", canonical(content))
    trained = {name: (stage.record.stage, stage.folder) for name, stage in parents.items()}
    run_plots.write(content, trained, recipe.out / "plots")
    log(comparison, content, recipe, folder)
    return content


def read_parents(recipe: CompareRecipe) -> dict[str, FinishedStage]:
    """Every stage to compare, verified. All but further SFT stages must descend from the one SFT stage."""
    identity = stages.identify(recipe.base, recipe.chat)
    parts = recipe.parents
    named = {"sft": parts.sft, "reward": parts.reward, "ppo": parts.ppo, "dpo": parts.dpo}
    parents = {name: stages.read_parent(path, name, identity) for name, path in named.items() if path is not None}
    for name, path in recipe.policies.items():
        parents[name] = stages.read_parent(path, None, identity)
        kind = parents[name].record.stage
        if kind not in POLICIES:
            raise RecordError(
                f"policies.{name}: {path} is a finished stage '{kind}'; expected one of {', '.join(POLICIES)}."
            )
    for stage in parents.values():
        if stage.record.stage != "sft":
            record.require_descends(stage, "sft", parents["sft"])
    if "reward" in parents:
        verdict.warn(parents["reward"], "Its rewards in the table say little more.")
    return parents


def read_data(recipe: CompareRecipe) -> tuple[Chat, list[EncodedPrompt], list[Piece], list[DataIdentity]]:
    chat = Chat(*bases.load_tokenizer(recipe.base, recipe.chat), recipe.chat)
    loaded = load_records(recipe.data, Prompt, seed=recipe.seed)
    pieces, identities = load_pieces(recipe.texts, chat, tokens=recipe.text_tokens, seed=recipe.seed)
    limiter = Limiter(recipe.limits)
    prompts = encode_prompts(chat, loaded.records, limiter)
    reach = bases.reach(recipe.base)
    require_room(prompts, reach, new_tokens=recipe.sampling.max_new_tokens)
    require_pieces(pieces, reach, key="text_tokens")
    return chat, prompts, pieces, [*loaded.identities, *limiter.settle("compare"), *identities]


def load_roles(base: Base, parents: Mapping[str, FinishedStage]) -> Roles:
    """All adapters on one base, each under its stage's name. No role is trained."""
    roles = Roles(base)
    require_sound(roles)
    for name, stage in parents.items():
        roles.load(role_of(name), stage.adapter)
    return roles.train()


def role_of(name: str) -> str:
    """Stages keep their names. Other names get a prefix: `keys`, for one, is an attribute of PEFT's modules."""
    return name if name in ("reward", *POLICIES) else f"compared-{name}"


def judge(
    roles: Roles,
    name: str,
    stage: FinishedStage | None,
    respond: Responder,
    chat: Chat,
    prompts: Sequence[EncodedPrompt],
    pieces: Sequence[Piece],
    recipe: CompareRecipe,
) -> Answers:
    """One model's answers with all metrics. stage: None for the bare base."""
    role = None if stage is None else role_of(name)
    sha256 = None if stage is None else adapter_sha256(stage.record.files)
    budget = recipe.sampling.tokens_per_microbatch
    greedy = respond(role, adapter_sha256=sha256, temperature=0.0)
    sampled = respond(role, adapter_sha256=sha256, temperature=1.0)
    answers = texts(chat, greedy)
    metrics = task_grades(prompts, answers)
    metrics |= {f"sampled_{name}": values for name, values in task_grades(prompts, texts(chat, sampled)).items()}
    if "reward" in roles.names:
        # Together, so that the prompt they share is read once.
        both = chat.closed([*greedy.sequences, *sampled.sequences])
        rewards = score(roles, "reward", both, tokens_per_microbatch=budget).tolist()
        metrics["reward"], metrics["sampled_reward"] = rewards[: len(prompts)], rewards[len(prompts) :]
    kl = kl_between(roles, role, "sft", sampled, temperature=1.0, tokens_per_microbatch=budget)
    metrics |= {
        "kl_to_sft": kl.sum(dim=1).tolist(),
        "length": greedy.mask.sum(dim=1).float().tolist(),
        "stop_rate": [float(sequence[-1] in roles.base.stop_ids) for sequence in greedy.sequences],
    }
    if not pieces:
        return Answers(name=name, texts=answers, metrics=metrics)
    episodes = as_episodes(pieces, roles)
    losses = piece_losses(roles, role, episodes, tokens_per_microbatch=budget)
    return Answers(name=name, texts=answers, metrics=metrics, text_losses=losses, text_tokens=piece_tokens(episodes))


def samples(comparison: Comparison, shown: int) -> list[dict[str, str]]:
    """The first prompts with everyone's answer: the first, not the best."""
    return [
        {"prompt": encoded.prompt.user_text, **{model.name: model.texts[index] for model in comparison.answers}}
        for index, encoded in enumerate(comparison.prompts[:shown])
    ]


def write_answers(comparison: Comparison, path: Path) -> None:
    """Every prompt with every model's answer and metrics, one line each."""
    rows = [
        {
            "prompt": encoded.prompt.user_text,
            "source": encoded.prompt.origin.source,
            "family": encoded.prompt.meta.get("family"),
            **{model.name: model.row(index) for model in comparison.answers},
        }
        for index, encoded in enumerate(comparison.prompts)
    ]
    replace_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def log(comparison: Comparison, content: Mapping[str, Any], recipe: CompareRecipe, folder: Path) -> None:
    """The table as a W&B run of its own, in the group of the stages."""
    track = recipe.track
    if track.group is None:
        track = track.model_copy(update={"group": recipe.out.resolve().name})
    values = {
        f"compare/{model}/{name}": estimate["mean"]
        for model, estimates in content["models"].items()
        for name, estimate in estimates.items()
    }
    for name in (METRICS, "samples.jsonl"):  # of an earlier comparison
        (folder / name).unlink(missing_ok=True)
    with Tracker(folder, "compare", track, recipe.model_dump(mode="json")) as tracker:
        tracker.log(0, values)
        rows = samples(comparison, len(comparison.prompts))
        tracker.table("samples", list(rows[0]), [list(row.values()) for row in rows])
        tracker.summarise(values)
