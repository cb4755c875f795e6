"""README's commands are run, as far as a machine without a network and a GPU can; its links and folders exist.

Runs of stages are planned, which reads their recipes. Other commands run for real, or with --help if they would train
or reach a server.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import dropwhile
from pathlib import Path

import pytest

from pipeline import chain, many_seeds

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
ROWS = {
    "demonstrations.jsonl": '{"prompt": "Name a river.", "response": "The Nile."}\n',
    "rankings.jsonl": '{"prompt": "Name a river.", "responses": ["The Nile.", "Lima.", "No."], "tiers": [0, 1, 1]}\n',
}


def commands(page: str) -> list[list[str]]:
    """The words of each command in the blocks of code of a page, comments left out."""
    lines = re.findall(r"^    (?! )(.+)$", page.replace("\\\n", ""), re.MULTILINE)
    split = [shlex.split(line, comments=True) for line in lines]
    # Settings of the environment before a command, such as OMP_NUM_THREADS=1, do not change what it is.
    return [list(dropwhile(re.compile("[A-Z_]+=").match, words)) for words in split if words]


COMMANDS = commands(README)


def run(*command: str, cwd: Path, **environment: str) -> str:
    """What a command that ends well writes."""
    paths = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **paths, **environment})
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr[-3000:]}"
    return done.stdout


def plan(words: list[str]) -> None:
    """`onebase run FOLDER [key=value ...] [--seeds ...]`: all recipes of the run are read with their overrides."""
    folder, *rest = [word for word in words if word != "--seeds"]
    seeds = [int(word) for word in rest if word.isdecimal()]
    others = [word for word in rest if not word.isdecimal()]
    assert many_seeds.split([*others, *map(str, seeds[1:])], seeds[:1]) == (seeds, others)
    chain.plan(Path(folder), others)


def test_readme_has_the_commands_that_are_run_here() -> None:
    assert [" ".join(words[:2]) for words in COMMANDS] == [
        *("make demo", "make test"),
        *("onebase run", "python benchmarks/demo_rivals.py"),
        *("onebase run", "onebase doctor"),
        *("cp -r", "onebase data", "onebase run", "onebase run"),
        *("wandb login", "wandb sync", "onebase ppo"),
    ]


def test_every_command_of_readme_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    for name, row in ROWS.items():
        (tmp_path / name).write_text(row)
    monkeypatch.chdir(tmp_path)
    for words in COMMANDS:
        match words:
            case ["make", *targets]:
                run("make", "--dry-run", *targets, cwd=ROOT)
            case ["onebase", "run", *rest]:
                plan(rest)
            case ["onebase", "sft" | "reward" | "ppo" | "dpo", *_]:
                printed = run(sys.executable, "-m", "pipeline", *words[1:], "--print-config", cwd=tmp_path)
                assert "base:" in printed
            case ["onebase", *rest]:
                run(sys.executable, "-m", "pipeline", *rest, cwd=tmp_path, WANDB_MODE="offline")
            case ["python", script, *options]:
                usage = run(sys.executable, str(ROOT / script), "--help", cwd=tmp_path)
                assert all(option in usage for option in options if option.startswith("--"))
            case ["cp", *_]:
                run(*words, cwd=tmp_path)
            case ["wandb", command, *_]:
                run("wandb", command, "--help", cwd=tmp_path)
            case _:
                pytest.fail(f"no test runs {words}")


def test_the_rows_of_readme_are_those_that_are_checked() -> None:
    for row in ROWS.values():
        keys = ", ".join(re.findall(r'("\w+"): ', row))
        forms = [", ".join(re.findall(r'("\w+"): ', form)) for form in re.findall(r"`(\{.+?\})`", README)]
        assert keys in forms


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_exists(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    missing = [
        target for target in targets if "://" not in target and not (page.parent / target.partition("#")[0]).exists()
    ]
    assert missing == []
    for target in targets:
        linked, _, anchor = target.partition("#")
        if anchor and "://" not in target:
            titles = re.findall(
                r"^#+ (.+)$", (page.parent / linked if linked else page).read_text("utf-8"), re.MULTILINE
            )
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_contributing_shows_the_folders_that_are_there() -> None:
    tree = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("## Where things are\n\n")[1].split("\n\n")[0]
    top, shown = "", set[str]()
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        names = re.findall(r"\b(\w+)/", line.partition("  (")[0])
        top = names[0] if indent == 4 else top
        shown |= {names[0]} if indent == 4 else {f"{top}/{name}" for name in names}
    packages = {path.parent for path in ROOT.glob("*/*/__init__.py")} | {
        path.parent for path in ROOT.glob("*/__init__.py")
    }
    assert {str(path.relative_to(ROOT)) for path in packages} <= shown
    assert all((ROOT / name).is_dir() for name in shown)


@pytest.mark.slow
def test_pip_installs_from_a_repository_into_an_empty_environment(tmp_path: Path) -> None:
    """`pip install git+URL`, without a network: the packages that it needs are those of this environment."""
    assert "pip install git+URL" in README
    run("git", "clone", "--quiet", "--bare", str(ROOT), str(tmp_path / "onebase.git"), cwd=tmp_path)
    run(sys.executable, "-m", "venv", str(tmp_path / "empty"), cwd=tmp_path)
    python = str(tmp_path / "empty" / "bin" / "python")
    known = str(Path(pytest.__file__).parents[1])  # site-packages of this environment, without its editable install
    url = f"git+file://{tmp_path / 'onebase.git'}"
    install = shlex.split("-m pip install --quiet --no-deps --no-build-isolation")
    run(python, *install, url, cwd=tmp_path, PYTHONPATH=known)
    place = run(python, "-c", "import onebase; print(onebase.__file__)", cwd=tmp_path, PYTHONPATH=known)
    assert Path(place.strip()).is_relative_to(tmp_path / "empty")
    usage = run(str(tmp_path / "empty" / "bin" / "onebase"), "--help", cwd=tmp_path, PYTHONPATH=known)
    assert "onebase run recipes/demo" in usage
