"""No measured number of the documents without a home, or with one that says something else."""

import importlib
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DATA = "docs/results/data"


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("claims")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of all documents and their homes."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def check(claims: ModuleType, tree: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and what was said of problems."""
    code = claims.main(["--quiet", "--root", str(tree), *arguments])
    return code, capsys.readouterr().err


def test_every_number_is_listed_with_what_gave_it(
    claims: ModuleType, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert claims.main(["--root", str(tree)]) == 0
    printed = capsys.readouterr().out
    homes = {part.splitlines()[0].split(",")[0]: part for part in printed.split("\n\n")}
    demo = homes[f"{DATA}/demo-tidy.json"]
    for words in (
        "python benchmarks/results.py recipes/demo --seeds 0 1 2",
        "seeds 2; commit 70ef806; 2 cores of an AMD EPYC",
        "**+0.21 [+0.14, +0.27]**  differences/all/0/sft over base/correctness",
        "0.42 [0.36, 0.49]  models/all/0/sft/correctness",
    ):
        assert words in demo
    # No home is kept that no document shows.
    assert {str(path.relative_to(tree)) for path in (tree / DATA).iterdir()} <= set(homes)


def test_a_home_that_is_deleted_is_missed(claims: ModuleType, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / DATA / "demo-tidy.json").unlink()
    code, printed = check(claims, tree, capsys)
    assert code == 1
    for document in ("docs/results/demo-tidy.md", "docs/results/demo.md"):
        assert re.search(rf"^{document}:\d+: its home is missing: {DATA}/demo-tidy.json$", printed, re.MULTILINE)


TIDY = "docs/results/demo-tidy.md"
TABLES = "docs/results/tables/demo-tidy.md"


@pytest.mark.parametrize(
    ("document", "before", "after", "text"),
    [
        (TIDY, "ranks 0.82, 0", "ranks 0.83, 0", "0.83, but demo-tidy.json has 0.82 [0.79, 0.84] at"),
        (TIDY, "-0.04 [-0.07, -0.01]", "-0.04 [-0.07, -0.02]", "but demo-tidy.json has -0.04 [-0.07, -0.01] at"),
        (TIDY, "0.48, 0.47 and", "0.480, 0.47 and", "0.480, but demo-tidy.json has 0.48 [0.46, 0.49] at"),
        (TIDY, "0.48, 0.47 and", "0.47 and", "0.47, but demo-tidy.json has 0.48"),
        (TIDY, "are 0.73 or more", "are more", "names rewards/2/lowest/rambling of demo-tidy.json, which is not"),
        (TABLES, "| sft | 0.42 [", "| sft | 0.43 [", "but demo-tidy.json has: | all | 0 | sft | 0.42 ["),
        (TABLES, "| seed | model |", "| seed | who |", "but demo-tidy.json has: | prompts | seed | model |"),
        (TABLES, "<!-- claims table demo-tidy/models all -->", "", "0.21 [0.16, 0.27] is a measured number without"),
        (TABLES, "table demo-tidy/models all", "table demo-tidy/mine", "it has no table 'mine', only ["),
        (TIDY, "demo-tidy/rewards/*/acc", "demo-tidy/rewards/9/acc", "there is nothing at rewards/9/accuracy"),
        ("docs/results/frontier.md", "| sft | 0.00", "| sft | 0.01", "but frontier.json has: | sft | 0.00 ["),
        ("docs/results/frontier.md", "| sft | 0.00", "It is 7.5.\n| sft | 0.00", "7.5 is a measured number without"),
        ("docs/performance.md", "| asleep at once |", "| 9 spins | 1.0 |\n| asleep at once |", "but products.json has"),
        ("docs/reliability.md", "(650.1 to", "(650.2 to", "650.2, but reliability.json has 650.1 at"),
        (f"{DATA}/demo-tidy.json", '"mean": 0.42', '"mean": 0.44', "demo-tidy.json has: | all | 0 | sft | 0.44 [0.36"),
        (f"{DATA}/demo-tidy.json", '"commit": "70ef806"', '"commit": "70ef807"', "tidy.json has: | 2 | 70ef807 |"),
        (f"{DATA}/demo-tidy.json", '"seeds": [2], ', "", f"its home {DATA}/demo-tidy.json cannot be read"),
        (f"{DATA}/frontier.json", '"ppo-1h": "ppo"', '"ppo-1h": "dpo"', "frontier.svg was not drawn from what"),
    ],
)  # fmt: skip
def test_what_says_something_else_than_its_home_is_seen(
    claims: ModuleType,
    tree: Path,
    capsys: pytest.CaptureFixture[str],
    document: str,
    before: str,
    after: str,
    text: str,
) -> None:
    change(tree / document, before, after)
    code, problems = check(claims, tree, capsys)
    assert code == 1
    assert text in problems


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("It gains 0.5 now.", "0.5"),
        ("Form -1.25, before 3.", "-1.25"),
        ("**0.71** of them", "0.71"),
        ("Correct: 7 [5, 9]", "7 [5, 9]"),
        ("It is 12 % faster.", "12"),
        ("3 times as fast", "3"),
        ("2x as fast", "2"),
        ("in 40 s", "40"),
        ("in 1,040 seconds", "1,040"),
        ("in 5 minutes", "5"),
        ("45, 41 and 38 minutes", "45"),
        ("4 to 16\nms", "4"),
        ("with 3 GiB", "3"),
        ("with 3MB", "3"),
        ("- a list\n- with 0.5", "0.5"),
        ("| a |\n|---|\n| 0.5 |", "0.5"),
        ("`0.5` and 0.6", "0.6"),
        ("## A head of 0.5", "0.5"),
        ("ratio 1:2.5", "2.5"),
    ],
)
def test_a_new_number_needs_a_home(
    claims: ModuleType, tree: Path, capsys: pytest.CaptureFixture[str], text: str, first: str
) -> None:
    documents = [
        "README.md",
        "docs/performance.md",
        "docs/reliability.md",
        "docs/results/demo.md",
        "docs/results/new.md",
    ]
    for document in documents:
        with (tree / document).open("a") as stream:
            stream.write(f"\n{text}\n")
    code, problems = check(claims, tree, capsys)
    assert code == 1
    assert [line.partition(":")[0] for line in problems.splitlines()] == documents
    assert problems.count(f": {first} is a measured number without a home\n") == len(documents)


@pytest.mark.parametrize(
    "text",
    [
        "KL weight `0.2`, rate `2e-4` or 2e-4",
        "mean and 95 % bootstrap interval",
        "Python 3.11, trl 1.12's trainer, Transformers 5.23, version 1.2.3; SmolLM2-135M, Qwen2.5-0.5B, Apache-2.0",
        "208 prompts, seeds 0 and 1, 24 GB, 8,192 episodes, K = 4",
        "[arXiv](https://arxiv.org/abs/2306.01693) and https://example.org/1.5",
        "    python train.py rate=0.5\n\n```\n0.5\n\n0.6\n```",
    ],
)
def test_settings_versions_and_code_need_none(
    claims: ModuleType, tree: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    with (tree / "README.md").open("a") as stream:
        stream.write(f"\n{text}\n")
    assert check(claims, tree, capsys) == (0, "")


def test_writing_makes_tables_and_pictures_and_leaves_sentences_to_people(
    claims: ModuleType, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(tree / DATA / "demo-tidy.json", '"form": {"mean": 0.35', '"form": {"mean": 0.36')
    change(tree / DATA / "demo-tidy.json", '"wrong": {"mean": 0.65', '"wrong": {"mean": 0.66')
    change(tree / DATA / "frontier.json", '"ppo-1h": "ppo"', '"ppo-1h": "dpo"')
    readme = tree / "README.md"
    with readme.open("a") as stream:
        stream.write("\n<!-- claims table demo-tidy/rewards -->\n")
    code, problems = check(claims, tree, capsys, "--write")
    assert code == 1
    assert [line.split(":")[0] for line in problems.splitlines()] == [TIDY]
    assert "0.65, but demo-tidy.json has 0.66 [0.60, 0.70] at rewards/0/lowest/wrong" in problems
    assert "| base | 0.21 [0.16, 0.27] | 0.36 [0.31, 0.39] |" in (tree / TABLES).read_text()
    assert "| 0 | 0.82 [0.79, 0.84] | wrong 0.66 [0.60, 0.70], wrong and untidy" in readme.read_text()
    change(tree / TIDY, "hardest: 0.65", "hardest: 0.66")
    assert check(claims, tree, capsys) == (0, "")


@pytest.mark.parametrize(
    ("text", "held", "same"),
    [
        ("0.21", "0.21", True),
        ("0.21", "0.22", False),
        ("2.3", "2.31", True),
        ("2.3", "2.36", False),
        ("2.31", "2.3", False),  # more than is known
        ("0.2", "0.2134567", True),
        ("+0.04", "0.04", True),
        ("0.04", "-0.04", False),
        ("-0.00", "-0.001", True),
        ("1,040", "1040", True),
        ("18.0", "18", False),
    ],
)
def test_a_text_may_round_and_not_add_digits(claims: ModuleType, text: str, held: str, same: bool) -> None:
    (match,) = claims.measured(f"{text} s")
    home = claims.Home.parse('{"command": [], "runs": [], "values": {"a": %s}}' % held)  # noqa: UP031 - braces
    assert claims.agrees(match, home.values["a"]) == same
