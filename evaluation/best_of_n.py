"""`onebase best-of-n`: a policy answers each prompt n times, and the response with the highest score is kept.

    {"prompt": "...", "response": "...", "score": 1.3, "scores": [0.2, 1.3, -0.4, 0.9]}

Such rows are demonstrations that `sft` reads: rejection sampling, as in Llama 2 (Touvron et al. 2023,
https://arxiv.org/abs/2307.09288, section 3.2.2). With `keep_all` every response is kept, beside its score.
Best of n moves at most log n - (n - 1)/n nats away from the policy (Beirami et al. 2024,
https://arxiv.org/abs/2401.01879).

The sampled tokens are scored, never re-tokenised text. Prompts are read, answered and written a block at a time. Memory
does not grow with their number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from data.chat.conversations import EncodedPrompt
from data.records import Prompt
from data.select.dropped import DroppedRows
from data.select.room import require_room
from data.select.sources import BUILTIN, Source, load, records_of
from data.writing import row_of
from evaluation.compare.recipe import POLICIES
from evaluation.compare.responses import texts
from evaluation.reward_model.loading import RewardModel
from evaluation.score_file import best_of
from onebase.errors import DataError, RecordError
from onebase.inference.sampling import sample
from onebase.inference.scoring import member_scores, spread_of
from onebase.model.architecture import reach_of
from onebase.run import record, same_chat
from onebase.run.same_chat import ChatTexts
from onebase.seeding import generator

POLICY = "policy"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How responses are drawn."""

    n: int
    max_new_tokens: int
    temperature: float
    batch: int
    """Episodes decoded at once, rounded to whole prompts. It also decides which random numbers go to which prompt."""
    seed: int

    @property
    def prompts(self) -> int:
        """Prompts answered at once."""
        return max(1, self.batch // self.n)


def add_policy(model: RewardModel, folder: Path) -> None:
    """Load the policy's adapter on the base of the reward models. RecordError unless it was trained on that base with
    the same tokens."""
    stage = record.read(folder)
    if stage.record.stage not in POLICIES:
        raise RecordError(
            f"{folder}: expected a policy (a run of stage {', '.join(POLICIES)}), found stage "
            f"'{stage.record.stage}'. Pass runs/<name>/sft, for example."
        )
    record.require_same_base(stage, model.first.record.base)
    same_chat.require(stage, model.first.record.tokenizer, lambda: ChatTexts.of_stage(model.first))
    model.roles.load(POLICY, stage.adapter)


def prompts_of(source: Source, *, seed: int) -> Iterator[Prompt]:
    """Prompts of a file or hub id as they are read, in their order; built-in ones as they are generated. The first is
    read at once: DataError without a prompt."""
    if source.source in BUILTIN:
        prompts = iter(load([source], Prompt, seed=seed).records)
    else:
        prompts = islice(records_of(source, Prompt, DroppedRows()), source.rows)
    first = list(islice(prompts, 1))
    if not first:
        raise DataError("best-of-n: there are no prompts. Check the file and the split.")
    return chain(first, prompts)


def answered(
    model: RewardModel, prompts: Iterator[Prompt], sampling: Sampling, *, keep_all: bool
) -> Iterator[dict[str, Any]]:
    """A row for each prompt, in order. DataError, with its place, if a prompt leaves no room for an answer."""
    reach = reach_of(model.roles.base.model.config)
    require_room([], reach, new_tokens=sampling.max_new_tokens, key="--max-new-tokens")
    number = 0
    while block := list(islice(prompts, sampling.prompts)):
        encoded = [EncodedPrompt(prompt, model.chat.prompt_ids(prompt)) for prompt in block]
        require_room(encoded, reach, new_tokens=sampling.max_new_tokens, key="--max-new-tokens")
        yield from _answer(model, encoded, sampling, number, keep_all=keep_all)
        number += 1


def _answer(
    model: RewardModel, prompts: Sequence[EncodedPrompt], sampling: Sampling, number: int, *, keep_all: bool
) -> Iterator[dict[str, Any]]:
    """The rows of one block. number: of the block; with the seed it decides the draws."""
    n = sampling.n
    drawn = sample(
        model.roles,
        POLICY,
        [encoded.ids for encoded in prompts for _ in range(n)],
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        generator=generator(sampling.seed, "best-of-n", number),
        batch=sampling.prompts * n,
    )
    members = model.ensemble.members
    sequences = model.chat.closed(drawn.episodes.sequences)
    by_member = member_scores(model.roles, members, sequences, tokens_per_microbatch=model.tokens_per_microbatch)
    scores, spread = model.ensemble.combine(by_member).tolist(), spread_of(by_member).tolist()
    responses = texts(model.chat, drawn.episodes)
    for index, encoded in enumerate(prompts):
        block = slice(index * n, (index + 1) * n)
        row, best = row_of(encoded.prompt), best_of(scores[block])
        added: dict[str, Any] = {"scores": scores[block]}
        if len(members) > 1:
            alone = {name: scores[block] for name, scores in zip(members, by_member.tolist(), strict=True)}
            added |= {"members": alone, "spread": spread[block]}
        if keep_all:
            yield {**row, "responses": responses[block], **added, "stopped": drawn.stopped[block].tolist()}
        else:
            place = index * n + best
            kept = {"response": responses[place], "score": scores[place], "stopped": bool(drawn.stopped[place])}
            yield {**row, **kept, **added}
