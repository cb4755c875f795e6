"""Alarms: what a person who looks at the curves would see.

Each is a pure function of the run's rows of metrics, oldest first, and says what is wrong, the likely cause and the
knob to turn, or None. "Now" is the mean of the last `window` steps, "at the start" that of the first; an alarm that
compares the two is silent before they are apart. Numbers that are missing or not finite (a step with every mini-batch
skipped) are ignored.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from onebase.errors import EndedError
from ppo.recipe.steering import AlarmsSection

Rows = Sequence[Mapping[str, float]]
Alarm = Callable[[Rows, AlarmsSection], str | None]

EVALUATED = "ppo/eval/reward"
OPTIMISED = "ppo/eval/objective"
CHECKED = "ppo/eval/task_score"
JUDGED = "ppo/eval/judge"
GRADIENT = "ppo/grad_norm/policy"
WATCHED = (
    "ppo/kl",
    "ppo/ratio_max",
    "ppo/response_length",
    "ppo/entropy",
    "ppo/stop_rate",
    "ppo/explained_variance",
    "ppo/score",
    "ppo/score_std",
    GRADIENT,
    EVALUATED,
    OPTIMISED,
    CHECKED,
    JUDGED,
)
"""What the alarms read."""

LONGEST_WINDOW = 64

ROUNDING = 5e-7
"""Relative deviation of fp32 numbers that are all the same."""

LENGTH_FACTOR = 2.0
"""By how much responses may grow or shrink: a better answer to the same prompt has about the same length."""

ENTROPY_SHARE = 0.3
"""Smallest healthy entropy, as a share of the entropy at the start: a policy that learns an answer loses about half
of it."""

STOP_FALL = 0.2
"""By how much the share of finished responses may fall: far beyond the noise of a window."""

LEAST_EXPLAINED = -0.05
"""Smallest explained variance that is healthy; the alarm needs every step of the window below it. A constant explains 0
and, measured on few episodes, a little less."""

ENTROPY = "entropy collapse"
"""The alarm of what is logged only where the policy learns."""

VALUE = "value explains nothing"
"""The alarm that only a run with a value function has."""


def kl_above_budget(rows: Rows, section: AlarmsSection) -> str | None:
    """The policy has moved further from SFT than the reward model can be trusted."""
    recent = _values(rows, "ppo/kl")[-section.window :]
    now = sum(recent) / max(1, len(recent))
    if now <= section.kl:
        return None
    return (
        f"the KL to the SFT policy is {now:.3g} nats a response, over alarms.kl={section.kl:g}. The policy is far from "
        "the texts that the reward model has seen, so its scores mean little. Raise kl.weight, or lower "
        "train.learning_rate."
    )


def reward_up_task_score_down(rows: Rows, section: AlarmsSection) -> str | None:
    """Over-optimisation: the reward, or the objective (reward minus penalties), rises while the task score falls (Gao
    et al. 2022). The recipe's judge comes before the tasks' own checks."""
    name, gold = ("judge", JUDGED) if any(JUDGED in row for row in rows) else ("task score", CHECKED)
    measured = [row for row in rows if EVALUATED in row and gold in row]
    if len(measured) < 2:
        return None
    now, best = measured[-1], max(measured[:-1], key=lambda row: row[gold])
    both = (("reward", EVALUATED, "the reward model gets"), ("objective", OPTIMISED, "reward and penalties get"))
    risen = [
        (words, best[key], now[key], who)
        for words, key, who in both
        if key in now and key in best and now[key] > best[key]
    ]
    if not risen or now[gold] >= best[gold] - section.check_fall:
        return None
    words, before, after, who = risen[0]
    return (
        f"held out, the {words} has risen from {before:.3g} to {after:.3g} while the {name} has "
        f"fallen from {best[gold]:.3g} to {now[gold]:.3g}: the policy exploits what {who} wrong. Stop here "
        "and use `best/`, raise kl.weight, or give parents.reward several models with reward.terms.0.combine."
    )


def compare(name: str, has_drifted: Callable[[float, float], bool], text: str) -> Alarm:
    """An alarm that compares a number now with what it was at the start.

    has_drifted: of both, the start first. text: with {start}, {now}, and {more} for the word longer or shorter.
    """

    def alarm(rows: Rows, section: AlarmsSection) -> str | None:
        values = _values(rows, name)
        if len(values) < 2 * section.window:
            return None
        start, now = (sum(part) / section.window for part in (values[: section.window], values[-section.window :]))
        more = "longer" if now > start else "shorter"
        return text.format(start=start, now=now, more=more) if has_drifted(start, now) else None

    return alarm


def ratio_too_large(rows: Rows, section: AlarmsSection) -> str | None:
    """A single update has changed a token's probability by more than clipping should allow."""
    ratios = _values(rows[-1:], "ppo/ratio_max")
    if not ratios or ratios[-1] <= section.ratio:
        return None
    return (
        f"a token has become {ratios[-1]:.3g} times as likely within one update (alarms.ratio={section.ratio:g}): "
        "steps are too large, or the log-probabilities from decoding are not the model's. Lower train.learning_rate or "
        "train.epochs; look at ppo/decoding_error, and try train.old_logprobs=recomputed."
    )


def value_explains_nothing(rows: Rows, section: AlarmsSection) -> str | None:
    """The value function is worse than a constant, step after step, after it has had time to learn."""
    explained = _values(rows, "ppo/explained_variance")
    recent = explained[-section.window :]
    if len(explained) < 2 * section.window or max(recent) >= LEAST_EXPLAINED:
        return None
    return (
        f"the value function has explained less than nothing of the returns for {section.window} steps (now "
        f"{recent[-1]:.3g}; 0 is a constant): its advantages are noise. With value.kind=adapter raise "
        "value.learning_rate, or let it learn alone first with value.warmup_steps; with value.kind=shared raise "
        "value.weight, or take value.kind=adapter. advantages.kind=rloo needs no value function."
    )


def rewards_all_equal(rows: Rows, section: AlarmsSection) -> str | None:
    """No response of a step is worth more than another, step after step: there is nothing to learn from."""
    scored = [(row["ppo/score"], row.get("ppo/score_std")) for row in rows if "ppo/score" in row][-section.window :]
    recent = [(mean, deviation) for mean, deviation in scored if deviation is None or math.isfinite(deviation)]
    if len(recent) < min(2, section.window):
        return None
    # The mean of equal numbers is one of them but for rounding. A step of one episode has no deviation: such ones are
    # compared with each other.
    means = [mean for mean, deviation in recent if deviation is None]
    apart = bool(means) and not max(means) - min(means) <= ROUNDING * abs(means[0])
    if apart or any(deviation is not None and deviation > ROUNDING * abs(mean) for mean, deviation in recent):
        return None
    return (
        f"all rewards are equal: in {_each_of(recent)} every response scored the same (now {recent[-1][0]:.3g}). There "
        "is nothing to learn from: what is left of the advantages is the price of the KL and, with a value function, "
        "its errors, which standardising makes as large as any signal, so that the policy drifts. Look at the samples "
        "and at what reward.terms names: a function that always returns one number, a clip below every score, a check "
        "that no response passes yet. Easier prompts, more of them (train.batch) or a higher sampling.temperature give "
        "scores that differ."
    )


def policy_stands_still(rows: Rows, section: AlarmsSection) -> str | None:
    """The policy is trained with gradients that are exactly 0."""
    # While the value function learns alone there is no entropy, and the policy has no gradient.
    norms = _values([row for row in rows if "ppo/entropy" in row], GRADIENT)[-section.window :]
    if len(norms) < min(2, section.window) or any(norms):
        return None
    return (
        f"the policy's gradient was exactly 0 in {_each_of(norms)}: every advantage is 0, and nothing is learned. That "
        "comes of rewards that are all equal within each group of responses, or of advantages that are standardised "
        "over a single token. Look at reward.terms and ppo/score_std; raise train.batch, "
        "sampling.responses_per_prompt or sampling.max_new_tokens, or set advantages.standardise=false."
    )


def _each_of(steps: Sequence[object]) -> str:
    return "this step" if len(steps) == 1 else f"each of the last {len(steps)} steps"


COMPARES: dict[str, Alarm] = {
    "length drift": compare(
        "ppo/response_length",
        lambda start, now: not start / LENGTH_FACTOR <= now <= start * LENGTH_FACTOR,
        "responses have {now:.3g} tokens, at the start they had {start:.3g}: the reward pays for {more} ones, whatever "
        "they say. Look at the samples and at the reward model's bias for length (its report shows it); raise "
        "kl.weight, or add a penalty on length to reward.terms.",
    ),
    ENTROPY: compare(
        "ppo/entropy",
        lambda start, now: now < ENTROPY_SHARE * start,
        "the entropy is {now:.3g} nats a token, at the start it was {start:.3g}: the policy has stopped exploring. "
        "Lower train.learning_rate or train.epochs, or raise kl.weight.",
    ),
    "stop rate falling": compare(
        "ppo/stop_rate",
        lambda start, now: now < start - STOP_FALL,
        "{now:.0%} of the responses end by themselves, at the start {start:.0%} did: the policy forgets to stop. Raise "
        "reward.eos_penalty, or sampling.max_new_tokens if good answers need the room.",
    ),
}
"""Alarms that compare now with the start."""

ALARMS: dict[str, Alarm] = {
    "KL above budget": kl_above_budget,
    "reward up, task score down": reward_up_task_score_down,
    **COMPARES,
    "ratio too large": ratio_too_large,
    VALUE: value_explains_nothing,
    "all rewards equal": rewards_all_equal,
    "policy stands still": policy_stands_still,
}


class AlarmError(EndedError):
    """An alarm was raised, and the recipe says that the run ends then."""


def raised(rows: Rows, section: AlarmsSection) -> dict[str, str]:
    """The text of every alarm that these rows raise, by its name."""
    texts = {name: alarm(rows, section) for name, alarm in ALARMS.items()}
    return {name: text for name, text in texts.items() if text is not None}


def unable(section: AlarmsSection, *, steps: int, waiting: int, has_value: bool) -> str | None:
    """A warning about the alarms that a run of so many steps is too short for; None without any.

    waiting: steps of these in which the value function learns alone, and no entropy is logged.
    """
    steps_of = {name: steps for name in (*COMPARES, *((VALUE,) if has_value else ()))} | {ENTROPY: steps - waiting}
    names = [name for name, count in steps_of.items() if count < 2 * section.window]
    if not names:
        return None
    least = min(steps_of.values())
    do = f"alarms.window={least // 2} lets every alarm" if least > 1 else "It takes two steps"
    return (
        f"These alarms cannot be raised: {', '.join(names)}. They look at two windows of "
        f"alarms.window={section.window} steps, and the run has "
        f"{least}{' after value.warmup_steps' if waiting else ''}. {do}."
    )


def remember(rows: Rows, row: Mapping[str, float]) -> list[dict[str, float]]:
    """The rows with one more, without those in the middle that no alarm reads any more.

    Rows with an evaluation are all kept: there are few, and the best of them may be anywhere.
    """
    kept = [*map(dict, rows), {name: row[name] for name in WATCHED if name in row}]
    first, last = LONGEST_WINDOW, len(kept) - 2 * LONGEST_WINDOW
    return [kept_row for index, kept_row in enumerate(kept) if index < first or index >= last or EVALUATED in kept_row]


def _values(rows: Rows, name: str) -> list[float]:
    return [row[name] for row in rows if name in row and math.isfinite(row[name])]
