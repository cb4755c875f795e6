"""The data card: what went into a stage, in numbers that a person can check and plots that show what numbers hide.

`card.json` and SVG plots: counts and reasons, tasks, copies, lengths, and the share of rows that fit the limits. For
rankings also sizes, ties, and two biases that a reward model learns readily: longer wins, earlier wins.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy

from data.records import Prompt, Ranking, Record
from data.select.mixing import task_of
from data.select.sources import Dedupe, Deduplicator, LoadedRecords
from data.writing import data_errors
from onebase.files.writing import replace_file
from onebase.recipe.sections import LimitsSection
from onebase.run.folders import require_replaceable
from onebase.run.record import DataIdentity
from onebase.seeding import seeded_order

if TYPE_CHECKING:
    from data.chat.conversations import Tokens

SCHEMA = 1
CARD = "card.json"
PLOTS = ("lengths.svg", "tasks.svg", "rankings.svg")
MEASURED = 20_000
"""Rows that are measured at most: of more, so many are drawn. The card says how many."""
TASKS = 50
"""Tasks that are listed, the largest first; the others are summed up."""


@runtime_checkable
class Encoder(Protocol):
    """What gives the tokens of a prompt and its responses; `data.chat.conversations.Chat` does."""

    def encode(self, prompt: Prompt, *answers: str) -> "Tokens": ...


def write_card(
    folder: Path,
    loaded: LoadedRecords[Any],
    *,
    tokens: Encoder | None = None,
    limits: LimitsSection | None = None,
) -> dict[str, Any]:
    """Write card.json and its plots into `folder`; the card. Without `tokens` lengths are counted in characters."""
    from data import card_plots
    from onebase.tracking import figures

    lengths = measure(loaded.records, tokens)
    card = describe(loaded.records, loaded.identities, lengths, limits)
    for name, figure in card_plots.figures(card, lengths, limits).items():
        with data_errors(folder / name):
            figures.write(figure, folder / name)
    with data_errors(folder / CARD):
        replace_file(folder / CARD, json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return card


def require_room(folder: Path) -> None:
    """InputError where a card in `folder` would replace files that are not a card's."""
    require_replaceable(folder, CARD, ("schema_version", "kind", "rows", "sources"), PLOTS)


class Lengths:
    """Lengths of the measured rows: one of the prompt, and one of each response, its end token included."""

    def __init__(self, unit: str, rows: Sequence[tuple[Record, int, tuple[int, ...]]]) -> None:
        self.unit = unit
        self.rows = rows
        self.prompts = [prompt for _, prompt, _ in rows]
        self.responses = [length for _, _, responses in rows for length in responses]


def measure(records: Sequence[Record], tokens: Encoder | None) -> Lengths:
    """Lengths of all records, or of MEASURED of them, drawn by position."""
    chosen = range(len(records)) if len(records) <= MEASURED else sorted(seeded_order(len(records), 0)[:MEASURED])
    rows = []
    for index in chosen:
        record = records[index]
        prompt, responses = record.prompt, record.responses
        if tokens is None:
            rows.append((record, sum(len(message.content) for message in prompt.messages), tuple(map(len, responses))))
        else:
            encoded = tokens.encode(prompt, *responses)
            rows.append((record, len(encoded.prompt), tuple(map(len, encoded.responses))))
    return Lengths("characters" if tokens is None else "tokens", rows)


def describe(
    records: Sequence[Record], identities: Iterable[DataIdentity], lengths: Lengths, limits: LimitsSection | None
) -> dict[str, Any]:
    """The content of card.json."""
    identities = list(identities)
    reasons = sum((Counter(identity.dropped) for identity in identities), Counter[str]())
    card: dict[str, Any] = {
        "schema_version": SCHEMA,
        "kind": type(records[0]).__name__.lower() if records else None,
        "rows": {"in": len(records) + reasons.total(), "kept": len(records), "dropped": dict(reasons.most_common())},
        "sources": [
            {"in": identity.kept + sum(identity.dropped.values()), **identity.model_dump()} for identity in identities
        ],
        "tasks": _tasks(records),
        "duplicates": {"rows": _copies(records, "rows"), "prompts": _copies(records, "prompts")},
        "turns": _counted(sum(message.role == "user" for message in record.prompt.messages) for record in records),
        "with_system_message": sum(record.prompt.messages[0].role == "system" for record in records),
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


def _copies(records: Sequence[Record], dedupe: Dedupe) -> int:
    """Rows that a source with this `dedupe` leaves out."""
    deduplicator = Deduplicator(dedupe)
    return sum(not deduplicator.is_new(record) for record in records)


def _counted(numbers: Iterable[int]) -> dict[str, int]:
    return {str(number): count for number, count in sorted(Counter(numbers).items())}


def quantiles(lengths: Sequence[int]) -> dict[str, float]:
    """Mean, quantiles and extremes; empty without lengths."""
    if not lengths:
        return {}
    shares = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    values = numpy.quantile(lengths, list(shares.values()), method="inverted_cdf")
    return {"mean": round(float(numpy.mean(lengths)), 2), **dict(zip(shares, map(float, values), strict=True))}


def _fits(lengths: Lengths, limits: LimitsSection) -> dict[str, Any]:
    """How many rows are learned whole, their end tokens included."""
    fits = [
        (prompt <= limits.prompt_tokens, max(responses, default=0) <= limits.response_tokens)
        for _, prompt, responses in lengths.rows
    ]
    return {
        "prompt_tokens": limits.prompt_tokens,
        "response_tokens": limits.response_tokens,
        "share_prompt_fits": _share([prompt for prompt, _ in fits]),
        "share_end_token_fits": _share([end for _, end in fits]),
        "share_both_fit": _share([prompt and end for prompt, end in fits]),
    }


def _share(fits: Sequence[bool]) -> float | None:
    return round(sum(fits) / len(fits), 4) if fits else None


def _rankings(rankings: Sequence[Ranking], lengths: Lengths) -> dict[str, Any]:
    pairs = sum(math.comb(len(ranking.responses), 2) for ranking in rankings)
    ordered = sum(len(ranking.pairs) for ranking in rankings)
    earlier = [(sum(better < worse for better, worse in ranking.pairs), len(ranking.pairs)) for ranking in rankings]
    longer: list[tuple[int, int]] = []
    for record, _, sizes in lengths.rows:
        assert isinstance(record, Ranking), "a source gives records of one kind"
        compared = [(sizes[better], sizes[worse]) for better, worse in record.pairs if sizes[better] != sizes[worse]]
        longer.append((sum(better > worse for better, worse in compared), len(compared)))
    best: Counter[int] = Counter()
    for ranking in rankings:
        best.update(index for index, tier in enumerate(ranking.tiers) if tier == 0)
    return {
        "sizes": _counted(len(ranking.responses) for ranking in rankings),
        "tiers": _counted(len(set(ranking.tiers)) for ranking in rankings),
        "pairs": pairs,
        "tied_pairs": pairs - ordered,
        "rows_with_ties": sum(len(set(ranking.tiers)) < len(ranking.tiers) for ranking in rankings),
        "longer_wins": proportion_of(longer),
        "earlier_wins": proportion_of(earlier),
        "best_at_position": {str(index + 1): count for index, count in sorted(best.items())},
    }


def proportion_of(rankings: Sequence[tuple[int, int]]) -> dict[str, float | int]:
    """The share of pairs with a property, from (pairs with it, pairs) of each ranking.

    The interval is Wilson's for the number of independent pairs with as much information: pairs of one ranking are
    correlated.
    """
    known = [(count, total) for count, total in rankings if total]
    count, total = sum(count for count, _ in known), sum(total for _, total in known)
    return proportion(count, total, independent=independent_pairs(known))


def independent_pairs(rankings: Sequence[tuple[int, int]]) -> float:
    """M pairs of k rankings divided by their design effect, the variance of the share over that of independent pairs:

        deff = k / (k - 1) * sum of (x_i - p m_i)^2 / M^2   over   p (1 - p) / (M - 1)

    x_i of ranking i's m_i pairs have the property, p = sum of x_i / M. Kish 1965, Survey Sampling, section 8.2; Rao and
    Scott 1992, A simple method for the analysis of clustered binary data. The result is M where each ranking has one
    pair, and k where all pairs are alike: these do not show how strongly pairs are correlated. It is never more than M.
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
    unit = card["lengths"]["unit"]
    for part in ("prompt", "response"):
        if values := card["lengths"][part]:
            median, most = f"median {values['p50']:.0f} {unit}", f"most {values['max']:.0f}"
            lines.append(f"{part}: {median}, 99 % {values['p99']:.0f}, {most}")
    if "limits" in card:
        lines.append(f"rows that fit the limits, end token included: {card['limits']['share_both_fit']:.2%}")
    if "rankings" in card:
        rankings = card["rankings"]
        sizes, tied = ", ".join(rankings["sizes"]), f"{rankings['tied_pairs']} of {rankings['pairs']} pairs tied"
        lines.append(f"rankings of {sizes} responses; {tied}")
        for name in ("longer_wins", "earlier_wins"):
            bias = rankings[name]
            if bias["pairs"]:
                interval = f"{bias['share']:.1%} [{bias['low']:.1%}, {bias['high']:.1%}]"
                lines.append(f"{name.replace('_', ' ')}: {interval} of {bias['pairs']} pairs")
    return lines
