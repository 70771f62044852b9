"""Many client processes and one server: nothing is lost, and the server does not grow.

The clients are those of `benchmarks.fan_in`, whose docstring says in what they differ from the ranks of a run.
"""

import os
import time
from multiprocessing import resource_tracker

import pytest

from benchmarks import fan_in
from benchmarks.crew import resident_of

resource_tracker.ensure_running()  # it outlives the first child that is started, on purpose

SECONDS = float(os.environ.get("COUPLER_FAN_IN_S", "600"))
STEPS = 150
GROWTH = 2 * fan_in.RANKS * fan_in.WINDOW * 8 * fan_in.VALUES
"""Growth that is none, bytes: what the windows of all ranks hold, on the way in and in the open steps. How much of
that was in use together, and has stayed with malloc, differs from lap to lap. A server that kept four bytes of each
message would grow by more in ten minutes."""


def test_no_state_of_eight_clients_is_lost(tmp_path):
    with fan_in.our_side(tmp_path, 8) as side:
        for until in (40, 41, 100):  # a lap may be shorter than the window
            side.members.lap(until)
    assert [books["produced"] for books in side.reports] == [100] * 8
    assert [books["admitted"] for books in side.reports] == [100] * 8
    assert side.lost(100) == 0


@pytest.mark.slow
@pytest.mark.timeout(int(SECONDS) + 600)
def test_the_memory_of_a_server_of_64_clients_is_flat_and_nothing_is_lost(tmp_path):
    begin = time.monotonic()
    laps, early = 0, 0
    with fan_in.our_side(tmp_path, fan_in.RANKS) as side:
        while (passed := time.monotonic() - begin) < SECONDS:
            laps += 1
            side.members.lap(laps * STEPS)
            if not early and passed >= SECONDS / 10:
                early = resident_of(side.server)
        late = resident_of(side.server)
    assert side.lost(laps * STEPS) == 0
    assert early and late - early <= GROWTH, f"{laps * STEPS} steps: from {early} to {late} bytes"
