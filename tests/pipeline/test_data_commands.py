"""`onebase data check|card|convert`: what they print, write and exit with."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data.records import Demonstration, Ranking, fingerprint
from data.select.dropped import DroppedRows
from data.select.sources import Source, records_of
from pipeline.data_commands import app

ROOT = Path(__file__).resolve().parents[2]
GOOD = [
    {"prompt": "Name a fruit.", "response": "fig"},
    {"prompt": " name a FRUIT.", "response": "fig"},
    {"prompt": "Name a nut.", "response": "almond", "meta": {"task": "nuts"}},
]
RANKED = [{"prompt": f"question {number}", "chosen": "yes, it is", "rejected": "no"} for number in range(5)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put("good.jsonl", GOOD)
    put("ranked.jsonl", RANKED)
    Path("bad.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": 3, "response": "b"}\n{"prompt":\n')


def put(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def data(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def sha(name: str, kind: Any = Demonstration) -> str:
    return fingerprint(records_of(Source(source=name), kind, DroppedRows()))


def test_check_says_what_sound_files_hold():
    done = data("check", "good.jsonl", "ranked.jsonl")
    assert done.exit_code == 0, done.output
    assert "good.jsonl: 3 sound demonstrations, 0 with a defect" in done.output
    assert "copies: 1 rows, 1 prompts; tasks: 2" in done.output
    assert "ranked.jsonl: 5 sound rankings, 0 with a defect" in done.output


def test_check_names_defects_with_their_places_and_goes_on_to_the_next_file():
    done = data("check", "bad.jsonl", "nowhere.jsonl", "good.jsonl")
    assert done.exit_code == 2
    assert "bad.jsonl: 1 sound demonstrations, 2 with a defect" in done.output
    assert "1: 'prompt' must be text, found int. Fix or remove the row.\n      bad.jsonl:2" in done.output
    assert "1: not valid JSON: Expecting value. Fix or remove the line.\n      bad.jsonl:3:11" in done.output
    assert "there is no file nowhere.jsonl" in done.output
    assert "good.jsonl: 3 sound demonstrations" in done.output
    assert "error: 2 of 3 files have defects" in done.output


def test_check_counts_rows_that_spell_control_tokens():
    forged = [{"prompt": "Hi<|im_end|>", "response": "Hello."}, {"prompt": "Hi", "response": "[INST] Hello."}]
    put("forged.jsonl", [*GOOD, *forged])
    done = data("check", "forged.jsonl", "good.jsonl")
    assert done.exit_code == 0, done.output
    assert done.output.count("rows that spell control tokens") == 1
    assert "rows that spell control tokens: 2, the first at forged.jsonl:4; they are kept, as text" in done.output


def test_check_says_why_no_row_can_be_used():
    put("strange.jsonl", [{"a question": "a", "an answer": "b"}])
    done = data("check", "strange.jsonl")
    assert done.exit_code == 2
    for kind in ("ranking", "demonstration", "prompt"):
        assert f"as {kind}: strange.jsonl:1: " in done.output
    assert "['a question', 'an answer']" in done.output


def test_check_says_how_far_it_looked_for_a_sound_row():
    put("late.jsonl", [{"x": 1}] * 1000 + GOOD)
    done = data("check", "late.jsonl")
    assert done.exit_code == 2
    assert "no sound row among the first 1,000. If better ones follow, pass --kind." in done.output
    assert "3 sound demonstrations, 1000 with a defect" in data("check", "late.jsonl", "--kind", "demonstration").output


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("builtin:tasks", "'builtin:tasks' is made by Onebase; only files and hub ids can be read here."),
        ("builtin:taks", "'builtin:taks' is not known; built in are builtin:tasks"),
        ("empty.jsonl", "empty.jsonl: the file has no row."),
        ("folder.jsonl", "folder.jsonl is a folder"),
        ("pipe.jsonl", "pipe.jsonl is not a plain file"),
    ],
)
def test_check_says_what_is_no_file_of_rows(file: str, message: str):
    Path("empty.jsonl").touch()
    Path("folder.jsonl").mkdir()
    os.mkfifo("pipe.jsonl")
    done = data("check", file)
    assert done.exit_code == 2
    assert message in done.output
    assert "first reason" not in done.output


def test_every_whole_number_of_the_command_line_has_bounds():
    """A number beyond them would be refused by something further in, or by nothing."""
    bounds: dict[str, set[str | None]] = {}
    for file in (ROOT / "pipeline").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Subscript) or ast.unparse(node.value) != "Annotated":
                continue
            kind, *options = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            if re.search(r"\bint\b", ast.unparse(kind)):
                limits = {keyword.arg for option in options for keyword in getattr(option, "keywords", ())}
                bounds[f"{file.name}:{node.lineno}"] = limits & {"min", "max"}
    assert len(bounds) >= 8
    assert {place for place, limits in bounds.items() if limits != {"min", "max"}} == set()
    done = data("check", "good.jsonl", "--longest-line", "9" * 26)
    assert done.exit_code == 2 and "--longest-line" in done.output


@pytest.mark.parametrize(("name", "kind"), [("good.jsonl", Demonstration), ("ranked.jsonl", Ranking)])
@pytest.mark.parametrize("out", ["out.jsonl", "out.parquet"])
def test_convert_writes_what_reads_back_equal(name: str, kind: Any, out: str):
    done = data("convert", name, "--out", out)
    assert done.exit_code == 0, done.output
    assert sha(out, kind) == sha(name, kind)


def test_convert_cuts_in_one_pass_what_sources_cut_by_split():
    put("many.jsonl", [{"prompt": f"question {number}", "response": "yes"} for number in range(60)])
    done = data("convert", "many.jsonl", "--out", "cut")
    assert done.exit_code == 0, done.output
    for split in ("train", "heldout"):
        assert data("convert", "many.jsonl", "--out", f"{split}.jsonl", "--split", split).exit_code == 0
        assert Path(f"cut/{split}.jsonl").read_bytes() == Path(f"{split}.jsonl").read_bytes()
    assert sum(len(Path(f"cut/{split}.jsonl").read_text().splitlines()) for split in ("train", "heldout")) == 60


def test_convert_stops_at_a_bad_row_and_leaves_nothing():
    done = data("convert", "bad.jsonl", "--out", "out.jsonl")
    assert done.exit_code == 2
    assert "error: bad.jsonl:2: 'prompt' must be text, found int" in done.output
    assert not Path("out.jsonl").exists()
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def test_convert_counts_what_it_drops():
    done = data("convert", "bad.jsonl", "--out", "out.jsonl", "--on-bad-row", "drop")
    assert done.exit_code == 0, done.output
    assert "out.jsonl: 1 rows" in done.output
    assert "1: not valid JSON: Expecting value" in done.output
    done = data("convert", "good.jsonl", "--out", "once.jsonl", "--dedupe", "rows")
    assert "once.jsonl: 2 rows" in done.output
    assert "1: copy of an earlier row\n      good.jsonl:2" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["good.jsonl", "--out", "good.jsonl"], "the output would replace the file that is read"),
        (["good.jsonl", "--out", "out.csv"], "files of this kind are not written. Known: .jsonl, .parquet"),
        (["good.jsonl", "--out", "out", "--split", "train"], "--split=train gives one file"),
        (["good.jsonl", "--out", "out.jsonl", "--split", "test"], "a file has no split 'test'"),
        (["good.jsonl", "--out", "good.jsonl/out.jsonl"], "cannot be written"),
        (["good.jsonl", "--out", "out.jsonl", "--kind", "ranking"], "no ranking can be made of the keys"),
        (["nowhere.jsonl", "--out", "out.jsonl"], "there is no file nowhere.jsonl"),
    ],
)
def test_what_convert_refuses(arguments: list[str], message: str):
    before = Path("good.jsonl").read_bytes()
    done = data("convert", *arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert Path("good.jsonl").read_bytes() == before
    assert sorted(path.name for path in Path().iterdir()) == ["bad.jsonl", "good.jsonl", "ranked.jsonl"]


def test_card_writes_its_folder_and_prints_the_summary(tiny_base_folder: Path):
    done = data("card", "ranked.jsonl", "--out", "card", "--model", str(tiny_base_folder), "--response-tokens", "4")
    assert done.exit_code == 0, done.output
    assert "5 rankings kept of 5 rows" in done.output
    assert "longer wins: 100.0%" in done.output
    card = json.loads(Path("card/card.json").read_text())
    assert card["lengths"]["unit"] == "tokens"
    assert card["limits"]["response_tokens"] == 4
    assert Path("card/rankings.svg").is_file()


def test_card_of_files_with_different_rows_wants_a_kind():
    done = data("card", "good.jsonl", "ranked.jsonl", "--out", "card")
    assert done.exit_code == 2
    assert "the files hold different kinds of rows: demonstration, ranking. Choose one with --kind." in done.output
    assert data("card", "good.jsonl", "ranked.jsonl", "--out", "card", "--kind", "prompt").exit_code == 0


def test_card_counts_bad_rows_only_when_it_may():
    assert data("card", "bad.jsonl", "--out", "card").exit_code == 2
    assert not Path("card").exists()
    done = data("card", "bad.jsonl", "--out", "card", "--on-bad-row", "drop")
    assert done.exit_code == 0, done.output
    assert json.loads(Path("card/card.json").read_text())["rows"]["in"] == 3


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from pipeline.cli import app;"
        "assert CliRunner().invoke(app, ['data', '--help']).exit_code == 0;"
        "print([name for name in ('torch', 'datasets', 'pyarrow', 'matplotlib', 'datasketch') if name in sys.modules])"
    )
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"history": "why?", "human_ref_A": "so", "human_ref_B": "hm", "labels": 2, "score_A": 9, "score_B": 2}],
            "0 sound rankings, 1 with a defect",
        ),
        (
            [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]}],
            "0 sound demonstrations, 1 with a defect",
        ),
        (
            [
                {"prompt": "Hi", "completion": "Hello.", "label": True},
                {"prompt": "Hi", "completion": "", "label": True},
            ],
            "1 sound demonstrations, 1 with a defect",
        ),
    ],
)
def test_a_file_whose_rankings_are_all_broken_is_no_file_of_sound_prompts(
    rows: list[dict[str, Any]], message: str
) -> None:
    put("broken.jsonl", rows)
    done = data("check", "broken.jsonl")
    assert done.exit_code == 2
    assert message in done.output


def test_what_a_format_leaves_out_by_its_rule_is_no_defect():
    submission = {"id": "s", "title": "Why?", "selftext": "", "is_self": True, "subreddit": "w", "created_utc": 1}
    comment = {"link_id": "t3_s", "body": "So.", "created_utc": 2, "subreddit": "w"}
    answers = [{**comment, "id": f"c{n}", "parent_id": "t3_s", "score": n, "body": f"So {n}."} for n in (3, 9)]
    deeper = {**comment, "id": "d", "parent_id": "t1_c3", "score": 1}
    put("reddit.jsonl", [submission, *answers, deeper])
    done = data("check", "reddit.jsonl")
    assert done.exit_code == 0, done.output
    assert "1 sound rankings, 0 with a defect" in done.output
    assert "1: a comment on a comment" in done.output


def test_a_kind_that_fails_is_named_where_a_lesser_one_is_read():
    row = {"prompt": "Hi", "helpfulness": "4", "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 1}
    put("texts.jsonl", [{**row, "response": answer} for answer in ("Hello.", "Hm.")])
    done = data("check", "texts.jsonl")
    assert "2 sound demonstrations" in done.output
    assert "there is no sound ranking; the first reason: texts.jsonl:1: 'helpfulness' must be a number" in done.output


def test_check_names_the_keys_of_which_nothing_was_made():
    put("more.jsonl", [{**GOOD[0], "source": "a", "note\x1b[31m": 1}, {**GOOD[2], "source": "b"}])
    done = data("check", "more.jsonl", "good.jsonl")
    assert done.exit_code == 0, done.output
    assert "  not read: source (2 rows), note\\x1b[31m (1 row)\n" in done.output
    assert done.output.count("not read") == 1


def test_conversations_that_wait_for_an_answer_are_offered_as_prompts():
    put("asked.jsonl", [{"messages": [{"role": "user", "content": "Name a fruit."}], "ground_truth": "apple"}])
    done = data("convert", "asked.jsonl", "--out", "out.jsonl")
    assert done.exit_code == 2
    assert "must end with the assistant's message" in done.output and "pass --kind prompt" in done.output
    assert data("convert", "asked.jsonl", "--out", "out.jsonl", "--kind", "prompt").exit_code == 0


def test_rejected_replies_are_counted_and_not_written():
    put("rated.jsonl", [{**row, "is_safe": row is not GOOD[0]} for row in (GOOD[0], GOOD[2])])
    done = data("convert", "rated.jsonl", "--out", "out.jsonl")
    assert done.exit_code == 0, done.output
    assert "1: 'is_safe' says that this is not to be imitated\n      rated.jsonl:1" in done.output
    assert [json.loads(line)["response"] for line in Path("out.jsonl").read_text().splitlines()] == ["almond"]
