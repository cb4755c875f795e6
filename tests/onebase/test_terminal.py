"""What comes from outside is shown on the terminal and never obeyed."""

import ast
import json
from pathlib import Path

import pytest

from onebase import terminal

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
