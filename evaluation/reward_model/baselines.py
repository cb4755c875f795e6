"""What a reward model must beat to be worth anything: scores that read nothing, or no more than single words."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.records import Ranking
from evaluation.reward_model.pairs import ScoredRanking
from onebase.seeding import seeded_order

Scores = list[list[float]]
"""One score a response, a list for each ranking."""

VOCABULARY = 2000
"""Most frequent words of the training responses that are counted."""
TRAINING = 1000
"""Rankings that the bag of words learns from at most: enough for single words, and seconds of work."""
RIDGE = 0.01
STEPS = 500


def longer_wins(rankings: Sequence[ScoredRanking]) -> Scores:
    return [[float(length) for length in one.lengths] for one in rankings]


def shorter_wins(rankings: Sequence[ScoredRanking]) -> Scores:
    return [[-float(length) for length in one.lengths] for one in rankings]


def random_scores(rankings: Sequence[ScoredRanking], *, seed: int) -> Scores:
    drawn = np.random.default_rng(seed)
    return [drawn.standard_normal(len(one.tiers)).tolist() for one in rankings]


def bag_of_words(training: Sequence[Ranking], rankings: Sequence[ScoredRanking]) -> Scores:
    """Bradley-Terry with a weight for each word: logistic regression on differences of word counts.

        minimise over w: mean over rankings of mean over pairs of -log sigmoid((x_w - x_l) . w) + RIDGE/2 |w|^2

    with x the logarithms of 1 + counts. What it gets right needs no understanding of the prompt: it never sees it.
    """
    if len(training) > TRAINING:
        # From all over, for the sources of a recipe stand one after the other.
        training = [training[index] for index in seeded_order(len(training), 0)[:TRAINING]]
    words = vocabulary([response for one in training for response in one.responses])
    features = counts([response for one in training for response in one.responses], words)
    better, worse, weights = [], [], []
    start = 0
    for one in training:
        for i, j in one.pairs:
            better.append(start + i)
            worse.append(start + j)
            weights.append(1.0 / (len(one.pairs) * len(training)))
        start += len(one.responses)
    learned = fit(features, np.array(better), np.array(worse), np.array(weights))
    return [(counts(one.responses, words) @ learned).tolist() for one in rankings]


def vocabulary(texts: Sequence[str]) -> dict[str, int]:
    """The most frequent words and marks, each with its column; those that occur in one text only are left out."""
    found = Counter(word for text in texts for word in set(_words(text)))
    kept = sorted((word for word, times in found.items() if times > 1), key=lambda word: (-found[word], word))
    return {word: column for column, word in enumerate(kept[:VOCABULARY])}


def counts(texts: Sequence[str], words: dict[str, int]) -> NDArray[np.float64]:
    table = np.zeros((len(texts), len(words)))
    for row, text in enumerate(texts):
        for word, times in Counter(_words(text)).items():
            if word in words:
                table[row, words[word]] = np.log1p(times)
    return table


def fit(
    features: NDArray[np.float64],
    better: NDArray[np.int64],
    worse: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The minimum by accelerated gradient descent (Nesterov 1983), with the step that the curvature allows."""
    rows, columns = features.shape

    def back(pulls: NDArray[np.float64]) -> NDArray[np.float64]:
        return features.T @ (np.bincount(better, pulls, rows) - np.bincount(worse, pulls, rows))

    # The largest curvature, by power iteration; the logistic function's own is at most 1/4.
    direction = np.random.default_rng(0).standard_normal(columns)
    largest = 0.0
    for _ in range(30):
        scores = features @ direction
        direction = back(weights * (scores[better] - scores[worse]))
        largest = float(np.linalg.norm(direction))
        if largest == 0.0:
            break
        direction /= largest
    step = 1.0 / (0.3 * largest + RIDGE)
    current = ahead = np.zeros(columns)
    for number in range(STEPS):
        scores = features @ ahead
        # sigmoid(-margin), by tanh, which does not overflow.
        wrong = 0.5 - 0.5 * np.tanh((scores[better] - scores[worse]) / 2)
        slope = back(-weights * wrong) + RIDGE * ahead
        following = ahead - step * slope
        ahead = following + number / (number + 3) * (following - current)
        current = following
    return current


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.casefold())
