"""Long sentences and banned words are found in documents, docstrings and errors; the documents have none of them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def prose() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prose", ROOT / "tests" / "harness" / "prose.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prose"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_documents_are_plain(prose: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert prose.main(["--only", "docs"]) == 0, capsys.readouterr().out


LONG = "Word" + " word" * 40 + "."
CODE = (
    '"""A module."""\n\n\ndef check(row):\n    """A check.\n\n    {docstring}\n    """\n    raise ValueError({error})\n'
)


@pytest.mark.parametrize("bad", [LONG, "The run goes on.", "A model whose head is new.", "It waits, for it is late."])
@pytest.mark.parametrize(
    ("name", "form", "line"),
    [
        ("README.md", "# Title\n\nA good sentence.\n{bad}\n", 4),
        ("docs/one.md", "- an item\n- {bad}\n", 2),
        ("docs/results/one.md", "<!-- claims\na -->\n\n```\ncode\n```\n\n{bad}\n", 8),
        ("data/one.py", CODE.format(docstring="{bad}", error='"Fix the row."'), 7),
        ("data/one.py", CODE.format(docstring="Good.", error='f"{{row}}: a row. " + "{bad}"'), 9),
        ("data/one.py", CODE.format(docstring="Good.", error='"a row" if row else "{bad}"'), 9),
        ("data/one.py", 'KEY = 1\n"""{bad}"""\n', 2),
        ("data/one.py", "say('{bad}')\n", 1),
        ("data/one.py", "Option(help='{bad}')\n", 1),
    ],
)
def test_a_bad_sentence_is_found_at_its_line(
    prose: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: str, name: str, form: str, line: int
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(form.replace("{bad}", bad).replace("{{", "{").replace("}}", "}"))
    assert prose.main(["--root", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert f"{name}:{line}: " in printed and ("41 words" if bad == LONG else "write ") in printed


@pytest.mark.parametrize(
    "good",
    [
        f"    {LONG}",
        f"```\n{LONG}\n```",
        f"# {LONG}",
        f"| a | {LONG} |",
        f"`{LONG}` is code.",
        f"<!-- claims {LONG} -->",
        "[a link](runs/whose/goes on.md) here.".replace(" on", "-on"),
        "The switch goes on to the next step.",
        "There are none.",
        "It stands for a key.",
        "The mean of 0.5 [0.4, 0.6] is `whose`.",
        "| before | after |\n|---|---|\n| A model whose head is new. | A model with a new head. |",
    ],
)
def test_code_tables_and_good_words_are_let_through(prose: ModuleType, tmp_path: Path, good: str) -> None:
    (tmp_path / "README.md").write_text(f"A text.\n\n{good}\n")
    assert prose.main(["--root", str(tmp_path)]) == 0


def test_a_banned_word_in_a_table_is_found(prose: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("| key | meaning |\n|---|---|\n| `a` | the likeliest token |\n")
    assert prose.main(["--root", str(tmp_path)]) == 1


def test_the_mean_is_of_a_document_and_of_a_package(
    prose: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long, short = " ".join(["Word"] * 20) + ".", "Short."
    (tmp_path / "README.md").write_text(f"{long} {short}")
    (tmp_path / "SECURITY.md").write_text(f"{long} {long}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "one.py").write_text(f'"""{long}"""\n')
    (tmp_path / "data" / "two.py").write_text(f'"""{short}"""\n')
    assert prose.main(["--root", str(tmp_path), "--means"]) == 1
    printed = capsys.readouterr().out
    assert "README.md: a mean sentence of 10.5 words, of 2 sentences" in printed
    assert "SECURITY.md: a mean sentence of 20.0 words, of 2 sentences" in printed
    assert "data: docstrings: a mean sentence of 10.5 words" in printed
    assert printed.endswith("6 sentences, 1 problems; at most 17 words on average and 40 in one sentence\n")


@pytest.mark.parametrize("part", ["docs", "docstrings", "errors"])
def test_a_part_is_read_alone(prose: ModuleType, tmp_path: Path, part: str) -> None:
    texts = {"docs": "Good.", "docstrings": "Good.", "errors": "A good error."} | {part: "The run goes on."}
    (tmp_path / "README.md").write_text(texts["docs"])
    (tmp_path / "data").mkdir()
    code = CODE.format(docstring=texts["docstrings"], error=repr(texts["errors"]))
    (tmp_path / "data" / "one.py").write_text(code)
    codes = {name: prose.main(["--root", str(tmp_path), "--only", name]) for name in texts}
    assert codes == {name: int(name == part) for name in texts}
