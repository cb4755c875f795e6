"""Our PPO and trl 1.12's on the same rollout, number by number: log-probabilities, KL, rewards, advantages, losses and
the gradient of one step.

    pip install --no-deps --target build/trl112 trl==1.12.0
    python benchmarks/parity_trl112.py --trl build/trl112 --json FILE

Theirs is `PPOTrainer.train()` as it is: only decoding is replaced, by one that returns given responses, and the
trainer's own variables are read while it runs. Ours are the functions that the ppo stage calls. Both sides start from
the same files: one base and an adapter (with a head) for each role. Policy and value are other ones in the update than
in the rollout, so that ratios and values are clipped.

Exit code 1 where something that is meant to agree differs by more than 1e-5 (gradients: relative to the largest one).
Where the two differ on purpose the size of the difference is printed: docs/ppo.md has the reasons.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from parity_peer import import_peer, theirs
from parity_rollout import LENGTH, Case, Given, build_model, flat, prepare
from processes import PPO_PEER
from torch import Tensor

from onebase.inference.sampling import Sample
from onebase.inference.scoring import in_microbatches, logprobs, score, token_values
from onebase.memory import Budget
from ppo.maths.advantages import gae
from ppo.method import method_of
from ppo.rollout import Experience, PpoState, make_experience
from ppo.scores import EpisodeScores
from ppo.start import start_learner
from ppo.update import backward

TOLERANCE = 1e-5

EVERYTHING = frozenset(
    {
        *("log-probabilities", "reference", "KL", "values", "scores less the penalty", "reward of a response"),
        *("rewards", "advantages", "returns", "standardised advantages"),
        *("policy loss", "value loss", "policy gradient", "value gradient", "advantages by their placing"),
    }
)
VALUE_PAST_THE_END = frozenset({"rewards", "value loss", "value gradient"})
ADVANTAGES = frozenset({"advantages", "returns", "standardised advantages", "policy loss", "policy gradient"})

CASES = (
    Case(
        name="responses as long as the limit", lengths=(LENGTH,) * 8, discount=0.99, gae_lambda=0.95, agree=EVERYTHING
    ),
    Case(
        name="shorter responses, lambda 1",
        lengths=(12, 3, 7, 12, 1, 9, 5, 11),
        discount=1.0,
        gae_lambda=1.0,
        agree=EVERYTHING - VALUE_PAST_THE_END,
    ),
    Case(
        name="shorter responses, lambda 0.95",
        lengths=(12, 3, 7, 12, 1, 9, 5, 11),
        discount=1.0,
        gae_lambda=0.95,
        agree=EVERYTHING - VALUE_PAST_THE_END - ADVANTAGES,
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description="Agreement with trl 1.12's PPO on one fixed rollout.")
    parser.add_argument("--trl", type=Path, default=Path("build/trl112"), help="folder that trl 1.12.0 is installed in")
    parser.add_argument("--model", help="pypi:NAME, a folder or a hub id; without it a small random Llama")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    peer = import_peer(options.trl)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        model = options.model or str(build_model(home / "model"))
        rows = [row for case in CASES for row in compare(peer, case, model, home)]
    show(rows)
    if options.json:
        options.json.write_text(json.dumps({"trl": PPO_PEER, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    return int(any(row["agrees"] is False for row in rows))


def ours(inputs: Given) -> dict[str, Tensor]:
    roles, recipe, episodes = inputs.roles, inputs.recipe, inputs.episodes
    budget, temperature = recipe.train.tokens_per_microbatch, recipe.sampling.temperature
    settings = {"temperature": temperature, "tokens_per_microbatch": budget}
    values = in_microbatches(roles, lambda part: token_values(roles, "value", part), episodes, tokens=budget)
    drawn = Sample(episodes=episodes, logprobs=logprobs(roles, "policy", episodes, **settings), stopped=inputs.ended)
    total = score(roles, "reward", episodes.sequences, tokens_per_microbatch=budget)
    scores = EpisodeScores(total=total, terms={}, members={})
    reference = logprobs(roles, "reference", episodes, **settings)
    state = PpoState(kl_weight=recipe.kl.weight)
    raw = recipe.model_copy(update={"advantages": recipe.advantages.model_copy(update={"standardise": False})})
    experience, plain = (
        make_experience(drawn, scores, method_of(variant), state, reference=reference, values=values)
        for variant in (recipe, raw)
    )
    placed = by_their_placing(inputs, plain, values)
    for role in ("policy", "value"):
        for parameter, now in zip(roles.parameters(role), roles.parameters(f"{role}_now"), strict=True):
            parameter.data.copy_(now.data)
    roles.train("policy", "value")
    tally = backward(roles, experience, start_learner(roles, recipe), method_of(recipe), Budget(tokens=budget))
    means, tokens = tally.means(), int(episodes.mask.sum())
    # They divide the variance by n - 1, we by n. Loss and gradient of the policy are proportional to the advantages.
    bessel = math.sqrt((tokens - 1) / tokens)
    penalty = recipe.reward.eos_penalty * (~inputs.ended).float()
    return {
        "log-probabilities": plain.logprobs,
        "reference": reference,
        "KL": plain.kl,
        "values": values,
        "scores less the penalty": total - penalty,
        "reward of a response": plain.rewards.sum(dim=1),
        "rewards": plain.rewards,
        "advantages": plain.advantages,
        "advantages by their placing": placed,
        "returns": plain.returns,
        "standardised advantages": experience.advantages * bessel,
        "policy loss": torch.tensor(means["policy_loss"] * bessel),
        "value loss": torch.tensor(means["value_loss"]),
        "policy gradient": flat(roles.parameters("policy")) * bessel,
        "value gradient": flat(roles.parameters("value")),
        "outside the clip range": torch.tensor(means["clip_fraction"]),
    }


def by_their_placing(inputs: Given, experience: Experience, values: Tensor) -> Tensor:
    """Our estimator on episodes of theirs: a response that ends before the longest one has a position more, with the
    value after the end token and the score. That it gives their advantages shows that nothing else differs."""
    roles, recipe, mask = inputs.roles, inputs.recipe, inputs.episodes.mask
    budget = recipe.train.tokens_per_microbatch
    after = score(roles, "value", inputs.episodes.sequences, tokens_per_microbatch=budget)
    lengths, columns = mask.sum(dim=1, keepdim=True), torch.arange(mask.shape[1])
    past = columns == lengths
    at_end = columns == lengths.clamp(max=mask.shape[1] - 1)
    scores = experience.scores - recipe.reward.eos_penalty * (~inputs.ended).float()
    rewards = -recipe.kl.weight * experience.kl + at_end * scores.unsqueeze(1)
    longer = torch.where(past, after.unsqueeze(1), values)
    return (
        gae(rewards, longer, mask | past, discount=recipe.train.discount, gae_lambda=recipe.train.gae_lambda)[0] * mask
    )


def compare(peer: Any, case: Case, model: str, home: Path) -> list[dict[str, Any]]:
    inputs = prepare(case, model, home)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = theirs(peer, inputs)
    here = ours(inputs)
    clipped = float(here.pop("outside the clip range"))
    rows: list[dict[str, Any]] = []
    for name, mine in here.items():
        largest = float(other[name].abs().max())
        error = float((mine - other[name]).abs().max())
        if "gradient" in name:
            error /= largest
        agrees = error <= TOLERANCE if name in case.agree else None
        rows.append(
            {
                **{"case": case.name, "quantity": name, "difference": error, "largest": largest},
                **{"agrees": agrees, "outside_clip": clipped},
            }
        )
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table of docs/ppo.md."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    differences = {(row["case"], row["quantity"]): row for row in rows}
    print("\n| largest difference | " + " | ".join(cases) + " |\n|---|" + "---:|" * len(cases))
    for quantity in dict.fromkeys(row["quantity"] for row in rows):
        print(f"| {quantity} | " + " | ".join(cell(differences[case, quantity]) for case in cases) + " |")
    for case in cases:
        share = next(row["outside_clip"] for row in rows if row["case"] == case)
        print(f"{case}: {share:.0%} of tokens outside the clip range", file=sys.stderr)


def cell(row: dict[str, Any]) -> str:
    if row["agrees"] is None:
        return f"differs: {row['difference']:.1e}"
    return f"{row['difference']:.1e}" if row["agrees"] else f"**{row['difference']:.1e}**"


if __name__ == "__main__":
    sys.exit(main())
