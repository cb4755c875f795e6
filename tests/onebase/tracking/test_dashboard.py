"""W&B that cannot be reached, or is lost midway: the run goes on and ends soon, and no row is lost.

Against a server of our own that answers as W&B's does, as far as its client asks, in processes of their own.
"""

import asyncio
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from onebase.recipe.sections import TrackSection
from onebase.tracking import dashboard
from onebase.tracking.dashboard import Dashboard, run_name, version_of
from onebase.tracking.tracker import Tracker
from onebase.tracking.watchdog import answers, while_it_answers

STEPS = 20

STAGE = """
import os, signal, sys, time
from pathlib import Path
import psutil
from onebase.recipe.sections import TrackSection
from onebase.tracking.tracker import Tracker

folder, fate = Path(sys.argv[1]), sys.argv[2]
folder.mkdir(parents=True)
with Tracker(folder, "sft", TrackSection(wandb="online"), {"seed": 0}) as tracker:
    for step in range(20):
        if step == 10 and fate in ("server", "key"):
            sys.stdout.write("lose\\n")
            sys.stdout.flush()
            sys.stdin.readline()
        if step == 10 and fate == "process":
            for child in psutil.Process().children():
                child.kill()
        tracker.log(step, {"sft/loss": float(step)})
    if fate in ("key", "process"):  # our server knows nothing of artifacts
        tracker.table("samples", ["prompt"], [["why?"]])
    tracker.summarise({"sft/loss": 19.0})
"""


class Server:
    """Answers what W&B's client asks at a run's start and end; `silent`: takes requests and never answers."""

    def __init__(self) -> None:
        self.silent = threading.Event()
        self.requests: list[str] = []
        self.status = 200
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *arguments: object) -> None:
                pass

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if outer.silent.is_set():
                    threading.Event().wait()
                outer.requests.append(self.path)
                content = json.dumps(outer.answer(self.path, body)).encode()
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = _answer

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                """A client that is gone is no news, least of all in the output of a later test."""

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    @staticmethod
    def answer(path: str, body: bytes) -> dict[str, object]:
        if not path.endswith("/graphql"):
            return {"exitcode": None, "limits": {}}
        query = json.loads(body)["query"]
        project = {"id": "p", "name": "onebase", "entity": {"id": "e", "name": "me"}}
        known = {
            "viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
            "serverInfo": {"cliVersionInfo": {"max_cli_version": "9.9.9"}, "features": []},
            "upsertBucket": {
                "bucket": {"id": "b", "name": "run", "displayName": "run", "config": "{}", "project": project},
                "inserted": True,
            },
            "createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []},
        }
        return {"data": {name: content for name, content in known.items() if name in query}}


@pytest.fixture
def server() -> Iterator[Server]:
    local = Server()
    yield local
    local.http.shutdown()
    local.http.server_close()


def run_stage(folder: Path, url: str, fate: str, server: Server | None = None) -> tuple[int, str]:
    """A run of 20 steps; exit code and what it said. The time limit is there for a run that never ends.

    fate: what is lost midway. The server is silent from then on, or knows the key no more.
    """
    # Without what this process has set, such as the address of its own W&B process.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = {**variables, "WANDB_BASE_URL": url, "WANDB_API_KEY": "a" * 40}
    command = [sys.executable, "-c", STAGE, str(folder), fate]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True, env=environment) as process:
        if fate in ("server", "key"):
            assert process.stdout is not None and process.stdin is not None and server is not None
            assert process.stdout.readline() == "lose\n"
            if fate == "server":
                server.silent.set()
            else:
                server.status = 401
            process.stdin.write("lost\n")
            process.stdin.flush()
        try:
            _, printed = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, printed


CORE = {
    "exits": "#!/bin/sh\nexit 3\n",
    "hangs": '#!/bin/sh\nexec tail -f "$0"\n',
    "talks nonsense": "#!/bin/sh\nwhile [ $1 != --port-filename ]; do shift; done\necho nonsense >$2; exec sleep 300\n",
    "is missing": None,
    "is no program": "not a program",
}
"""What may stand in the place of W&B's own process."""

BROKEN = """
import sys
import time
from pathlib import Path
import psutil
import wandb.sdk.lib.service.service_process as service
from onebase.tracking import dashboard
from onebase.recipe.sections import TrackSection
from onebase.tracking.tracker import Tracker

service.get_core_path = lambda: sys.argv[2]
dashboard.START_SECONDS = 4.0
folder = Path(sys.argv[1])
folder.mkdir()
with Tracker(folder, "sft", TrackSection(wandb="offline"), {"seed": 0}) as tracker:
    for step in range(3):
        tracker.log(step, {"sft/loss": float(step)})
    tracker.table("samples", ["prompt"], [["why?"]])
    tracker.alert("a title", "a text", step=2)
    tracker.summarise({"sft/loss": 2.0})
time.sleep(1.0)  # a thread that was given up must not start another process
print("LEFT BEHIND", [child.cmdline() for child in psutil.Process().children(recursive=True)])
"""


SLOW = ("talks nonsense", "is no program")
CORES = [pytest.param(core, marks=[pytest.mark.slow] if core in SLOW else []) for core in CORE]


@pytest.mark.parametrize("core", CORES)
def test_a_dashboard_that_cannot_start_costs_a_warning(tmp_path: Path, core: str) -> None:
    program, content = tmp_path / "wandb-core", CORE[core]
    if content is not None:
        program.write_text(content)
        program.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    command = [sys.executable, "-c", BROKEN, str(tmp_path / "sft"), str(program)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=90)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("W&B does not start (") == 1
    assert "Traceback" not in done.stderr
    assert "LEFT BEHIND []" in done.stdout
    assert rows(tmp_path / "sft") == [0, 1, 2]


def test_who_does_not_wait_for_a_dashboard_that_hangs_ends_at_once_and_leaves_no_process(tmp_path: Path) -> None:
    program = tmp_path / "wandb-core"
    program.write_text(str(CORE["hangs"]))
    program.chmod(0o755)

    def ours() -> list[psutil.Process]:
        return [
            process for process in psutil.process_iter(["cmdline"]) if str(program) in (process.info["cmdline"] or [])
        ]

    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    code = BROKEN.replace("START_SECONDS = 4.0", "START_SECONDS = 300.0")
    command = [sys.executable, "-c", f"import signal; signal.signal(2, signal.default_int_handler)\n{code}"]
    child = subprocess.Popen(
        [*command, str(tmp_path / "sft"), str(program)], stdout=subprocess.DEVNULL, env=environment
    )
    try:
        while len(ours()) < 2:  # the child's own command line, and the program's
            assert child.poll() is None
            time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        child.wait(timeout=60)
        assert ours() == []
    finally:
        child.kill()
        for process in ours():
            process.kill()


@pytest.mark.parametrize("mode", ["disabled", "offline"])
def test_dashboards_switched_off_everywhere_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    with Tracker(tmp_path, "sft", TrackSection(wandb="auto"), {}) as tracker:
        tracker.table("samples", ["prompt"], [["a canary"]])
    holders = {path.name for path in tmp_path.rglob("*") if path.is_file() and b"canary" in path.read_bytes()}
    assert "samples.jsonl" in holders
    assert (holders == {"samples.jsonl"}) == (mode == "disabled")
    assert (tmp_path / "wandb").exists() == (mode == "offline")
    assert capsys.readouterr().err == ""  # a user who has said so needs no warning


def history(log: Path) -> list[str]:
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(log)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line for line in printed.splitlines() if '"type":"history"' in line and "sft/loss" in line]


def rows(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_server_that_answers_gets_the_run(tmp_path: Path, server: Server) -> None:
    code, printed = run_stage(tmp_path / "sft", server.url, "none")
    assert code == 0, printed
    assert "lost" not in printed
    assert any("file_stream" in path for path in server.requests)
    assert not list(tmp_path.glob("sft/wandb/offline-run-*"))


@pytest.mark.parametrize("fate", ["server", "key", "process"])
def test_a_run_whose_dashboard_is_lost_midway_ends_with_every_row_in_an_offline_run(
    tmp_path: Path, server: Server, fate: str
) -> None:
    code, printed = run_stage(tmp_path / "sft", server.url, fate, server)
    assert code == 0, printed
    assert "W&B is lost" in printed
    assert "Traceback" not in printed
    assert rows(tmp_path / "sft") == list(range(STEPS))
    (log,) = (tmp_path / "sft").glob("wandb/offline-run-*/*.wandb")
    assert len(history(log)) == STEPS


def test_a_run_whose_dashboard_cannot_be_reached_at_its_start_is_kept_offline(tmp_path: Path, server: Server) -> None:
    server.silent.set()
    code, printed = run_stage(tmp_path / "sft", server.url, "none")
    assert code == 0, printed
    assert "W&B cannot be reached" in printed
    assert rows(tmp_path / "sft") == list(range(STEPS))
    logs = list((tmp_path / "sft").glob("wandb/offline-run-*/*.wandb"))
    assert [len(history(log)) for log in logs] == [STEPS]


def test_slow_work_is_waited_for_while_the_server_answers(server: Server) -> None:
    done = threading.Event()
    while_it_answers(lambda: (threading.Event().wait(3), done.set()), server.url)
    assert done.is_set()


def test_what_goes_wrong_in_the_work_is_raised_to_whom_asked_for_it(server: Server) -> None:
    with pytest.raises(ZeroDivisionError):
        while_it_answers(lambda: 1 // 0, server.url)


def test_only_something_that_comes_back_is_an_answer(server: Server) -> None:
    assert answers(server.url)
    assert not answers("http://127.0.0.1:1")
    server.status = 503
    assert not answers(server.url), "a gateway in front of a server that is gone"
    server.status = 404
    assert answers(server.url)
    server.silent.set()
    assert not answers(server.url)


@pytest.mark.parametrize("reply", [b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"\0" * 9000, b"HTTP/1.1 20"])
def test_a_server_of_something_else_is_no_answer(reply: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        assert not answers(f"http://127.0.0.1:{listening.getsockname()[1]}")
        thread.join()


class Failing:
    """Stands in for a W&B run of which one method fails, whatever is asked of it."""

    offline = True

    def __init__(self, method: str, error: BaseException) -> None:
        self._method, self._error = method, error
        self.summary = SimpleNamespace(update=self._answer("update"))

    def _answer(self, name: str) -> Any:
        def method(*arguments: object, **named: object) -> None:
            if name == self._method:
                raise self._error

        return method

    def __getattr__(self, name: str) -> Any:
        return self._answer(name)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("no\x1b[2J"), SystemExit(0), asyncio.CancelledError(), OSError(28, "No space left")],
    ids=repr,
)
@pytest.mark.parametrize("method", ["log", "update", "alert", "log_artifact", "finish"])
def test_whatever_fails_leaves_a_warning_and_a_run_that_goes_on(
    tmp_path: Path,
    method: str,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run that takes its place fails as well."""
    monkeypatch.setattr(dashboard, "_start_wandb", lambda *arguments, **named: Failing(method, error))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with Tracker(tmp_path, "sft", TrackSection(), {}) as tracker:
        for step in range(3):
            tracker.log(step, {"sft/loss": float(step)})
        tracker.table("samples", ["prompt"], [["why?"]])
        tracker.alert("a title", "a text", step=2)
        tracker.summarise({"sft/loss": 2.0})
        tracker.artifact(tmp_path / "adapter", version="v", parents={}, details={})
    assert rows(tmp_path) == [0, 1, 2]
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 1
    printed = capsys.readouterr().err
    assert f"W&B is lost ({type(error).__name__}" in printed
    assert "\x1b" not in printed


def test_a_process_of_its_own_that_hangs_offline_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = threading.Event()
    monkeypatch.setattr(dashboard, "OFFLINE_SECONDS", 0.05)
    run = SimpleNamespace(offline=True, log=lambda row: None, finish=lambda exit_code: waiting.wait(60))
    monkeypatch.setattr(dashboard, "_start_wandb", lambda *arguments, **named: run)
    with Tracker(tmp_path, "sft", TrackSection(), {}) as tracker:
        tracker.log(1, {"sft/loss": 1.0})
    waiting.set()
    assert "W&B is lost (TimeoutError: not done after 0.05 s)" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ImportError("broken wheel"), SystemExit(1), KeyError("x"), asyncio.CancelledError()])
def test_wandb_that_cannot_be_imported_or_begun_costs_a_warning(
    tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(*arguments: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(dashboard, "_start_wandb", start)
    with Tracker(tmp_path, "sft", TrackSection(), {}) as tracker:
        tracker.log(0, {"sft/loss": 0.0})
    assert f"W&B does not start ({type(error).__name__}" in capsys.readouterr().err
    assert rows(tmp_path) == [0]


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"machine api.wandb.ai login", b"", b"nonsense", None])
def test_a_netrc_of_any_kind_is_no_login(tmp_path: Path, text: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if text is None:
        (tmp_path / ".netrc").mkdir()
    else:
        (tmp_path / ".netrc").write_bytes(text)
    assert not dashboard.logged_in()


@pytest.mark.parametrize("mode", ["disabled", "offline"])
def test_what_the_wandb_command_has_switched_stays_switched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    """`wandb disabled` and `wandb offline` write a file of settings."""
    import wandb

    wandb.teardown()  # it reads its settings once
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    (tmp_path / "settings").write_text(f"[default]\nmode = {mode}\n")
    with Tracker(tmp_path, "sft", TrackSection(wandb="auto"), {}) as tracker:
        tracker.table("samples", ["prompt"], [["a canary"]])
    printed = capsys.readouterr().err
    assert ("`wandb disabled` has switched it off" in printed) == (mode == "disabled")
    assert "cannot be reached" not in printed
    holders = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file() and b"canary" in path.read_bytes()]
    assert bool(holders) == (mode == "offline")
    wandb.teardown()


class Online:
    """Stands in for W&B's run where artifacts are concerned, which our server knows nothing of."""

    offline = False
    settings = SimpleNamespace(base_url="http://127.0.0.1:1")

    def __init__(self, there: str) -> None:
        self.there = there
        self.used: list[str] = []
        self.logged: list[tuple[Any, list[str]]] = []

    def use_artifact(self, name: str) -> None:
        if name != self.there:
            raise ValueError(f"unable to fetch artifact {name}")
        self.used.append(name)

    def log_artifact(self, artifact: Any, aliases: list[str]) -> None:
        self.logged.append((artifact, aliases))


def test_a_parent_that_the_dashboard_does_not_know_costs_its_link_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Online(there="demo-reward-2:stage-0123456789ab")
    monkeypatch.setattr(dashboard, "_start_wandb", lambda *arguments, **named: run)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    dashboard_of_run = Dashboard(tmp_path, "ppo", TrackSection(group="my run"), {})
    parents = {"sft": "elsewhere-sft:stage-ffffffffffff", "reward": run.there}
    dashboard_of_run.artifact(
        tmp_path / "adapter", version=version_of("abc" * 20), parents=parents, details={"stage": "ppo"}
    )
    assert run.used == [run.there]
    ((artifact, aliases),) = run.logged
    assert (artifact.name, aliases) == ("my-run-ppo", ["latest", "stage-abcabcabcabc"])
    assert artifact.metadata == {"stage": "ppo", "parents": parents}


@pytest.mark.parametrize(
    ("folder", "name"),
    [("runs/mine/ppo", "ppo"), ("runs/mine/ppo-rloo", "ppo-rloo"), ("runs/profiled", "ppo"), ("runs/ppoish", "ppo")],
)
def test_a_variant_goes_by_its_own_name(folder: str, name: str) -> None:
    assert run_name(Path(folder), "ppo") == name
