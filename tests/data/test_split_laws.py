"""No normalised prompt is in two splits: whatever the order of the rows, their copies, and the files they lie in."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.records import Demonstration, normalised
from data.select.dropped import DroppedRows
from data.select.sources import Source, load, records_of
from data.splits import FILE_SPLITS
from data.writing import write_splits
from onebase.errors import DataError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
# A text with Anthropic's mark would be read as a dialogue.
PROMPT = TEXT.filter(lambda text: text.strip() != "" and not text.startswith("\n\nHuman:"))
PROMPTS = st.lists(PROMPT, min_size=1, max_size=12)


def disguised(text: str, how: int) -> str:
    """The same prompt in other clothes: white space around and within, and, where it is the same again, case."""
    if how == 1:
        return f"\t{text}\n "
    if how == 2:
        return text.replace(" ", " \u00a0 ")
    return text.upper() if how == 3 and text.upper().casefold() == text.casefold() else text


def splits_of(shards: list[list[str]], folder: Path) -> dict[str, set[str]]:
    """The normalised prompts that each split of the shards holds, all shards together."""
    splits: dict[str, set[str]] = {}
    for number, shard in enumerate(shards):
        path = folder / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"prompt": text, "response": "yes"}) + "\n" for text in shard))
        for split in FILE_SPLITS:
            records = records_of(Source(source=str(path), split=split), Demonstration, DroppedRows())
            splits.setdefault(split, set()).update(normalised(record.prompt) for record in records)
    return splits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("splits")


def law(folder: Path, prompts: list[str], data: st.DataObject) -> None:
    before = splits_of([prompts], folder)
    copies = data.draw(st.lists(st.tuples(st.sampled_from(prompts), st.integers(0, 3)), max_size=12))
    more = data.draw(st.permutations([*prompts, *(disguised(text, how) for text, how in copies)]))
    cut = data.draw(st.integers(0, len(more)))
    after = splits_of([more[:cut], more[cut:]], folder)
    assert not after["train"] & after["heldout"]
    # The same prompts in the same splits: nothing moves, nothing is lost.
    assert after == before


SLOW = [HealthCheck.too_slow]


@settings(max_examples=200, deadline=None, suppress_health_check=SLOW)
@given(prompts=PROMPTS, data=st.data())
def test_no_prompt_crosses_splits(folder: Path, prompts: list[str], data: st.DataObject) -> None:
    law(folder, prompts, data)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, suppress_health_check=SLOW)
@given(prompts=PROMPTS, data=st.data())
def test_no_prompt_crosses_splits_at_length(folder: Path, prompts: list[str], data: st.DataObject) -> None:
    law(folder, prompts, data)


def test_no_turn_of_a_conversation_crosses_splits(tmp_path: Path):
    rows = [
        {
            "messages": [
                *([{"role": "system", "content": "Be brief."}] if number % 2 else []),
                {"role": "user", "content": f"question {number}"},
                {"role": "assistant", "content": "yes"},
                {"role": "user", "content": f"and {number}?"},
                {"role": "assistant", "content": f"no, {branch}"},
                {"role": "user", "content": "why?"},
                {"role": "assistant", "content": "so"},
            ]
        }
        for number in range(100)
        for branch in ("a", "b")  # the same beginning, and another end
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    openings = {}
    for split in FILE_SPLITS:
        records = list(records_of(Source(source=str(path), split=split), Demonstration, DroppedRows()))
        firsts = [
            next(message.content for message in record.prompt.messages if message.role == "user") for record in records
        ]
        assert len(records) == 6 * len(set(firsts)), "every turn of both conversations"
        openings[split] = set(firsts)
    assert not openings["train"] & openings["heldout"]
    assert len(openings["train"] | openings["heldout"]) == 100
    assert openings["heldout"]


def test_a_one_pass_cut_is_the_cut_that_sources_make(tmp_path: Path):
    rows = [{"prompt": f"question {number}", "response": "yes"} for number in range(400)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = write_splits(records_of(Source(source=str(path)), Demonstration, DroppedRows()), tmp_path / "out")
    assert sum(counts.values()) == 400
    assert 15 < counts["heldout"] < 70  # 40 expected, standard deviation 6
    for split in FILE_SPLITS:
        cut = load([Source(source=str(path), split=split)], Demonstration, seed=0)
        written = load([Source(source=str(tmp_path / "out" / f"{split}.jsonl"))], Demonstration, seed=0)
        assert {record.prompt.user_text for record in cut.records} == {
            record.prompt.user_text for record in written.records
        }


def test_a_failing_cut_leaves_nothing_behind(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\nnope\n')
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train.jsonl").write_text("as it was\n")
    with pytest.raises(DataError, match=r"a\.jsonl:2:1: not valid JSON"):
        write_splits(records_of(Source(source=str(path)), Demonstration, DroppedRows()), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train.jsonl"]
    assert (tmp_path / "out" / "train.jsonl").read_text() == "as it was\n"
