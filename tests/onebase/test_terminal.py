"""What comes from outside is shown on the terminal and never obeyed."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from onebase import terminal
from onebase.cli import command, parser
from onebase.recipe import reader, sections

ROOT = Path(__file__).parents[2]
PACKAGES = ("onebase", "data", "evaluation", "sft", "reward", "ppo", "dpo", "pipeline")
HOSTILE = {
    "escape": "\x1b[2J",
    "bell": "\x07",
    "carriage return": "all is well\rerror",
    "C1": "\x9b31m",
    "bidi": "\u202egnp.exe\u202c\u2066x\u2069",
    "line separator": "a\u2028b",
    "surrogate": "\ud800",
    "delete": "\x7f",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_control_characters_are_written_as_their_codes(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say(f"before {text} after")
    terminal.show(f"before {text} after")
    terminal.console().print(f"before {text} after", markup=False)
    for printed in capsys.readouterr():
        assert printed.isprintable() or printed.replace("\n", "").isprintable()
        assert "before" in printed and "after" in printed and "\\" in printed


@pytest.mark.parametrize("text", ["plain", "tab\tand\nline", "Grüße 你好 🙂", "a \\x1b that is spelled out"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert terminal.printable(text) == text


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_json_is_read_back_the_same(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_json(json.dumps({"prompt": text}, ensure_ascii=False))
    printed = capsys.readouterr().out
    assert printed.rstrip("\n").isprintable()
    assert json.loads(printed) == {"prompt": text}


MARKUP = (
    "[red]",
    "[/red]",
    "[bold]x[/bold]",
    "[link=http://evil]here[/link]",
    "a [/] b",
    ":x: :pile_of_poo:",
    "\\[red]",
)


@pytest.mark.parametrize("text", MARKUP)
def test_markup_in_a_text_is_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table(f"heading {text}", title=f"title {text}", caption=f"caption {text}")
    table.add_row(f"cell {text}")
    screen = terminal.console()
    screen.print(table)
    screen.print(f"line {text}")
    printed = capsys.readouterr().out
    for place in ("heading", "title", "caption", "cell", "line"):
        assert f"{place} {text}" in printed


@pytest.mark.parametrize("text", MARKUP)
def test_a_bar_shows_the_name_of_a_file_as_it_is(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from onebase.tracking.progress import track

    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    assert list(track([1, 2], total=2, description=text)) == [1, 2]
    assert text in capsys.readouterr().err
    assert list(track([1, 2], total=None, description=text)) == [1, 2]
    capsys.readouterr()


def test_bars_take_no_markup() -> None:
    """A `/` in brackets, in the name of a file, would end the command with an error of rich's."""
    columns = [
        (path, node)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "TextColumn"
    ]
    assert columns
    assert all("markup" in [keyword.arg for keyword in node.keywords] for _, node in columns)


BAD_LINES = [
    ["ppo", "recipe.yaml", "--{}"],
    ["ppo", "--{}", "recipe.yaml"],
    ["{}"],
    ["verify"],
    ["doctor", "{}"],
    ["best-of-n", "a", "b", "c", "--n={}"],
    ["data", "check", "x.jsonl", "--kind={}"],
    ["data", "{}"],
    ["ppo", "--restart={}", "recipe.yaml"],
]


@pytest.mark.parametrize("line", BAD_LINES, ids=" ".join)
@pytest.mark.parametrize("text", [HOSTILE["escape"], HOSTILE["bidi"], HOSTILE["C1"]], ids=ascii)
def test_a_command_line_that_is_wrong_is_shown_and_not_obeyed(
    line: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.cli import app

    with pytest.raises(SystemExit) as end:
        app([part.format(text) for part in line], prog_name="onebase")
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert printed.replace("\n", "").isprintable()
    assert "Traceback" not in printed


@pytest.mark.parametrize("text", [HOSTILE["escape"], HOSTILE["bidi"], HOSTILE["C1"]], ids=ascii)
def test_a_command_line_of_a_stage_alone_is_shown_and_not_obeyed(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from sft.__main__ import READS, WRITES, load

    assert parser.main("sft", load, READS, WRITES, ["recipe.yaml", f"--{text}"]) == 2
    printed = capsys.readouterr().err
    assert printed.replace("\n", "").isprintable()
    assert "No such option" in printed and terminal.printable(text) in printed


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_recipe_that_is_printed_is_read_back(text: str, tmp_path: Path) -> None:
    class Names(sections.Section):
        names: dict[str, str]

    key = "lone" if text == HOSTILE["surrogate"] else text  # pydantic does not write that one as a key
    values = {key: "key", "value": text, "long": f"{text} word " * 30, "lines": f"one\n{text}\ntwo", "plain": "Grüße"}
    printed = reader.dump(Names(names=values))
    assert printed.replace("\n", "").isprintable()
    assert "Grüße" in printed
    (tmp_path / "recipe.yaml").write_text(printed, encoding="utf-8")
    assert reader.read(tmp_path / "recipe.yaml", Names).names == values


def test_a_traceback_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise ZeroDivisionError("".join(HOSTILE.values()))

    assert command.guarded(work) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.replace("\n", "").isprintable()


def writers(path: Path) -> list[str]:
    """Places that write to the terminal by themselves."""
    places = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Name(id="print" | "Console" | "input")):
                places.append(f"{path.relative_to(ROOT)}:{node.lineno}")
            case ast.Call(func=ast.Attribute(attr="print_exc" | "echo" | "secho")):
                places.append(f"{path.relative_to(ROOT)}:{node.lineno}")
            case ast.Call(func=ast.Attribute(attr="write", value=ast.Attribute(attr="stderr" | "stdout"))):
                places.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return places


def test_one_module_writes_to_the_terminal() -> None:
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(sources) > 100
    elsewhere = [place for path in sources if path.name != "terminal.py" for place in writers(path)]
    assert elsewhere == []


COMMAND = """
import sys
from onebase.cli.command import guarded
from onebase.terminal import console, say, show, show_json

def work():
    for number in range(20_000):
        if sys.argv[1] == "both":
            say(f"line {number}")
        WAY(str(number))
    if sys.argv[1] == "both":
        open(sys.argv[2], "w").close()

sys.exit(guarded(work))
"""
WAYS = ["show", "show_json", "console().print", "say"]


BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
"""As users have it: what is left in a buffer is written again at Python's exit."""


def started(way: str, *arguments: str, stdout: int | IO[str], stderr: int | IO[str]) -> subprocess.Popen[str]:
    code = COMMAND.replace("WAY", way)
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=stdout, stderr=stderr, text=True, env=BUFFERED
    )


@pytest.mark.parametrize("way", WAYS[:3])
def test_a_reader_that_ends_early_ends_the_command_without_a_word(way: str) -> None:
    with started(way, "out", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline() == "0\n"
        child.stdout.close()  # as `head -1` does
        assert child.stderr.read() == ""
    assert child.returncode == 128 + 13


def test_a_log_without_a_reader_does_not_end_the_work(tmp_path: Path) -> None:
    with started("say", "both", str(tmp_path / "done"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        assert child.stderr.readline() == "line 0\n"
        child.stderr.close()
    assert child.returncode == 0
    assert (tmp_path / "done").exists()


def test_a_log_on_a_full_disk_does_not_end_the_work(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        child = started("say", "both", str(tmp_path / "done"), stdout=subprocess.DEVNULL, stderr=full)
    assert child.wait() == 0
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("way", WAYS[:2])
def test_results_that_find_no_room_are_an_error(way: str) -> None:
    with open("/dev/full", "w") as full, started(way, "out", stdout=full, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        assert child.stderr.read() == "error: stdout: No space left on device. Make room.\n"
    assert child.returncode == 1


def test_what_a_library_leaves_in_the_buffer_of_a_full_disk_changes_neither_exit_code_nor_words() -> None:
    code = (
        "import sys\nfrom onebase.cli.command import guarded\nsys.exit(guarded(lambda: print('a library of its own')))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=-1, text=True, env=BUFFERED)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("text", ["[/b]", "[red]a[/red]", "[link=https://example.org]a[/link]", ":warning: [1]"])
def test_brackets_and_colons_in_a_text_are_no_markup(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table(text, title=text)
    table.add_row(text)
    screen = terminal.console()
    screen.print(text)
    screen.print(table)
    assert capsys.readouterr().out.count(text) == 4
