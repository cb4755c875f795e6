"""`builtin:tasks` at any size: prompts, demonstrations and rankings. data/tasks/rows.py describes the splits."""

from collections.abc import Mapping
from itertools import pairwise
from random import Random

from data.records import Demonstration, Prompt, Ranking
from data.tasks import flaws
from data.tasks.families.catalogue import HELD_OUT, TRAINED
from data.tasks.flaws import TIERS
from data.tasks.rows import Rows, Task
from data.tasks.sizes import GOLD_TOKENS, PROMPT_TOKENS
from onebase.seeding import stream

SHARES = {"sft": 0.3, "reward": 0.3, "rl": 0.3, "heldout-prompts": 0.1}
"""Of all prompts with trained families and templates, by hash."""

DEMONSTRATION_FLAWS = {"chatty": 0.45, "wrong format": 0.15}
"""Shares of demonstrations that are right but not what rankers prefer, like most human writing: habits that preference
training should change. The others are gold. With only a quarter of such demonstrations the greedy answer after SFT was
already the preferred one, and PPO had no mode to move (docs/results/demo.md)."""

_WEIGHTS = {
    "wrong": 5.0,
    "wrong format": 2.2,
    "rambling": 2.0,
    "wrong and untidy": 4.5,
    "repetitive": 1.0,
    "truncated": 0.7,
    "off-task": 1.5,
    "copied input": 0.5,
    "refusal": 0.3,
}
"""How often a flaw is drawn for a ranking, relative to the others.

Right and wrong answers are about equally often tidy, trimmed and rambling. If wrong answers were mostly tidy, trimmings
would be a sign of being right, and a model that cannot distinguish right from wrong would learn to like them.
"""
_DRAWS = 8
"""Sets of responses drawn for a ranking, of which one is kept."""


_ROWS = Rows(
    name="tasks",
    trained=TRAINED,
    held_out=HELD_OUT,
    shares=SHARES,
    heldout=("heldout-families", "heldout-templates"),
    prompt_tokens=PROMPT_TOKENS,
    gold_tokens=GOLD_TOKENS,
)
GOLD = "sft-gold"
"""The prompts of `sft` with gold answers only: what SFT could learn if people wrote what rankers prefer."""
SPLITS = (*_ROWS.splits, GOLD)


def task(split: str, index: int, seed: int) -> Task:
    """Row `index` of a split."""
    return _ROWS.task("sft" if split == GOLD else split, index, seed)


def prompts(split: str, rows: int, seed: int) -> list[Prompt]:
    return [task(split, index, seed).prompt for index in range(rows)]


def demonstrations(
    split: str, rows: int, seed: int, *, flaw_shares: Mapping[str, float] = DEMONSTRATION_FLAWS
) -> list[Demonstration]:
    """Prompts with an answer to imitate. flaw_shares: how many of them show a flaw; {} for gold answers only."""
    if split == GOLD:
        flaw_shares = {}
    return [_demonstration(split, index, seed, flaw_shares) for index in range(rows)]


def rankings(
    split: str, rows: int, seed: int, *, responses: tuple[int, int] = (4, 9), noise: float = 0.0
) -> list[Ranking]:
    """Prompts with ranked responses, the gold answer among them, labelled with their flaws and shuffled.

    responses: fewest and most per ranking. noise: probability that an annotator swaps two neighbouring tiers.
    """
    return [_ranking(split, index, seed, responses, noise) for index in range(rows)]


def _demonstration(split: str, index: int, seed: int, flaw_shares: Mapping[str, float]) -> Demonstration:
    drawn = task(split, index, seed)
    random = Random(stream(seed, "demonstration", split, index))
    flaw = random.choices(["gold", *flaw_shares], weights=[1 - sum(flaw_shares.values()), *flaw_shares.values()])[0]
    if flaw == "chatty":
        options = flaws.chatty(drawn.draw, random)
    else:
        options = flaws.flawed(flaw, drawn.draw, drawn.prompt.user_text, drawn.draw, random)
    return Demonstration(drawn.prompt, next(options, drawn.draw.gold))


def _ranking(split: str, index: int, seed: int, sizes: tuple[int, int], noise: float) -> Ranking:
    drawn = task(split, index, seed)
    random = Random(stream(seed, "ranking", split, index))
    count = random.randint(*sizes)
    # Of several draws the one with the least relation between order and length.
    chosen = min((_responses(drawn, count, random) for _ in range(_DRAWS)), key=_length_bias)
    texts = random.sample(list(chosen), count)
    tiers = _relabelled([TIERS[chosen[text]] for text in texts], noise, Random(stream(seed, "noise", split, index)))
    # Tiers without a gap: a ranking orders responses, and has no distances between them.
    order = sorted(set(tiers))
    return Ranking(
        drawn.prompt,
        tuple(texts),
        tuple(order.index(tier) for tier in tiers),
        tuple(chosen[text] for text in texts),
    )


def _responses(task: Task, count: int, random: Random) -> dict[str, str]:
    """`count` different responses and the flaw of each, the gold answer first."""
    chosen = {task.draw.gold: "gold"}
    weights = dict(_WEIGHTS)
    others = [family for family in TRAINED if family.name != task.prompt.meta["family"]]
    while len(chosen) < count:
        flaw = random.choices(list(weights), weights=list(weights.values()))[0]
        donor = random.choice(others).draw(random)
        options = flaws.flawed(flaw, task.draw, task.prompt.user_text, donor, random)
        response = next((text for text in options if text not in chosen), None)
        if response is not None:
            chosen[response] = flaw
            weights[flaw] /= 3  # rather another flaw than the same again
        elif flaw != "off-task":  # of which there is always another one
            del weights[flaw]
    return chosen


def _length_bias(chosen: Mapping[str, str]) -> float:
    """How often the shorter response is the better one, or the worse one, over all pairs of different tiers; in words
    and in characters."""
    total = 0.0
    for length in (lambda text: len(text.split()), len):
        signs = [
            (length(worse) > length(better)) - (length(worse) < length(better))
            for better, flaw in chosen.items()
            for worse, other in chosen.items()
            if TIERS[flaw] < TIERS[other]
        ]
        total += abs(sum(signs) / len(signs))
    return total


def _relabelled(tiers: list[int], noise: float, random: Random) -> list[int]:
    """What an annotator reports who confuses each two neighbours in the true order with probability `noise`."""
    reported = list(tiers)
    order = sorted(range(len(tiers)), key=tiers.__getitem__)
    for better, worse in pairwise(order):
        if tiers[better] < tiers[worse] and random.random() < noise:
            reported[better], reported[worse] = reported[worse], reported[better]
    return reported
