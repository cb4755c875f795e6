"""A card's numbers, written out by hand, and its plots."""

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from data.card import describe, independent_pairs, measure, proportion, proportion_of, quantiles, summary, write_card
from data.chat.conversations import Tokens
from data.records import Demonstration, Message, Origin, Prompt, Ranking
from data.select.sources import LoadedRecords
from onebase.recipe.sections import LimitsSection
from onebase.run.record import DataIdentity

ORIGIN = Origin("a.jsonl", 1)


def prompt(text: str, **meta: Any) -> Prompt:
    return Prompt((Message("user", text),), ORIGIN, meta)


class Words:
    """Tokens that can be counted by eye: a prompt's words and one to open the turn; a response's words and its end."""

    def encode(self, prompt: Prompt, *answers: str) -> Tokens:
        question, *answers_ids = (tuple(range(len(text.split()) + 1)) for text in (prompt.user_text, *answers))
        return Tokens(question, tuple(answers_ids), spells_control=False)


RANKINGS = [
    # best first and longest; three pairs, all ordered
    Ranking(prompt("one two", task="x"), ("a a a", "b b", "c"), (0, 1, 2)),
    # a tie of the first and the last; the best is in the midst, shorter than the first, as long as the last
    Ranking(prompt("one two three", task="x"), ("a a", "b", "c"), (1, 0, 1)),
    Ranking(prompt("one", task="y"), ("a", "b b"), (1, 0)),
]


def test_what_a_card_says_of_rankings():
    card = describe(RANKINGS, [], measure(RANKINGS, Words()), LimitsSection(prompt_tokens=3, response_tokens=3))
    assert card["kind"] == "ranking"
    assert card["tasks"] == {"x": 2, "y": 1}
    of = card["rankings"]
    assert of["sizes"] == {"2": 1, "3": 2}
    assert of["tiers"] == {"2": 2, "3": 1}
    assert (of["pairs"], of["tied_pairs"], of["rows_with_ties"]) == (7, 1, 1)
    # Ordered pairs: 3 (all longer, all earlier); 2 (one shorter and later, one as long and earlier); 1 (longer, later).
    assert (of["longer_wins"]["share"], of["longer_wins"]["pairs"]) == (0.8, 5)
    assert (of["earlier_wins"]["share"], of["earlier_wins"]["pairs"]) == (round(4 / 6, 4), 6)
    assert of["best_at_position"] == {"1": 1, "2": 2}
    # The second prompt has 4 tokens; the first ranking has a response of 4.
    assert card["limits"] == {
        "prompt_tokens": 3,
        "response_tokens": 3,
        "share_prompt_fits": round(2 / 3, 4),
        "share_end_token_fits": round(2 / 3, 4),
        "share_both_fit": round(1 / 3, 4),
    }


def test_an_end_token_over_the_limit_does_not_fit():
    records = [Demonstration(prompt("one"), "two words"), Demonstration(prompt("one"), "three words here")]
    card = describe(records, [], measure(records, Words()), LimitsSection(prompt_tokens=9, response_tokens=3))
    assert card["limits"]["share_end_token_fits"] == 0.5


def test_counts_in_kept_and_dropped_by_reason():
    records = [Demonstration(prompt("a"), "x"), Demonstration(prompt(" A "), "x"), Demonstration(prompt("a"), "y")]
    identities = [
        DataIdentity(source="a", split=None, revision=None, kept=2, dropped={"empty": 3, "copy": 1}, sha256=""),
        DataIdentity(source="b", split="train", revision=None, kept=1, dropped={"empty": 1}, sha256=""),
    ]
    card = describe(records, identities, measure(records, None), None)
    assert card["rows"] == {"in": 8, "kept": 3, "dropped": {"empty": 4, "copy": 1}}
    assert [(source["source"], source["in"], source["kept"]) for source in card["sources"]] == [
        ("a", 6, 2),
        ("b", 2, 1),
    ]
    assert card["duplicates"] == {"rows": 1, "prompts": 2}
    assert "limits" not in card
    assert "rankings" not in card


def test_turns_and_system_messages():
    turns = (Message("system", "s"), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    card = describe([Prompt(turns, ORIGIN), prompt("a")], [], measure([], None), None)
    assert card["turns"] == {"1": 1, "2": 1}
    assert card["with_system_message"] == 1


def test_quantiles_are_lengths_that_occur():
    assert quantiles(list(range(1, 101))) == {
        **{"mean": 50.5, "min": 1.0, "p10": 10.0, "p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
    }
    assert quantiles([]) == {}


def test_wilsons_interval_solves_its_own_equation():
    # The limits are where the normal test of that share against the observed one is just significant.
    interval = proportion(30, 40)
    for limit in (interval["low"], interval["high"]):
        distance = abs(0.75 - limit) / math.sqrt(limit * (1 - limit) / 40)
        assert distance == pytest.approx(1.959964, abs=2e-3)  # the limits are rounded to four digits
    assert proportion(0, 0) == {"pairs": 0}
    assert proportion(5, 5)["high"] == 1.0


@pytest.mark.parametrize("right", [7, 20])
def test_pairs_of_one_ranking_are_no_independent_ones(right: int):
    """Rankings whose pairs all say the same are as many coins as there are rankings: copies tell nothing new."""
    coins = [(1, 1)] * right + [(0, 1)] * (30 - right)
    assert independent_pairs(coins) == pytest.approx(30)
    assert proportion_of(coins) == proportion(right, 30)
    copied = [(6 * count, 6) for count, _ in coins]
    # Of k = 30 clusters the variance is known by k - 1, as a coin's own: a few hundredths.
    assert independent_pairs(copied) == pytest.approx(30, rel=0.04)
    copies, single = proportion_of(copied), proportion(right, 30)
    assert copies["pairs"] == 180
    assert (copies["low"], copies["high"]) == pytest.approx((single["low"], single["high"]), abs=5e-3)


def test_what_pairs_can_say_at_least_and_at_most():
    assert independent_pairs([(3, 3), (6, 6), (1, 1)]) == 3  # all alike: as many as there are rankings
    assert independent_pairs([(5, 10)]) == 1
    assert independent_pairs([(5, 10), (3, 6), (1, 2)]) == 18  # spread more evenly than chance: no more than all
    assert proportion_of([(0, 0), (0, 0)]) == {"pairs": 0}


def test_of_many_rows_so_many_are_measured_and_the_card_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("data.card.MEASURED", 10)
    records = [prompt(f"word {number}") for number in range(50)]
    lengths = measure(records, Words())
    assert len(lengths.rows) == 10
    assert describe(records, [], lengths, None)["lengths"]["rows_measured"] == 10


def test_tasks_beyond_the_largest_are_summed_up():
    records = [prompt("a", task=f"t{number}") for number in range(60) for _ in range(1 + (number == 7))]
    tasks = describe(records, [], measure(records, None), None)["tasks"]
    assert len(tasks) == 51
    assert next(iter(tasks.items())) == ("t7", 2)
    assert tasks["(10 more)"] == 10


def test_card_and_plots_are_written_and_equal_data_gives_equal_bytes(tmp_path: Path):
    limits = LimitsSection(prompt_tokens=3, response_tokens=3)
    odd = [Ranking(prompt("one", task="$x_1$ \x1b 天气"), ("a", "b b"), (1, 0))]
    card = {}
    for folder in ("a", "b"):
        card = write_card(
            tmp_path / folder, LoadedRecords(records=RANKINGS + odd, identities=[]), tokens=Words(), limits=limits
        )
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"card.json", "lengths.svg", "tasks.svg", "rankings.svg"}
    for name in names:
        content = (tmp_path / "a" / name).read_bytes()
        assert content == (tmp_path / "b" / name).read_bytes()
        if name.endswith(".svg"):
            assert ElementTree.fromstring(content).tag.endswith("svg")
    assert json.loads((tmp_path / "a" / "card.json").read_text()) == card
    assert r"$x_1$ \x1b 天气" in (tmp_path / "a" / "tasks.svg").read_text(encoding="utf-8")
    assert "limit 3" in (tmp_path / "a" / "lengths.svg").read_text(encoding="utf-8")


def test_prompts_have_no_plot_of_rankings(tmp_path: Path):
    card = write_card(tmp_path, LoadedRecords(records=[prompt("one two")], identities=[]))
    assert {path.name for path in tmp_path.iterdir()} == {"card.json", "lengths.svg", "tasks.svg"}
    assert card["lengths"]["unit"] == "characters"
    assert card["lengths"]["response"] == {}


def test_the_summary_names_what_a_person_should_see():
    card = describe(RANKINGS, [], measure(RANKINGS, Words()), LimitsSection(prompt_tokens=3, response_tokens=3))
    text = "\n".join(summary(card))
    assert "3 rankings kept of 3 rows" in text
    assert "rankings of 2, 3 responses; 1 of 7 pairs tied" in text
    assert "longer wins: 80.0% [" in text
    assert "rows that fit the limits, end token included: 33.33%" in text


def test_a_chat_counts_the_tokens_of_a_run(tiny_base_folder: Path):
    from data.chat.conversations import Chat
    from onebase.model import base as bases
    from onebase.recipe.sections import BaseSection, ChatSection

    chat = Chat(*bases.load_tokenizer(BaseSection(model=str(tiny_base_folder)), ChatSection()), ChatSection())
    demonstration = Demonstration(prompt("Sort these words."), "fig")
    encoded = chat.encode(demonstration.prompt, demonstration.response)
    [(_, prompt_tokens, response_tokens)] = measure([demonstration], chat).rows
    assert (prompt_tokens, response_tokens) == (len(encoded.prompt), tuple(map(len, encoded.responses)))
