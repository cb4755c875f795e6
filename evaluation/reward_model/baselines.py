"""What a reward model must beat to be useful: rules that read nothing, or no more than single words."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit

from data.records import Ranking
from evaluation.reward_model.pairs import ScoredRanking
from onebase.seeding import seeded_order

Sparse = Any
"""A csr_array: SciPy comes without types."""

Scores = list[list[float]]
"""One score per response, a list for each ranking."""

VOCABULARY = 2000
"""Most frequent words of the training responses that are counted."""
TRAINING = 1000
"""The bag of words learns from at most so many rankings: enough for single words, and seconds of work."""
RIDGE = 0.01


def longer_wins(rankings: Sequence[ScoredRanking]) -> Scores:
    return [[float(length) for length in ranking.lengths] for ranking in rankings]


def shorter_wins(rankings: Sequence[ScoredRanking]) -> Scores:
    return [[-float(length) for length in ranking.lengths] for ranking in rankings]


def random_scores(rankings: Sequence[ScoredRanking], *, seed: int) -> Scores:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(len(ranking.tiers)).tolist() for ranking in rankings]


def bag_of_words(training: Sequence[Ranking], rankings: Sequence[ScoredRanking]) -> Scores:
    """Bradley-Terry with a weight for each word: logistic regression on differences of word counts.

        minimise over w: mean over rankings of mean over pairs of -log sigmoid((x_w - x_l) . w) + RIDGE/2 |w|^2

    with x the logarithms of 1 + counts. It never sees the prompt: what it ranks right needs no understanding of it.
    """
    if len(training) > TRAINING:
        # From all sources of the recipe, which follow one another.
        training = [training[index] for index in seeded_order(len(training), 0)[:TRAINING]]
    responses = [response for ranking in training for response in ranking.responses]
    words = vocabulary(responses)
    starts = itertools.accumulate((len(ranking.responses) for ranking in training), initial=0)
    pairs = [
        (start + better, start + worse, 1.0 / (len(ranking.pairs) * len(training)))
        for start, ranking in zip(starts, training, strict=False)  # the last start is behind them all
        for better, worse in ranking.pairs
    ]
    better, worse, weights = map(list, zip(*pairs, strict=True))
    features = counts(responses, words)
    learned = fit(features[better] - features[worse], np.array(weights))
    return [(counts(ranking.responses, words) @ learned).tolist() for ranking in rankings]


def vocabulary(texts: Sequence[str]) -> dict[str, int]:
    """The most frequent words and marks, each with its column. Words of a single text are left out."""
    texts_with = Counter(word for text in texts for word in set(_words(text)))
    kept = sorted((word for word, times in texts_with.items() if times > 1), key=lambda word: (-texts_with[word], word))
    return {word: column for column, word in enumerate(kept[:VOCABULARY])}


def counts(texts: Sequence[str], words: dict[str, int]) -> Sparse:
    """Logarithms of 1 + how often a text has a word: a row per text, a column per word."""
    cells = [
        (row, words[word], np.log1p(times))
        for row, text in enumerate(texts)
        for word, times in Counter(_words(text)).items()
        if word in words
    ]
    rows, columns, values = zip(*cells, strict=True) if cells else ((), (), ())
    return csr_array((np.array(values, dtype=np.float64), (rows, columns)), shape=(len(texts), len(words)))


def fit(differences: Sparse, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The minimum, by L-BFGS. differences: x_w - x_l, a row a pair. weights: of the pairs, 1 in sum."""

    def loss(learned: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = differences @ learned
        value = weights @ np.logaddexp(0.0, -margins) + RIDGE / 2 * (learned @ learned)
        slope = differences.T @ (-weights * expit(-margins)) + RIDGE * learned
        return value, slope

    start = np.zeros(differences.shape[1])
    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-7, "ftol": 1e-14}).x


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.casefold())
