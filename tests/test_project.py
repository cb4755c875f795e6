"""What the project promises about itself: what it packs, what it checks, what it never does."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"onebase", "data", "evaluation", "sft", "reward", "ppo", "dpo", "pipeline"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def ignores() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ignores", ROOT / "tests" / "harness" / "ignores.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tracked() -> list[Path]:
    """Every file that git tracks."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def code_of_packages(ignores: ModuleType) -> list[Path]:
    return [path for path in ignores.sources() if path.relative_to(ROOT).parts[0] in PACKAGES]


def test_the_wheel_holds_our_packages_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        names = {name.split("/")[0] for name in content.namelist()}
    metadata = {name for name in names if name.endswith(".dist-info")}
    assert len(metadata) == 1
    assert names - metadata == PACKAGES


def test_every_ignore_names_its_rule_and_its_reason(ignores: ModuleType) -> None:
    ignored = ignores.find()
    print(f"{len(ignored)} ignores")
    assert [place for place, _, whole in ignored if not whole] == []


# Each in two pieces, so that no checker takes the examples for ignores of this file.
@pytest.mark.parametrize(
    ("comment", "whole"),
    [
        ("# no" + "qa: E501 - a table", True),
        ("# no" + "qa: E501, F401 - a table", True),
        ("# type: " + "ignore[arg-type]  # the stub is wrong", True),
        ("# pyright: " + "ignore[reportCallIssue] - the stub is wrong", True),
        ("# no" + "qa", False),
        ("# NO" + "QA: E501", False),
        ("# type: " + "ignore  # no rule", False),
        ("# type: " + "ignore[arg-type]", False),
        ("# pyright: " + "ignore[reportCallIssue] -", False),
        ("# no" + "qa: E501 - a table  # type: " + "ignore", False),
        ("# type: " + "ignore[arg-type]  # no" + "qa: E501", False),
        ("# ruff: " + "no" + "qa", False),
        ("# pyright: " + "basic", False),
        ("# pyright: " + "reportCallIssue=false", False),
    ],
)
def test_an_ignore_is_whole_with_its_rule_and_a_reason_of_its_own(
    ignores: ModuleType, comment: str, whole: bool
) -> None:
    assert ignores.MARK.search(comment)
    assert ignores.is_whole(comment) == whole


def test_pyright_excludes_no_file_of_ours(ignores: ModuleType) -> None:
    # A pyrightconfig.json would be read in place of pyproject.toml.
    assert not (ROOT / "pyrightconfig.json").exists()
    settings = PROJECT["tool"]["pyright"]
    assert "exclude" not in settings and "ignore" not in settings
    included = set(settings["include"])
    assert {path.relative_to(ROOT).parts[0] for path in ignores.sources()} <= included


def test_everything_we_depend_on_is_pinned_within_its_bounds() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if "==" in line:
            name, version = line.split("==")
            pins[name.strip().lower().replace("_", "-")] = Version(version.split("#")[0].strip())
    listed = [*PROJECT["project"]["dependencies"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        listed += extra
    for requirement in map(Requirement, listed):
        name = requirement.name.lower().replace("_", "-")
        assert name in pins, f"{name} is not in constraints.txt"
        assert pins[name] in requirement.specifier, f"{name}: {pins[name]} is not within {requirement.specifier}"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imports(code: str) -> Iterator[str]:
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def undeclared(folders: Iterable[str], declared: set[str]) -> dict[str, set[str]]:
    """Installed packages that files in these folders import and pyproject.toml does not name, with the files."""
    installed, missing = metadata.packages_distributions(), dict[str, set[str]]()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for module in imports(path.read_text()):
            top = module.partition(".")[0]
            # Several packages may share a name, as all of ruamel's do; neighbours of a script are installed nowhere.
            owners = {normal(owner) for owner in installed.get(top, ())} - {"onebase"}
            if owners and not owners & declared:
                missing.setdefault(top, set()).add(str(path.relative_to(ROOT)))
    return missing


def test_everything_that_is_imported_is_declared() -> None:
    """Here a package may be installed because another needs it; there it may not."""
    project = PROJECT["project"]
    needed = {normal(Requirement(line).name) for line in project["dependencies"]}
    extras = {normal(Requirement(line).name) for lines in project["optional-dependencies"].values() for line in lines}
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert undeclared(packages, needed) == {}
    assert undeclared(("tests", "benchmarks"), needed | extras) == {}


UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
SAFE_YAML = {"safe_load", "safe_load_all", "safe_dump", "safe_dump_all", "SafeLoader", "CSafeLoader", "SafeDumper"}
YAML_READERS = {"load", "load_all", "compose", "compose_all"}


def dangers(code: str) -> Iterator[str]:
    """What in this code would run what a file says, with its line."""
    nodes = list(ast.walk(ast.parse(code)))
    safe = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    safe |= {n.name for n in nodes if isinstance(n, ast.ClassDef) and {ast.unparse(base) for base in n.bases} & safe}
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (
                f"{node.lineno}: {alias.name}" for alias in node.names if alias.name.split(".")[0] in UNPICKLERS
            )
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")[0]
            unsafe_yaml = module == "yaml" and not {alias.name for alias in node.names} <= SAFE_YAML
            if module in UNPICKLERS or unsafe_yaml or (module == "torch" and "load" in {n.name for n in node.names}):
                yield f"{node.lineno}: from {module}"
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name == "torch.load" or name.endswith((".unsafe_load", ".full_load", ".read_pickle")):
                yield f"{node.lineno}: {name}"
            if name in {"yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader"}:
                yield f"{node.lineno}: {name}"
        elif isinstance(node, ast.Call):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg is not None}
            for switch in ("trust_remote_code", "allow_pickle"):
                if keywords.get(switch, "False") != "False":
                    yield f"{node.lineno}: {switch}"
            if ast.unparse(node.func) in {f"yaml.{reader}" for reader in YAML_READERS}:
                loader = keywords.get("Loader") or (ast.unparse(node.args[1]) if len(node.args) > 1 else "none")
                if loader not in safe:
                    yield f"{node.lineno}: yaml with Loader {loader}"
            if ast.unparse(node.func).endswith("YAML") and keywords.get("typ") not in ("'safe'", "'rt'"):
                yield f"{node.lineno}: YAML of type {keywords.get('typ')}"
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                switched = isinstance(value, ast.Constant) and value.value is True
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code" and switched:
                    yield f"{node.lineno}: trust_remote_code"


def test_no_package_runs_what_a_file_says(ignores: ModuleType) -> None:
    """No pickle, no code of a model's publisher, no YAML tag that makes an object."""
    uses = {
        str(path.relative_to(ROOT)): here
        for path in code_of_packages(ignores)
        if (here := [*dangers(path.read_text())])
    }
    assert uses == {}


@pytest.mark.parametrize(
    ("code", "dangerous"),
    [
        ("import pickle", True),
        ("import os, dill", True),
        ("from pickle import loads", True),
        ("import torch; torch.load('a')", True),
        ("from torch import load", True),
        ("f(trust_remote_code=True)", True),
        ("f(trust_remote_code=answer)", True),
        ("f(trust_remote_code=False)", False),
        ("f(**{'trust_remote_code': True})", True),
        ("REFUSED = {'trust_remote_code': 'a reason'}", False),
        ("numpy.load('a', allow_pickle=True)", True),
        ("yaml.load(text)", True),
        ("yaml.load(text, yaml.Loader)", True),
        ("yaml.load(text, Loader=yaml.FullLoader)", True),
        ("yaml.unsafe_load(text)", True),
        ("from yaml import load", True),
        ("yaml.safe_load(text)", False),
        ("yaml.load(text, Loader=yaml.SafeLoader)", False),
        ("class Own(yaml.SafeLoader): pass\nyaml.load(text, Loader=Own)", False),
        ("class Own(yaml.Dumper): pass\nyaml.load(text, Loader=Own)", True),
        ("YAML(typ='unsafe').load(text)", True),
        ("YAML(typ='safe').load(text)", False),
    ],
)
def test_what_would_run_what_a_file_says_is_seen(code: str, dangerous: bool) -> None:
    assert bool([*dangers(code)]) == dangerous


ASKING = {"input", "getpass", "typer.confirm", "typer.prompt", "click.confirm", "click.prompt", "getpass.getpass"}
LOGINS = {"wandb.login", "huggingface_hub.login", "login", "notebook_login", "interpreter_login"}


def questions(code: str) -> Iterator[str]:
    """What in this code would ask somebody, or let a library ask, with its line.

    Where `trust_remote_code` is left unset, transformers asks whether a publisher's code may run.
    """
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.stdin" and isinstance(node.ctx, ast.Load):
            yield f"{node.lineno}: sys.stdin"
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in ASKING | LOGINS:
            yield f"{node.lineno}: {name}"
        owner, _, method = name.rpartition(".")
        settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        automatic = owner.rpartition(".")[2].startswith("Auto") and method in {"from_pretrained", "from_config"}
        if automatic and settings.get("trust_remote_code") != "False":
            yield f"{node.lineno}: {name} without trust_remote_code=False"


def test_nobody_is_asked_anything(ignores: ModuleType) -> None:
    """In our code, and in what measures and tests it: no answer on standard input lets a publisher's code run."""
    asking = {
        str(path.relative_to(ROOT)): here for path in ignores.sources() if (here := [*questions(path.read_text())])
    }
    # The places that touch standard input. The command puts nothing in its place, and itself back.
    assert asking.pop("onebase/cli/command.py") and asking.pop("tests/onebase/model/test_model_folder.py")
    assert asking.pop("tests/harness/forks.py")  # it reads its own lists of arguments there
    assert asking == {}


@pytest.mark.parametrize(
    ("code", "asks"),
    [
        ("AutoConfig.from_pretrained(folder)", True),
        ("transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=half)", True),
        ("AutoModelForCausalLM.from_config(config)", True),
        ("AutoTokenizer.from_pretrained(folder, trust_remote_code=None)", True),
        ("AutoTokenizer.from_pretrained(folder, **settings)", True),
        ("AutoTokenizer.from_pretrained(folder, trust_remote_code=False)", False),
        ("PeftModel.from_pretrained(trunk, folder)", False),
        ("if input('Go on? ') == 'y': pass", True),
        ("typer.confirm('Go on?')", True),
        ("getpass.getpass()", True),
        ("wandb.login()", True),
        ("sys.stdin.readline()", True),
        ("read_input(row)", False),
    ],
)
def test_what_would_ask_is_seen(code: str, asks: bool) -> None:
    assert bool([*questions(code)]) == asks


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "common", "helpers", "misc"}
    drawers_of_files = [
        path for path in tracked() if drawers & {part.split(".")[0] for part in path.relative_to(ROOT).parts}
    ]
    assert drawers_of_files == []


def test_no_file_names_the_machine_it_was_written_on() -> None:
    # Put together here, so that this file does not name them either.
    places = [b"/" + b"work/", b"/" + b"root/", b"/" + b"opt/pypi", b"file:" + b"///"]
    named = {path: place for path in tracked() for place in places if place in path.read_bytes()}
    assert named == {}


def test_help_of_every_command_is_there_and_says_what_it_does() -> None:
    from typer.testing import CliRunner

    from pipeline.cli import app

    for command in ("run", "sft", "reward", "ppo", "dpo", "compare", "verify", "doctor", "score", "best-of-n"):
        printed = CliRunner().invoke(app, [command, "--help"])
        assert printed.exit_code == 0
        assert len(printed.output.split()) > 20


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys; from pipeline.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'trl', 'datasets', 'wandb') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "[]"
