"""Rankings of the reward benchmarks as tokens: QA-feedback, built-in ones, random words."""

import contextlib
import json
import random
from pathlib import Path
from typing import Any


def base_section(settings: dict[str, Any]) -> dict[str, str]:
    return {"model": settings["model"], "quantization": "fp32"}


def sections(settings: dict[str, Any]) -> tuple[Any, Any]:
    from onebase.recipe.sections import BaseSection, ChatSection

    return BaseSection.model_validate(base_section(settings)), ChatSection()


def read_rankings(settings: dict[str, Any]) -> list[Any]:
    """What is trained on, as tokens: the first questions whose prompt is short enough; beside held-out rankings, as
    many of the others in an order by seed."""
    wanted = settings["questions"]
    encoded = encode(settings, wanted)
    if "held_out" in settings and settings["data"] is not None:
        rest = encoded[settings["held_out"]["chosen-on"] + settings["held_out"]["held-out"] :]
        encoded = random.Random(settings["seed"]).sample(rest, min(wanted, len(rest)))
    if len(encoded) < wanted:
        raise SystemExit(f"{wanted} questions asked for, and {len(encoded)} have a prompt that is short enough")
    longest = sorted(
        encoded[:wanted], key=lambda ranking: -len(ranking.prompt_ids) - sum(map(len, ranking.responses_ids))
    )
    # Short runs that choose the peer's setting take the longest rows, which decide memory.
    return longest[: settings["probe"]] if settings["probe"] else encoded[:wanted]


def read_held_out(settings: dict[str, Any]) -> list[Any]:
    """The part of the held-out rankings that is asked for: of other families, or other rows of the same file."""
    sizes = settings["held_out"]
    first, count = (0, sizes["chosen-on"]) if sizes["part"] == "chosen-on" else (sizes["chosen-on"], sizes["held-out"])
    whole = encode(settings, sizes["chosen-on"] + sizes["held-out"], split="heldout-families", seed=0)
    return whole[first : first + count]


def encode(settings: dict[str, Any], wanted: int, *, split: str = "reward", seed: int | None = None) -> list[Any]:
    """Rankings as tokens, those with too long a prompt left out. split, seed: of built-in ones, which are drawn."""
    from data.chat.conversations import Chat, Limiter, encode_rankings
    from data.records import Ranking
    from data.select.sources import Source, load
    from onebase.model import base as bases
    from onebase.recipe.sections import LimitsSection

    section, chat_section = sections(settings)
    chat = Chat(*bases.load_tokenizer(section, chat_section), chat_section)
    limiter = Limiter(LimitsSection(prompt_tokens=settings["prompt_tokens"], response_tokens=1024, over="drop"))
    if settings["synthetic"]:
        records = synthetic_rankings(wanted, settings["synthetic"])
    elif settings["data"] is None:
        drawn = int(settings["seed"]) if seed is None else seed
        records = load([Source(source="builtin:tasks", split=split, rows=wanted)], Ranking, seed=drawn).records
    elif settings["data"].endswith(".json"):
        records = qa_feedback(Path(settings["data"]))
    else:
        records = load([Source(source=settings["data"])], Ranking, seed=0).records
    return encode_rankings(chat, records, limiter)


def qa_feedback(path: Path) -> list[Any]:
    """Rankings of FineGrainedRLHF's QA-feedback (Wu et al. 2023, https://arxiv.org/abs/2306.01693): four answers a
    question and a preference for each of the six pairs. Rows whose preferences make no order are left out."""
    from data.records import Message, Origin, Prompt, Ranking
    from onebase.errors import DataError

    order = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    rankings = []
    for line, row in enumerate(json.loads(path.read_text(encoding="utf-8")), start=1):
        passages = "\n\n".join(" ".join(sentences[1:]) for sentences in row["passages"])
        prompt = Prompt((Message("user", f"{passages}\n\n{row['question']}"),), Origin(str(path), line))
        verdicts = dict(zip(order, row["preference"], strict=True))
        losses = [sum(verdict == (2 if place == pair[0] else 1) for pair, verdict in verdicts.items() if place in pair)
                  for place in range(4)]  # fmt: skip
        levels = sorted(set(losses))
        tiers = tuple(levels.index(count) for count in losses)
        consistent = all(
            verdict == (0 if tiers[i] == tiers[j] else 1 if tiers[i] < tiers[j] else 2)
            for (i, j), verdict in verdicts.items()
        )
        responses = tuple(row[f"prediction {number}"] for number in range(1, 5))
        if consistent:
            # All tied, or the same answer twice: no ranking.
            with contextlib.suppress(DataError):
                rankings.append(Ranking(prompt, responses, tiers))
    return rankings


def synthetic_rankings(count: int, responses: int) -> list[Any]:
    """Random words: a prompt of 200 to 260 and answers of 30 to 60, in the order of their number."""
    from data.records import Message, Origin, Prompt, Ranking

    drawn = random.Random(0)

    def words(low: int, high: int) -> str:
        return " ".join(f"{drawn.choice('bcdfgl')}{drawn.choice('aeiou')}t" for _ in range(drawn.randint(low, high)))

    return [
        Ranking(
            Prompt((Message("user", words(200, 260)),), Origin("synthetic", number + 1)),
            tuple(f"{place} {words(30, 60)}" for place in range(responses)),
            tuple(range(responses)),
        )
        for number in range(count)
    ]
