"""How OpenMP's threads wait for the next operation. It is read when torch is imported, so it is set before.

Threads that sleep at once (`OMP_WAIT_POLICY=passive`) must be woken for every operation, and decoding is many small
ones: on two idle cores it took 1.6 times as long. Threads that spin for milliseconds, which is the default, took 2 to 7
times as long while other work used the cores. Some microseconds give nearly the best of both.
"""

import os

SPINS = "1000"


def limit_spinning() -> None:
    """Set it for this process and its children, unless the user has said how threads wait."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
