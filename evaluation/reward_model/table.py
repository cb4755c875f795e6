"""The reward report for a terminal: what a person looks at first."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Column, Table
from rich.text import Text

from evaluation.reward_model.verdict import verdict_of
from evaluation.statistics import interval_text
from onebase.terminal import console


def show(report: Mapping[str, Any], title: str) -> None:
    """Print the numbers with their intervals, then the examples side by side."""
    screen = console()
    numbers = (Column(name, justify="right") for name in ("share of pairs right [95 %]", "prompts", "pairs"))
    table = Table("what", *numbers, title=title)
    for name, cell in _cells(report):
        if "no_data" in cell:
            table.add_row(name, f"no data: {cell['no_data']}", style="dim")
        else:
            table.add_row(name, interval_text(cell), str(cell.get("prompts", "")), str(cell.get("pairs", "")))
    screen.print(table)
    for line in _lines(report):
        screen.print(line)
    for heading, rows in report["examples"].items():
        screen.print(_examples(heading, rows) if rows else f"{heading}: none")
    screen.print(f"verdict: {verdict_of(report).text}")


def _cells(report: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "all pairs", report["accuracy"]
    for heading, section in (("gap", "by_gap"), ("source", "by_source"), ("task", "by_task")):
        yield from _section(heading, report[section])
    labels = report["by_label"]
    below = labels if "no_data" in labels else {name: row["put_below_a_better_one"] for name, row in labels.items()}
    yield from _section("worse is", below)
    for row in report["length"]["by_tokens_better_has_more"]:
        yield f"better has {row['least']} to {row['most']} tokens more", row
    for name in ("better_is_shorter", "equally_long", "better_is_longer"):
        yield name.replace("_", " "), report["length"][name]
    yield from _section("labeler", report["agreement"]["by_labeler"])
    labelers = report["held_out_labelers"]
    if "no_data" in labelers:
        yield "held-out labelers", labelers
    else:
        yield "labelers trained on", labelers["trained_on"]
        yield "labelers not trained on", labelers["not_trained_on"]
    if "members" in report["ensemble"]:
        for name, row in report["ensemble"]["members"].items():
            yield f"{name} alone", row["accuracy"]
        for row in report["ensemble"]["by_spread_of_margin"]:
            yield f"models are {row['least']:.2f} to {row['most']:.2f} apart", row
    for name, row in report["baselines"].items():
        yield f"baseline: {name}", row.get("accuracy", row)


def _section(heading: str, section: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    if "no_data" in section:
        return [(f"by {heading}", section)]
    return [(f"{heading} {name}", cell) for name, cell in section.items()]


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    calibration, agreement = report["calibration"], report["agreement"]
    loss = interval_text(calibration["log_loss"])
    yield f"calibration: log loss {loss} (equal scores: 0.69), ECE {calibration['ece']:.3f}"
    correlation = report["length"]["correlation_with_score"]
    yield "correlation of score and length: " + ", ".join(
        f"{name.replace('_', ' ')} {value['no_data'] if isinstance(value, Mapping) else format(value, '+.2f')}"
        for name, value in correlation.items()
    )
    tau, first = (interval_text(agreement[name]) for name in ("kendall_tau_b", "top_1"))
    yield f"Kendall's tau-b {tau}, best response first {first}"
    yield "best of n (0.5: random): " + ", ".join(f"{row['n']}: {row['mean']:.2f}" for row in report["best_of_n"])
    shown = report["demonstrations"]
    if "no_data" in shown:
        yield f"demonstrations: no data: {shown['no_data']}"
        return
    beaten = shown["beats_ranked_responses_of_its_prompt"]
    yield (
        f"{shown['count']} demonstrations: mean score {shown['mean_score']:+.2f}; of the responses to their prompt "
        f"they beat {beaten['no_data'] if 'no_data' in beaten else interval_text(beaten)}"
    )


def _examples(heading: str, rows: list[Mapping[str, Any]]) -> Table:
    explained = {"overconfident": "wrong, by the most", "underconfident": "right, by the least"}
    table = Table("prompt", "better", "worse", title=f"{heading} ({explained[heading]})", show_lines=True)
    for row in rows:
        table.add_row(Text(row["prompt"]), *(_side(row[side]) for side in ("better", "worse")))
    return table


def _side(side: Mapping[str, Any]) -> Text:
    label = f", {side['label']}" if "label" in side else ""
    return Text(f"{side['score']:+.2f} (tier {side['tier']}{label})\n", style="bold").append(
        side["response"], style="not bold"
    )
