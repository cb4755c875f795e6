"""Labelers in folds: a reward model is measured on rankings of labelers that training did not use.

InstructGPT split its labelers into five groups, trained on four and measured on the fifth (Ouyang et al. 2022,
https://arxiv.org/abs/2203.02155, section 4.1: 72.4 % of the pairs of labelers trained on, 69.6 % of held-out ones).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field, model_validator

from data.records import Ranking
from onebase.errors import DataError
from onebase.recipe.sections import LARGEST_COUNT, CountOrZero, Section


class LabelersSection(Section):
    """Which labelers' rankings are not trained on."""

    folds: int | None = Field(default=None, ge=2, le=LARGEST_COUNT)
    """Groups of labelers, by a stable hash of their name; InstructGPT: 5. None: everybody is trained on."""
    held_out: CountOrZero = 0
    """The group that is left out, from 0 to folds - 1."""

    @model_validator(mode="after")
    def _held_out_is_a_fold(self) -> "LabelersSection":
        if self.held_out and self.folds is None:
            raise ValueError("'held_out' has no effect without 'folds'; give both, or remove it")
        if self.folds is not None and self.held_out >= self.folds:
            raise ValueError(f"'held_out' must be below folds={self.folds}: groups count from 0")
        return self

    def holds_out(self, labeler: str | None) -> bool:
        return self.folds is not None and labeler is not None and fold_of(labeler, self.folds) == self.held_out


@dataclass(frozen=True, kw_only=True)
class RankingSplit:
    """Rankings to train on, and those of held-out labelers."""

    training: list[Ranking]
    held_out: list[Ranking]


def fold_of(labeler: str, folds: int) -> int:
    """The group of a labeler: the same in every file, order and run."""
    return int.from_bytes(hashlib.sha256(labeler.encode()).digest()[:8], "big") % folds


def divide(rankings: Sequence[Ranking], section: LabelersSection) -> RankingSplit:
    """Rankings without a labeler are trained on. DataError when one of the sides is empty."""
    if section.folds is None:
        return RankingSplit(training=list(rankings), held_out=[])
    names = sorted({name for ranking in rankings if (name := ranking.labeler) is not None})
    if not names:
        raise DataError(
            f"{rankings[0].prompt.origin}: labelers.folds={section.folds} needs to know who ranked, and no row has a "
            "'labeler'. Add it to the rows, or remove labelers.folds."
        )
    held_out = [ranking for ranking in rankings if section.holds_out(ranking.labeler)]
    training = [ranking for ranking in rankings if not section.holds_out(ranking.labeler)]
    if not held_out or not training:
        sizes = [sum(fold_of(name, section.folds) == fold for name in names) for fold in range(section.folds)]
        side = "nobody is left to train on" if held_out else "it holds nobody out"
        raise DataError(
            f"data: labelers.held_out={section.held_out}: {side}. The {len(names)} labelers fall into groups of "
            f"{', '.join(map(str, sizes))}. Choose another group, or fewer folds."
        )
    return RankingSplit(training=training, held_out=held_out)
