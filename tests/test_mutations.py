"""The list of faults fits the code it is about: otherwise `make mutants` would find out minutes later."""

import ast
import contextlib
import functools
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def load_runner() -> ModuleType:
    """tests/harness/mutants.py by its path: tests are no package."""
    spec = importlib.util.spec_from_file_location("mutants", Path(__file__).parent / "harness" / "mutants.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


runner = load_runner()
MUTATIONS = runner.read_mutations()


def try_it(folder: Path, mutation: Any) -> Any:
    with contextlib.closing(runner.Forks(folder, runner.environment_of(folder), libraries=())) as forks:
        return runner.try_mutation(folder, forks, mutation)


@functools.cache
def defined_tests(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def wrong_with(mutation: Any) -> str | None:
    """Why a fault could not be put in, or would show nothing."""
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    if source.count(mutation.find) != 1:
        return f"its text occurs {source.count(mutation.find)} times"
    changed = source.replace(mutation.find, mutation.replace)
    if changed == source:
        return "it changes nothing"
    try:
        ast.parse(changed)
    except SyntaxError as error:  # would fail every test, and show nothing
        return f"not Python any more: {error}"
    for test in mutation.tests:
        file, _, name = test.partition("::")
        tests = defined_tests(ROOT / file)
        if not tests or (name and name.partition("[")[0] not in tests):
            return f"there is no test {test}"
    return None if mutation.tests else "it names no tests"


def test_every_fault_has_one_place_and_tests_that_exist() -> None:
    reasons = {mutation.name: wrong_with(mutation) for mutation in MUTATIONS}
    assert {name: reason for name, reason in reasons.items() if reason is not None} == {}


def test_names_are_unique() -> None:
    assert [name for name, count in Counter(mutation.name for mutation in MUTATIONS).items() if count > 1] == []


def test_faults_are_in_the_maths_and_the_machinery() -> None:
    maths = ("ppo/maths/", "ppo/rollout.py", "ppo/update.py")
    files = [mutation.file for mutation in MUTATIONS]
    assert sum(file.startswith(maths) for file in files) >= 25
    assert sum(not file.startswith(("data/tasks/", "ppo/")) for file in files) >= 15


def test_a_fault_is_put_in_and_taken_out_again(tmp_path: Path) -> None:
    (tmp_path / "maths.py").write_text("x = 1\ny = 2\n")
    fault = runner.Mutation(name="n", file="maths.py", find="x = 1", replace="x = 3", tests=("tests",))
    with pytest.raises(KeyError), runner.applied(tmp_path, fault):
        assert (tmp_path / "maths.py").read_text() == "x = 3\ny = 2\n"
        raise KeyError
    assert (tmp_path / "maths.py").read_text() == "x = 1\ny = 2\n"


@pytest.mark.parametrize(("find", "count"), [("z", 0), ("=", 2)])
def test_a_text_that_does_not_occur_exactly_once_is_refused(tmp_path: Path, find: str, count: int) -> None:
    (tmp_path / "maths.py").write_text("x = 1\ny = 2\n")
    fault = runner.Mutation(name="n", file="maths.py", find=find, replace="!", tests=("tests",))
    with pytest.raises(ValueError, match=f"occurs {count} times"), runner.applied(tmp_path, fault):
        pass


@pytest.mark.parametrize(
    ("test", "verdict"),
    [("assert maths.x == 1", "killed"), ("assert maths.x", "survived")],
)
def test_only_failing_tests_kill_a_fault(tmp_path: Path, test: str, verdict: str) -> None:
    (tmp_path / "maths.py").write_text("x = 1\n")
    (tmp_path / "test_maths.py").write_text(f"import maths\n\n\ndef test_x():\n    {test}\n")
    fault = runner.Mutation(name="n", file="maths.py", find="x = 1", replace="x = 3", tests=("test_maths.py",))
    outcome = try_it(tmp_path, fault)
    assert outcome.verdict == verdict
    assert ("test_maths.py::test_x" in outcome.detail) == (verdict == "killed")


def test_forks_read_the_code_anew_and_keep_what_was_printed(tmp_path: Path) -> None:
    with contextlib.closing(runner.Forks(tmp_path, runner.environment_of(tmp_path), libraries=())) as forks:
        for number, code in ((1, 0), (2, 1)):
            (tmp_path / "maths.py").write_text(f"x = {number}\n")
            (tmp_path / "test_maths.py").write_text("import maths\n\n\ndef test_x():\n    assert maths.x == 1\n")
            ended, printed = runner.run_pytest(forks, "test_maths.py")
            assert (ended, "assert 2 == 1" in printed) == (code, code == 1)


def test_forks_say_so_where_they_cannot_begin(tmp_path: Path) -> None:
    forks = runner.Forks(tmp_path, runner.environment_of(tmp_path), libraries=("nowhere",))
    with contextlib.closing(forks), pytest.raises(RuntimeError, match="ended with exit code 1"):
        forks.pytest("test_maths.py")


def test_a_fault_that_breaks_the_import_is_an_error_and_no_kill(tmp_path: Path) -> None:
    (tmp_path / "maths.py").write_text("x = 1\n")
    (tmp_path / "test_maths.py").write_text("import maths\n\n\ndef test_x():\n    assert maths.x == 1\n")
    fault = runner.Mutation(name="n", file="maths.py", find="x = 1", replace="import nowhere", tests=("test_maths.py",))
    assert try_it(tmp_path, fault).verdict == "error"
