"""The end of the process, with something left running."""

import subprocess
import sys

import pytest

LEFT = {
    "nothing": "",
    "a daemon": "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
    "a thread": "threading.Thread(target=time.sleep, args=(600,)).start()",
    "a pool": "ThreadPoolExecutor().submit(time.sleep, 600)",
    "an idle pool": "idle = ThreadPoolExecutor(); idle.submit(int).result()",
    "a process": "multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,)).start()",
}


@pytest.mark.parametrize("code", ["2", "None"])
@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT)
def test_what_is_left_running_does_not_keep_the_process_from_ending(left: str, code: str) -> None:
    text = (
        "import multiprocessing, threading, time\nfrom concurrent.futures import ThreadPoolExecutor\n"
        f"from onebase.custom import leaving\nleaving.GRACE = 0.2\n{left}\nleaving.leave({code})\n"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert done.returncode == (2 if code == "2" else 0)
    waited = left in (LEFT["a thread"], LEFT["a pool"], LEFT["a process"])
    assert ("not waited for any longer" in done.stderr) == waited
    assert "Traceback" not in done.stderr
