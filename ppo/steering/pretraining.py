"""PPO-ptx: gradients of pretraining texts in the same optimiser step.

    objective = E[reward - weight * KL]  +  gamma * E[log pi(x)],  x from the pretraining texts

Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, eq. 2. The expectation is a mean over the predicted tokens of the
pieces that fall to a mini-batch, as the policy's loss is one over its response tokens.
"""

from collections.abc import Sequence

import torch

from data.select.texts import Piece
from evaluation.compare.language import as_episodes
from onebase.inference.scoring import batches_of, token_scores
from onebase.model.roles import Roles
from onebase.seeding import generator
from onebase.sequences.episodes import Episodes
from ppo.recipe.steering import PretrainingSection
from ppo.recipe.training import TrainSection


class Pretraining:
    """Texts that are mixed into the updates. Which ones a step takes depends on (seed, step, mini-batch) only."""

    def __init__(
        self, roles: Roles, pieces: Sequence[Piece], section: PretrainingSection, train: TrainSection, *, seed: int
    ) -> None:
        self._roles = roles
        self._pieces = pieces
        self._section = section
        self._seed = seed
        self._count = max(1, round(section.examples_per_episode * train.minibatch))
        self._minibatches = train.epochs * (train.batch // train.minibatch)
        self._step = 0
        self._losses: dict[int, float] = {}

    def begin(self, step: int) -> "Pretraining":
        """Before the mini-batches of a step; steps count from 1."""
        self._step, self._losses = step, {}
        return self

    def chosen(self, minibatch: int) -> list[int]:
        """Which pieces a mini-batch of the step takes: all are seen before one comes again."""
        first = ((self._step - 1) * self._minibatches + minibatch) * self._count
        total, orders, chosen = len(self._pieces), dict[int, list[int]](), list[int]()
        for position in range(first, first + self._count):
            turn, place = divmod(position, total)
            if turn not in orders:
                draw = generator(self._seed, "pretraining", turn)
                orders[turn] = torch.randperm(total, generator=draw).tolist()
            chosen.append(orders[turn][place])
        return chosen

    def add_gradients(self, minibatch: int, tokens_per_microbatch: int) -> None:
        """Add gamma times the gradient of the mini-batch's texts to `.grad`."""
        episodes = as_episodes([self._pieces[index] for index in self.chosen(minibatch)], self._roles)
        self._losses[minibatch] = text_gradients(
            self._roles, episodes, weight=self._section.weight, tokens_per_microbatch=tokens_per_microbatch
        )

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the step: the mean loss of its texts, in nats per token, before gamma."""
        return {"ppo/pretraining_loss": sum(self._losses.values()) / len(self._losses)} if self._losses else {}


def text_gradients(roles: Roles, texts: Episodes, *, weight: float, tokens_per_microbatch: int) -> float:
    """Add the gradient of `weight` times the policy's mean loss per token to `.grad`; returns the loss, unweighted."""
    tokens, total = int(texts.mask.sum()), 0.0
    for rows in batches_of(roles, texts.sequences, tokens=tokens_per_microbatch):
        with roles.forwards.checkpointed():
            # At temperature 1: it is the model's own distribution that is to be kept, not the one that is sampled.
            now = token_scores(roles, "policy", texts.select(rows), temperature=1.0, entropy_gradient=False)
            loss = -now.logprobs.sum() / tokens
            (weight * loss).backward()
        total += loss.item()
    return total
