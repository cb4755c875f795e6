"""What a role computes for given episodes: log-probabilities, values, scores.

One function each, used by every stage: the score inside PPO is the stand-alone score, bit for bit in the same
micro-batches. All of them run the trunk over prompt and response, in one row without padding where the model's
attention allows it (`onebase.sequences.tree`), else padded on the right, and read the positions that matter:

    prompt      p_1 ... p_P        response     r_1 ... r_L
    log p(r_t)  and V_t            from the hidden state at the token before r_t (the last of the prompt for t = 1)
    score                          from the hidden state at r_L

Several reward models may score on the one base; where they disagree, none of them should be trusted. A policy that
optimises one reward model finds what that one gets wrong. Models trained from other seeds get other things wrong. Their
lowest score, or their mean minus their disagreement, is therefore harder to deceive. A member is one adapter and one
head. The first member's role is `reward`, the others' are `reward_2`, `reward_3` ...: a single reward model is an
ensemble of one, with the same scores bit for bit.

Shapes: B = episodes, T = longest response, N = response tokens of all episodes, H = hidden size, M = members.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from onebase.inference.logprobs import token_kl, token_logprobs
from onebase.model.roles import Roles
from onebase.recipe.sections import Section
from onebase.sequences.episodes import Episodes, TokenIds
from onebase.sequences.tree import fill, pack, pack_by_tokens, pack_size

LOGIT_CHUNK = 256
"""Response tokens with logits in memory at once: 256 x 49,152 floats are 50 MB, 256 x 128,256 are 131 MB."""


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """What one forward of a policy computes for each response token; 0 outside the mask."""

    logprobs: Float[Tensor, "B T"]
    entropies: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"] | None
    """Only where the value head sits on the policy's trunk."""


def states_at(
    roles: Roles, role: str | None, sequences: Sequence[Sequence[int]], tokens: Sequence[range]
) -> Float[Tensor, "N H"]:
    """A role's last hidden states at these tokens of each sequence, sequence after sequence, in one forward."""
    device = roles.base.device
    roles.forwards.require_reach(max(map(len, sequences)))
    if roles.forwards.can_pack:
        packed = pack(sequences, device=device)
        places = [packed.columns[row][index] for row, wanted in enumerate(tokens) for index in wanted]
        with roles.active(role):
            hidden = roles.forwards.packed_states(packed)
    else:
        input_ids = roles.forwards.pad(sequences)
        width = input_ids.shape[1]
        places = [row * width + column for row, wanted in enumerate(tokens) for column in wanted]
        with roles.active(role):
            hidden = roles.forwards.hidden_states(input_ids).flatten(0, 1)
    return hidden[torch.tensor(places, device=device)]


def batches_of(roles: Roles, sequences: Sequence[Sequence[int]], *, tokens: int) -> list[list[int]]:
    """Micro-batches by token budget: of the tokens that go through the model, padding included where there is any."""
    if roles.forwards.can_pack:
        return pack_by_tokens(sequences, tokens=tokens)
    return fill([len(sequence) for sequence in sequences], tokens=tokens, padded=True)


def predicting_states(roles: Roles, role: str | None, episodes: Episodes) -> Float[Tensor, "N H"]:
    """The hidden state from which each response token is predicted, episode after episode."""
    sequences = episodes.sequences
    starts = [len(prompt) - 1 for prompt in episodes.prompts]
    before = [range(start, len(sequence) - 1) for start, sequence in zip(starts, sequences, strict=True)]
    return states_at(roles, role, sequences, before)


def token_scores(
    roles: Roles,
    role: str | None,
    episodes: Episodes,
    *,
    temperature: float,
    value_head: str | None = None,
    entropy_gradient: bool = True,
) -> TokenScores:
    """Log-probabilities and entropies of a role in one forward, with gradients where they are enabled.

    value_head: the role with a head on this same trunk (a shared value function). entropy_gradient: False where no
    loss holds the entropies, which is cheaper.
    """
    states = predicting_states(roles, role, episodes)
    targets = episodes.responses[episodes.mask].to(states.device)
    with roles.forwards.autocast():
        logprobs, entropies = token_logprobs(
            states,
            targets,
            roles.forwards.lm_head,
            temperature=temperature,
            chunk=LOGIT_CHUNK,
            entropy_gradient=entropy_gradient,
        )
    values = None if value_head is None else _spread(roles.heads[value_head](states), episodes)
    return TokenScores(logprobs=_spread(logprobs, episodes), entropies=_spread(entropies, episodes), values=values)


def token_values(roles: Roles, role: str, episodes: Episodes) -> Float[Tensor, "B T"]:
    """The role's head at each response token's predicting state: V_t, before the token is chosen."""
    return _spread(roles.heads[role](predicting_states(roles, role, episodes)), episodes)


def score(
    roles: Roles, role: str, sequences: Sequence[Sequence[int]], *, tokens_per_microbatch: int
) -> Float[Tensor, " B"]:
    """The role's head at the last token of each sequence (prompt and response joined), without gradients."""
    scores = torch.empty(len(sequences), dtype=torch.float32)
    with torch.no_grad():
        for rows in batches_of(roles, sequences, tokens=tokens_per_microbatch):
            scores[rows] = last_token_scores(roles, role, [sequences[row] for row in rows]).cpu()
    return scores


def last_token_scores(roles: Roles, role: str, sequences: Sequence[Sequence[int]]) -> Float[Tensor, " B"]:
    """The same in one forward and with gradients where they are enabled: what the reward model trains on."""
    last = [range(len(sequence) - 1, len(sequence)) for sequence in sequences]
    return roles.heads[role](states_at(roles, role, sequences, last))


def candidate_scores(roles: Roles, role: str, groups: Sequence[Sequence[TokenIds]]) -> list[Float[Tensor, " K"]]:
    """The role's score of each response, for each ranking, in one forward; with gradients where they are enabled.

    groups: for each ranking its prompt and response joined, for each response.
    """
    scores = last_token_scores(roles, role, [ids for group in groups for ids in group])
    return list(scores.split([len(group) for group in groups]))


def batches_of_rankings(roles: Roles, groups: Sequence[Sequence[TokenIds]], *, tokens: int) -> list[list[int]]:
    """Micro-batches of whole rankings by token budget, largest first. Every index occurs once."""
    if roles.forwards.can_pack:
        return fill([pack_size(group) for group in groups], tokens=tokens)
    return fill([len(group) * max(map(len, group)) for group in groups], tokens=tokens, padded=True)


def in_microbatches(
    roles: Roles, function: Callable[[Episodes], Tensor], episodes: Episodes, *, tokens: int
) -> Float[Tensor, "B T"]:
    """`function` of all episodes without gradients, a micro-batch at a time, on the CPU and in the given order."""
    result = torch.zeros(episodes.mask.shape, dtype=torch.float32)
    with torch.no_grad():
        for rows in batches_of(roles, episodes.sequences, tokens=tokens):
            result[rows] = function(episodes.select(rows)).cpu()
    return result


def logprobs(
    roles: Roles, role: str | None, episodes: Episodes, *, temperature: float, tokens_per_microbatch: int
) -> Float[Tensor, "B T"]:
    """Log-probabilities of the response tokens under a role (None: the bare base), without gradients."""
    return in_microbatches(
        roles,
        lambda part: token_scores(roles, role, part, temperature=temperature).logprobs,
        episodes,
        tokens=tokens_per_microbatch,
    )


def kl_between(
    roles: Roles,
    role: str | None,
    reference: str | None,
    episodes: Episodes,
    *,
    temperature: float,
    tokens_per_microbatch: int,
) -> Float[Tensor, "B T"]:
    """Exact KL(role || reference) at each response token, in nats, without gradients (None: the bare base).

    Summed over responses sampled from `role` and averaged, it is an unbiased estimate of the KL of whole responses.
    """

    def kl_of(part: Episodes) -> Tensor:
        states = predicting_states(roles, role, part), predicting_states(roles, reference, part)
        with roles.forwards.autocast():
            return _spread(
                token_kl(*states, roles.forwards.lm_head, temperature=temperature, chunk=LOGIT_CHUNK // 2), part
            )

    return in_microbatches(roles, kl_of, episodes, tokens=tokens_per_microbatch)


def _spread(flat: Float[Tensor, " N"], episodes: Episodes) -> Float[Tensor, "B T"]:
    """Values of the response tokens back in their places, 0 elsewhere."""
    full = flat.new_zeros(episodes.mask.shape)
    return full.masked_scatter(episodes.mask.to(flat.device), flat)


# --- several reward models

FIRST = "reward"
"""The role of the first reward model."""

Rule = Literal["mean", "min", "mean-minus-variance", "mean-minus-deviation"]
RULES: tuple[Rule, ...] = get_args(Rule)


class CombineSection(Section):
    """How the scores of several reward models become one; the equations are in `onebase/inference/scoring.py`."""

    rule: Rule = "mean"
    spread_weight: float = Field(default=1.0, ge=0, le=1e6, allow_inf_nan=False)
    """mean-minus-...: score lost for each unit of the members' variance or deviation."""

    @model_validator(mode="after")
    def _only_what_the_rule_reads(self) -> "CombineSection":
        default = type(self).model_fields["spread_weight"].default
        if not self.rule.startswith("mean-minus") and self.spread_weight != default:
            raise ValueError(
                f"'spread_weight' is read by rules mean-minus-variance and mean-minus-deviation only, and this is "
                f"rule: {self.rule}; remove it"
            )
        return self

    def combination(self, scores: Float[Tensor, "M B"]) -> Float[Tensor, " B"]:
        """One score for each response, by the rule. Coste et al. 2023, https://arxiv.org/abs/2310.02743, for the first
        three; r_i = the score of member i, w = `spread_weight`.

            mean                   1/M * sum over i of r_i: mean optimisation
            min                    min over i of r_i: worst-case optimisation, a gain counts when every member sees it
            mean-minus-variance    mean - w/M * sum over i of (r_i - mean)^2: uncertainty-weighted optimisation. The
                                   variance is in squared units, so the right weight depends on the scale of the scores
            mean-minus-deviation   mean - w * spread: weight 1 is a lower bound by one standard deviation, whatever the
                                   scale of the scores
        """
        match self.rule:
            case "mean":
                return scores.mean(dim=0)
            case "min":
                return scores.amin(dim=0)
            case "mean-minus-variance":
                return scores.mean(dim=0) - self.spread_weight * scores.var(dim=0, correction=0)
            case "mean-minus-deviation":
                return scores.mean(dim=0) - self.spread_weight * spread_of(scores)


def spread_of(scores: Float[Tensor, "M B"]) -> Float[Tensor, " B"]:
    """The members' standard deviation (divided by M) at each response; 0 for a single member."""
    return scores.std(dim=0, correction=0)


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """The roles that score, first one first, and what makes one score of theirs."""

    members: tuple[str, ...] = (FIRST,)
    combine: Callable[[Tensor], Tensor] = CombineSection().combination


def member_names(count: int) -> tuple[str, ...]:
    """reward, reward_2, reward_3 ..."""
    return (FIRST, *(f"{FIRST}_{number}" for number in range(2, count + 1)))[:count]


def member_scores(
    roles: Roles, members: Sequence[str], sequences: Sequence[Sequence[int]], *, tokens_per_microbatch: int
) -> Float[Tensor, "M B"]:
    """The score of each sequence by each member, by the function that scores for one."""
    rows = [score(roles, name, sequences, tokens_per_microbatch=tokens_per_microbatch) for name in members]
    return torch.stack(rows)
