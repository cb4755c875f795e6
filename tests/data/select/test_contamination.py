"""Training rows that hold an evaluation prompt are found, and those that only share a template's words are not."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from data.records import Demonstration, Message, Origin, Prompt, Ranking
from data.select.contamination import ContaminationSection, Evaluation, clean
from data.select.dropped import DroppedRows
from data.select.sources import Source, load
from onebase.errors import DataError

LETTERS = "alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa quebec"
WORDS = LETTERS.split()


def prompt(text: str, line: int = 1) -> Prompt:
    return Prompt((Message("user", text),), Origin("test.jsonl", line))


def finding(text: str, evaluation: Sequence[str], **section: object) -> str | None:
    prompts = [prompt(text_of_line, line) for line, text_of_line in enumerate(evaluation, start=1)]
    overlap = Evaluation(prompts, ContaminationSection.model_validate(section)).finding(prompt(text))
    return None if overlap is None else ": ".join(overlap)


def test_the_same_prompt_is_found_whatever_its_case_and_spaces():
    assert finding(" what IS  two plus two?", ["Hello.", "What is two plus two?"]) == (
        "the prompt is an evaluation prompt: test.jsonl:2"
    )


@pytest.mark.parametrize(("shared", "overlaps"), [(13, True), (12, False)])
def test_thirteen_words_in_a_row_are_found_and_twelve_are_not(shared: int, overlaps: bool):
    text = "Before: " + ", ".join(WORDS[2 : 2 + shared]).upper() + "; after."
    overlap = finding(text, [" ".join(WORDS)], similarity=None)
    assert overlap == ("shares 13 words in a row with an evaluation prompt: test.jsonl:1" if overlaps else None)


def test_words_in_another_order_are_no_run():
    assert finding(" ".join(reversed(WORDS)), [" ".join(WORDS)]) is None


def test_what_more_prompts_share_than_common_says_is_a_template():
    evaluation = [f"{' '.join(WORDS)} question {number}" for number in range(4)]
    text = " ".join(WORDS) + " and something else that nobody asked for before now or then or here"
    assert finding(text, evaluation, common=3, similarity=None) is None
    assert finding(text, evaluation, common=4, similarity=None) is not None


def test_responses_are_looked_at_too():
    evaluation = Evaluation([prompt(" ".join(WORDS))], ContaminationSection())
    leaked = f"The question was: {' '.join(WORDS)}?"
    assert evaluation.finding(Demonstration(prompt("What was asked?"), leaked)) is not None
    assert evaluation.finding(Ranking(prompt("What was asked?"), ("Nothing.", leaked), (0, 1))) is not None
    assert evaluation.finding(Ranking(prompt("What was asked?"), ("Nothing.", "No."), (0, 1))) is None


def test_system_messages_of_evaluation_prompts_are_no_evidence():
    messages = (Message("system", " ".join(WORDS)), Message("user", "How many?"))
    evaluation = Evaluation([Prompt(messages, Origin("test.jsonl", 1))], ContaminationSection())
    assert evaluation.finding(prompt(" ".join(WORDS))) is None


def test_near_duplicates_are_counted_out_and_not_estimated():
    # One word of 12 replaced in the midst: 10 shingles each, 7 shared, so the similarity is 7 / 13 = 0.538.
    evaluation = " ".join(WORDS[:12])
    text = " ".join([*WORDS[:5], "zebra", *WORDS[6:12]])
    assert finding(text, [evaluation], similarity=0.53) == (
        "nearly an evaluation prompt (similarity 0.53 or more): test.jsonl:1"
    )
    assert finding(text, [evaluation], similarity=0.54) is None
    assert finding(text, [evaluation], similarity=None) is None


def test_chinese_is_compared_by_characters():
    question = "请用一句话说明为什么天空是蓝色的好吗"
    assert finding("问题:" + question[:14] + "?", [question], similarity=None) is not None
    assert finding("问题:" + question[:12] + "?", [question], similarity=None) is None


def test_dropping_counts_by_reason_and_place():
    evaluation = Evaluation([prompt("What is two plus two?")], ContaminationSection())
    section = ContaminationSection(on_contaminated_row="drop")
    dropped = DroppedRows()
    rows = [prompt("what is two plus two?", 7), prompt("What is two plus three?", 8)]
    assert [record.origin.line for record in clean(rows, evaluation, section, dropped)] == [8]
    assert dropped.counts == {"the prompt is an evaluation prompt": 1}
    assert dropped.places == {"the prompt is an evaluation prompt": ["test.jsonl:7"]}


def write(path: Path, *prompts: str) -> str:
    path.write_text("".join(json.dumps({"prompt": text, "response": "4"}) + "\n" for text in prompts))
    return str(path)


def test_a_recipe_names_the_files_and_the_record_holds_the_counts(tmp_path: Path):
    test = write(tmp_path / "test.jsonl", "What is two plus two?")
    section = ContaminationSection(against=(test,), on_contaminated_row="drop")
    train = write(tmp_path / "train.jsonl", "What is two plus two?", "Name a bird.")
    loaded = load([Source(source=train, contamination=section)], Demonstration, seed=0)
    assert [record.prompt.user_text for record in loaded.records] == ["Name a bird."]
    assert loaded.identities[0].dropped == {"the prompt is an evaluation prompt": 1}


def test_a_stage_may_hand_over_its_own_evaluation_records(tmp_path: Path):
    train = write(tmp_path / "train.jsonl", "Name a bird.", "What is two plus two?")
    source = Source(source=train, contamination=ContaminationSection())
    held_out = [Demonstration(prompt("What is two plus two?", 5), "4")]
    with pytest.raises(DataError, match=r"train\.jsonl:2: the prompt is an evaluation prompt: test\.jsonl:5"):
        load([source], Demonstration, seed=0, evaluation=held_out)
    # A source without the section is not checked.
    assert len(load([Source(source=train)], Demonstration, seed=0, evaluation=held_out).records) == 2


def test_an_earlier_turn_of_an_evaluation_conversation_is_an_evaluation_prompt():
    turns = (Message("user", "alpha beta"), Message("assistant", "so"), Message("user", "gamma delta"))
    evaluation = Evaluation([Prompt(turns, Origin("test.jsonl", 1))], ContaminationSection())
    for conversation in (turns, turns[:1]):
        assert evaluation.finding(Prompt(conversation, Origin("train.jsonl", 1))) is not None
    assert evaluation.finding(Prompt((Message("user", "gamma delta"),), Origin("train.jsonl", 1))) is None


@pytest.mark.parametrize("trained", [True, False])
def test_a_system_message_hides_no_evaluation_prompt(trained: bool):
    bare = prompt("2+2?")
    briefed = Prompt((Message("system", "Be brief."), *bare.messages), bare.origin)
    trained_prompt, other = (briefed, bare) if trained else (bare, briefed)
    assert Evaluation([other], ContaminationSection()).finding(trained_prompt) is not None
