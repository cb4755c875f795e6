"""pytest again and again without importing torch each time: a process that has imported the libraries, and forks.

    python tests/harness/forks.py torch trl   # reads pytest's arguments, a JSON list a line; answers a JSON object each

Only libraries are imported before the fork. The project's own modules, conftest included, are read anew in every child.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LIBRARIES = ("bitsandbytes", "datasets", "peft", "pytest", "torch", "transformers", "trl", "wandb", "scipy.stats")
FORKS = Path(__file__).resolve()
INTERNAL_ERROR = 3
"""pytest's exit code where it broke down itself."""


class Forks:
    """The other end of the pipe: one process that runs pytest in a folder, one call at a time."""

    def __init__(self, folder: Path, environment: Mapping[str, str], libraries: Sequence[str] = LIBRARIES) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(FORKS), *libraries],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def pytest(self, *arguments: str) -> tuple[int, str]:
        """Exit code, and what pytest printed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(arguments), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{FORKS} ended with exit code {self._process.wait()}. Its error is above.")
        answer = json.loads(line)
        return answer["code"], answer["printed"]

    def close(self) -> None:
        """Ends the process, which waits for the end of its input."""
        self._process.communicate()


def serve(libraries: Sequence[str]) -> None:
    """Answer every line of standard input, until its end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints while it is imported is no answer
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says which optional kernels are not there
    for name in libraries:
        __import__(name)
    for line in sys.stdin:
        print(json.dumps(run_forked(json.loads(line))), file=answers, flush=True)


def run_forked(arguments: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            code = INTERNAL_ERROR
            try:
                code = _run(arguments, output.fileno())
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return {"code": code, "printed": output.read().decode(errors="replace")}


def _run(arguments: Sequence[str], output: int) -> int:
    import pytest

    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, handle in enumerate((nothing, output, output)):
        os.dup2(handle, number)
    plugins_are_here_already = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
    return pytest.main([*plugins_are_here_already, *arguments])


if __name__ == "__main__":
    sys.path.remove(str(FORKS.parent))  # as `python -m pytest` has it: the folder, and PYTHONPATH
    sys.path.insert(0, "")
    serve(sys.argv[1:])
