"""The data card: what went into a stage, in numbers that a person can check and plots that show what numbers hide.

`card.json` and SVG plots: counts and reasons, tasks, copies, lengths, the share of rows that fit the limits whole, and
of rankings their sizes, ties, and two biases that a reward model learns all too readily: longer wins, earlier wins.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy

from data.records import Demonstration, Prompt, Ranking, Record, prompt_of
from data.select.mixing import Deduplicator, seeded_order, task_of
from data.select.sources import Loaded
from data.writing import atomically
from onebase.recipe.sections import LimitsSection
from onebase.run.folders import require_replaceable
from onebase.run.record import DataIdentity

SCHEMA = 1
CARD = "card.json"
PLOTS = ("lengths.svg", "tasks.svg", "rankings.svg")
MEASURED = 20_000
"""Rows whose tokens are counted: of more, so many are drawn. The card says how many."""
TASKS = 50
"""Tasks that are listed, the largest first; the rest is summed up."""


@runtime_checkable
class Tokens(Protocol):
    """What turns a record into the tokens of a run; `data.chat.conversations.Chat` does."""

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]: ...
    def response_ids(self, text: str) -> tuple[int, ...]: ...


def write_card(
    folder: Path,
    loaded: Loaded[Any],
    *,
    tokens: Tokens | None = None,
    limits: LimitsSection | None = None,
) -> dict[str, Any]:
    """Write card.json and its plots into `folder`; the card. Without `tokens` lengths are counted in characters."""
    from data import card_plots

    lengths = measure(loaded.records, tokens)
    card = describe(loaded.records, loaded.identities, lengths, limits)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in card_plots.figures(card, lengths, limits).items():
        with atomically(folder / name) as temporary:
            card_plots.save(figure, temporary)
    with atomically(folder / CARD) as temporary:
        text = json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        temporary.write_text(text, encoding="utf-8")
    return card


def require_room(folder: Path) -> None:
    """InputError where a card in `folder` would take the place of somebody else's files."""
    require_replaceable(folder, CARD, ("schema_version", "kind", "rows", "sources"), PLOTS)


class Lengths:
    """Lengths of the measured rows: one of the prompt, and one of each response, its end token included."""

    def __init__(self, unit: str, rows: Sequence[tuple[Record, int, tuple[int, ...]]]) -> None:
        self.unit = unit
        self.rows = rows
        self.prompts = [prompt for _, prompt, _ in rows]
        self.responses = [length for _, _, responses in rows for length in responses]


def measure(records: Sequence[Record], tokens: Tokens | None) -> Lengths:
    """Lengths of all records, or of MEASURED of them, drawn by position."""
    chosen = range(len(records)) if len(records) <= MEASURED else sorted(seeded_order(len(records), 0)[:MEASURED])
    rows = []
    for index in chosen:
        record = records[index]
        prompt, responses = prompt_of(record), responses_of(record)
        if tokens is None:
            rows.append((record, sum(len(one.content) for one in prompt.messages), tuple(map(len, responses))))
        else:
            ended = tuple(len(tokens.response_ids(response)) for response in responses)
            rows.append((record, len(tokens.prompt_ids(prompt)), ended))
    return Lengths("characters" if tokens is None else "tokens", rows)


def responses_of(record: Record) -> tuple[str, ...]:
    """All responses of a record; a prompt has none."""
    match record:
        case Demonstration():
            return (record.response,)
        case Ranking():
            return record.responses
        case _:
            return ()


def describe(
    records: Sequence[Record], identities: Iterable[DataIdentity], lengths: Lengths, limits: LimitsSection | None
) -> dict[str, Any]:
    """The content of card.json."""
    identities = list(identities)
    reasons: Counter[str] = Counter()
    for identity in identities:
        reasons.update(identity.dropped)
    card: dict[str, Any] = {
        "schema_version": SCHEMA,
        "kind": type(records[0]).__name__.lower() if records else None,
        "rows": {"in": len(records) + reasons.total(), "kept": len(records), "dropped": dict(reasons.most_common())},
        "sources": [{"in": one.kept + sum(one.dropped.values()), **one.model_dump()} for one in identities],
        "tasks": _tasks(records),
        "duplicates": {"rows": _copies(records, "rows"), "prompts": _copies(records, "prompts")},
        "turns": _counted(sum(one.role == "user" for one in prompt_of(record).messages) for record in records),
        "with_system_message": sum(prompt_of(record).messages[0].role == "system" for record in records),
        "lengths": {
            "unit": lengths.unit,
            "rows_measured": len(lengths.rows),
            "prompt": quantiles(lengths.prompts),
            "response": quantiles(lengths.responses),
        },
    }
    if limits is not None and lengths.unit == "tokens":
        card["limits"] = _fits(lengths, limits)
    rankings = [record for record in records if isinstance(record, Ranking)]
    if rankings:
        card["rankings"] = _rankings(rankings, lengths)
    return card


def _tasks(records: Sequence[Record]) -> dict[str, int]:
    counts = Counter(map(task_of, records)).most_common()
    listed = dict(counts[:TASKS])
    if len(counts) > TASKS:
        listed[f"({len(counts) - TASKS} more)"] = sum(count for _, count in counts[TASKS:])
    return listed


def _copies(records: Sequence[Record], what: Any) -> int:
    """Further rows of what an earlier row had."""
    passer = Deduplicator(what)
    return sum(not passer.is_new(record) for record in records)


def _counted(numbers: Iterable[int]) -> dict[str, int]:
    return {str(number): count for number, count in sorted(Counter(numbers).items())}


def quantiles(lengths: Sequence[int]) -> dict[str, float]:
    """Mean, quantiles and extremes; empty without lengths."""
    if not lengths:
        return {}
    shares = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    found = numpy.quantile(lengths, list(shares.values()), method="inverted_cdf")
    return {"mean": round(float(numpy.mean(lengths)), 2), **dict(zip(shares, map(float, found), strict=True))}


def _fits(lengths: Lengths, limits: LimitsSection) -> dict[str, Any]:
    """How many rows are learned whole, their end tokens included."""
    prompts = [prompt <= limits.prompt_tokens for _, prompt, _ in lengths.rows]
    ends = [all(length <= limits.response_tokens for length in responses) for _, _, responses in lengths.rows]
    both = [prompt and end for prompt, end in zip(prompts, ends, strict=True)]
    return {
        "prompt_tokens": limits.prompt_tokens,
        "response_tokens": limits.response_tokens,
        "share_prompt_fits": _share(sum(prompts), len(prompts)),
        "share_end_token_fits": _share(sum(ends), len(ends)),
        "share_both_fit": _share(sum(both), len(both)),
    }


def _share(count: int, total: int) -> float | None:
    return round(count / total, 4) if total else None


def _rankings(rankings: Sequence[Ranking], lengths: Lengths) -> dict[str, Any]:
    pairs = sum(math.comb(len(one.responses), 2) for one in rankings)
    ordered = sum(len(one.pairs) for one in rankings)
    earlier = [(sum(better < worse for better, worse in one.pairs), len(one.pairs)) for one in rankings]
    longer: list[tuple[int, int]] = []
    for record, _, sizes in lengths.rows:
        assert isinstance(record, Ranking), "a source gives records of one kind"
        compared = [(sizes[better], sizes[worse]) for better, worse in record.pairs if sizes[better] != sizes[worse]]
        longer.append((sum(better > worse for better, worse in compared), len(compared)))
    best: Counter[int] = Counter()
    for one in rankings:
        best.update(index for index, tier in enumerate(one.tiers) if tier == 0)
    return {
        "sizes": _counted(len(one.responses) for one in rankings),
        "tiers": _counted(len(set(one.tiers)) for one in rankings),
        "pairs": pairs,
        "tied_pairs": pairs - ordered,
        "rows_with_ties": sum(len(set(one.tiers)) < len(one.tiers) for one in rankings),
        "longer_wins": proportion_of(longer),
        "earlier_wins": proportion_of(earlier),
        "best_at_position": {str(index + 1): count for index, count in sorted(best.items())},
    }


def proportion_of(rankings: Sequence[tuple[int, int]]) -> dict[str, float | int]:
    """The share of pairs that are so, of (pairs that are so, pairs) in each ranking, with an interval that knows that
    pairs of one ranking go together: Wilson's, of the number of independent pairs that would tell as much."""
    known = [(count, total) for count, total in rankings if total]
    count, total = sum(count for count, _ in known), sum(total for _, total in known)
    return proportion(count, total, independent=independent_pairs(known))


def independent_pairs(rankings: Sequence[tuple[int, int]]) -> float:
    """M pairs of k rankings divided by their design effect, the variance of the share over that of independent pairs:

        deff = k / (k - 1) * sum of (x_i - p m_i)^2 / M^2   over   p (1 - p) / (M - 1)

    x_i of ranking i's m_i pairs are so, p = sum of x_i / M. Kish 1965, Survey Sampling, section 8.2; Rao and Scott
    1992, A simple method for the analysis of clustered binary data. It is M where each ranking has one pair; k where
    all pairs are alike, which says nothing of how they go together; never more than M.
    """
    clusters, total = len(rankings), sum(size for _, size in rankings)
    share = sum(count for count, _ in rankings) / total if total else 0.0
    alone = share * (1.0 - share) / (total - 1) if total > 1 else 0.0
    if clusters < 2 or alone == 0.0:
        return float(clusters)
    squares = sum((count - share * size) ** 2 for count, size in rankings)
    effect = clusters / (clusters - 1) * squares / total**2 / alone
    return total / max(1.0, effect)


def proportion(count: int, total: int, *, independent: float | None = None) -> dict[str, float | int]:
    """A share with Wilson's 95 % interval (Wilson 1927). independent: pairs that the interval rests on; None: all."""
    if not total:
        return {"pairs": 0}
    z = 1.959964
    share, size = count / total, total if independent is None else independent
    centre = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size)) / (1 + z * z / size)
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return {"share": round(share, 4), "low": round(low, 4), "high": round(high, 4), "pairs": total}


def summary(card: Mapping[str, Any]) -> list[str]:
    """The card in a few lines, for a terminal."""
    rows = card["rows"]
    lines = [f"{rows['kept']} {card['kind']}s kept of {rows['in']} rows"]
    lines += [f"  dropped {count}: {reason}" for reason, count in rows["dropped"].items()]
    copies = card["duplicates"]
    lines.append(f"copies: {copies['rows']} rows, {copies['prompts']} prompts; tasks: {len(card['tasks'])}")
    for what in ("prompt", "response"):
        if found := card["lengths"][what]:
            unit = card["lengths"]["unit"]
            lines.append(f"{what}: median {found['p50']:.0f} {unit}, 99 % {found['p99']:.0f}, most {found['max']:.0f}")
    if "limits" in card:
        lines.append(f"rows that fit the limits, end token included: {card['limits']['share_both_fit']:.2%}")
    if "rankings" in card:
        of = card["rankings"]
        lines.append(f"rankings of {', '.join(of['sizes'])} responses; {of['tied_pairs']} of {of['pairs']} pairs tied")
        for name in ("longer_wins", "earlier_wins"):
            if of[name]["pairs"]:
                said = f"{of[name]['share']:.1%} [{of[name]['low']:.1%}, {of[name]['high']:.1%}]"
                lines.append(f"{name.replace('_', ' ')}: {said} of {of[name]['pairs']} pairs")
    return lines
