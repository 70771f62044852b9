"""What one coupling step costs the solver's thread: `python -m benchmarks step`.

- `Ask to Advice`: a host that stands at a learned state asks and waits for a real server's answer; from the Ask's send
  to the Advice's arrival, and the whole `exchange`, both against the same frames over bare pyzmq. As in
  `benchmarks.links` the two take turns, served by one thread of one child; back to back, and as in a run, where the
  host works between two Asks, so that everybody sleeps and must be woken.
- `exchange, DIRECT`: `exchange` that sends a state and returns at once, with a live server. Between two of them the
  host integrates: it sweeps over its state for as long as a step takes, which for a large one empties the caches. It
  takes turns with the least that could be done: bare pyzmq takes in an answer of 100 bytes, and sends as many bytes.
- `off`: time in the library over time in the solver, by the ledger of an uncoupled run of the example.
- `allreduce`: the vote of each exchange, on two MPI ranks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import zmq

from benchmarks.coupled import (
    LIMITS,
    SMALL,
    Stamped,
    client,
    hand_over,
    integrate,
    learned,
    met,
    serve,
    serving,
    snapshot_at,
)
from benchmarks.links import child
from benchmarks.runs import STREET, run_case
from benchmarks.table import BenchmarkFailed, Row, Rows, judged, row, timing
from coupler.agreement import Vote, agree
from coupler.links.zeromq import connect
from coupler.ranks import MpiRanks
from launch.plan import find_mpiexec

ANSWER = 100
"""Bytes of an answer that says "go on": what an Advice without arrays has, about."""
TRIPS, WARM_UP = {0.0: 4000, 0.001: 1500}, 200
"""Round trips to time, by the seconds of host work before each."""
SIZES = {"64 B": (64, 1000, 0.002), "8 kB": (8_000, 1000, 0.002), "800 kB": (800_000, 400, 0.005)}
SIZES |= {"4.3 MB": (4_300_000, 200, 0.04)}
"""Bytes of a state, number of exchanges, and seconds that the host integrates between two of them."""
OFF_STEPS = 1000
VOTES = 5000


def rows(say: Callable[[str], None] = lambda _: None) -> Rows:
    """All figures of this group."""
    made: Rows = []
    for apart_s, trips in TRIPS.items():
        with tempfile.TemporaryDirectory() as folder:
            made += round_trip(Path(folder), apart_s, trips)
    for name, (size, count, between_s) in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            made.append(direct(name, size, count, between_s, Path(folder)))
    made.append(allreduce())
    say(f"{OFF_STEPS} steps of {STREET} in mode off")
    return [*made, off()]


# ----------------------------------------------------------------------------------------------------- round trips


def round_trip(folder: Path, apart_s: float, trips: int) -> Rows:
    """A learned step against the same frames over bare pyzmq, in turns, with host work of `apart_s` before each."""
    bare_address, address = f"ipc://{folder}/bare", f"ipc://{folder}/ours"
    bare_s, trip_s, exchange_s = [], [], []
    with (
        zmq.Context() as context,
        context.socket(zmq.DEALER) as bare,
        child(serve_both, bare_address, address, str(folder)),
    ):
        bare.connect(bare_address)
        link = Stamped(connect(address, identity=b"rank-0", limits=LIMITS))
        with client(link, SMALL, folder) as coupling:
            state, snapshot = np.zeros(SMALL // 8), hand_over(coupling)
            for _ in range(WARM_UP):
                snapshot = learned(coupling, snapshot)
            asked = [bytes(n) for n in link.sent]
            bare.send(json.dumps(link.received).encode())
            for turn in range(trips + WARM_UP):
                integrate(state, apart_s)
                began = time.perf_counter()
                bare.send_multipart(asked)
                bare.recv_multipart()
                bare_took = time.perf_counter() - began
                integrate(state, apart_s)
                began = time.perf_counter()
                snapshot = learned(coupling, snapshot)
                took = time.perf_counter() - began
                if turn >= WARM_UP:
                    bare_s.append(bare_took)
                    trip_s.append(link.arrived - link.left)
                    exchange_s.append(took)
            bare.send_multipart([b""])
        size = sum(map(len, asked)) + sum(link.received)
    how, against = f"{1e3 * apart_s:g} ms apart" if apart_s else "back to back", "bare pyzmq, same frames"
    trip = timing(f"Ask to Advice, {how}", size, trip_s, bare_s, against)
    return [
        timing(f"bare pyzmq, {how}", size, bare_s),
        judged(trip, "ratio", at_most=2.0),
        timing(f"exchange, LEARNED, {how}", size, exchange_s, bare_s, against),
    ]


def serve_both(bare_address: str, address: str, folder: str) -> None:
    """Child: a real server; once told so, bare pyzmq and the server answer in turn until an empty message comes."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as bare, serving(address, folder, act=True) as server:
        bare.bind(bare_address)
        while not bare.poll(0):
            server.poll(0.01)
        answer = [bytes(n) for n in json.loads(bare.recv_multipart()[1])]
        while (message := bare.recv_multipart())[1]:
            bare.send_multipart([message[0], *answer])
            server.poll(60)
        server.serve()


# ----------------------------------------------------------------------------------------------------- direct steps


def direct(name: str, size: int, count: int, between_s: float, folder: Path) -> Row:
    """The stall of `exchange` in DIRECT phases for one size of state, in turns with bare pyzmq."""
    address, bare_address, state = f"ipc://{folder}/s", f"ipc://{folder}/bare", np.zeros(size // 8)
    with (
        child(serve, address, str(folder)),
        child(answer_bare, bare_address),
        zmq.Context() as context,
        context.socket(zmq.DEALER) as bare,
        client(connect(address, identity=b"rank-0", limits=LIMITS), size, folder) as coupling,
    ):
        bare.connect(bare_address)
        bare.send(b"begin")
        stalls, bare_s = [], []
        first = met(coupling, state)
        for step in range(first, first + count):
            integrate(state, between_s)
            snapshot = snapshot_at(step, state)
            began = time.perf_counter()
            coupling.exchange(snapshot)
            stalls.append(time.perf_counter() - began)
            integrate(state, between_s)
            began = time.perf_counter()
            if bare.poll(0):
                bare.recv_multipart()
            bare.send_multipart([bytes(ANSWER), state.data])
            bare_s.append(time.perf_counter() - began)
        dropped = coupling.books["dropped"].get("no credit", 0)
        bare.send_multipart([b""])
        bare.linger = 1000
    if dropped > 0.5 * count:
        raise BenchmarkFailed(f"{dropped} states of {name} found no credit: the machine is too busy to time them")
    made = timing(f"exchange, DIRECT, {name}", size, stalls, bare_s, "bare pyzmq, no more than needed")
    made |= {"dropped": dropped}
    return judged(made, "p50_us", at_most=150.0) if name == "8 kB" else made


def answer_bare(address: str) -> None:
    """Child: a ROUTER of bare pyzmq answers each message with a small one, until an empty one comes."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as bare:
        bare.bind(address)
        while (message := bare.recv_multipart())[1]:
            bare.send_multipart([message[0], bytes(ANSWER)])
        bare.linger = 0


# ------------------------------------------------------------------------------------------------- off, allreduce


def off() -> Row:
    """Time in the library over time in the solver, in mode off."""
    sets = [f"run.steps={OFF_STEPS}", "run.mode=off"]
    with tempfile.TemporaryDirectory() as folder:
        summary = run_case(STREET, Path(folder) / "run", sets)
    share = summary["library_s"] / summary["ledger"]["direct_s"]
    per_step = 1e6 * summary["library_s"] / OFF_STEPS
    made = row("off, library over solver", against="solver", ratio=share, unit="1", us_per_step=per_step)
    return judged(made, "ratio", at_most=0.001)


def allreduce() -> Row:
    """The vote of each exchange on two ranks that come to it together."""
    mpiexec = find_mpiexec()
    if mpiexec is None:
        raise BenchmarkFailed("no mpiexec is beside python or on PATH: install the mpich wheel (pip install mpich)")
    argv = [mpiexec, "-n", "2", sys.executable, "-m", "benchmarks.step"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False, env=os.environ)
    if done.returncode:
        raise BenchmarkFailed(f"the ranks failed: {done.stderr.strip()[-500:]}")
    seconds: list[float] = msgspec.json.decode(done.stdout, type=list[float])
    return timing("allreduce of the vote, 2 ranks", 24, seconds)


def vote() -> None:
    """One rank of `allreduce`."""
    ranks, seconds = MpiRanks(), []
    for turn in range(VOTES + WARM_UP):
        began = time.perf_counter()
        agree(ranks, Vote(turn, True, 0, turn))
        if turn >= WARM_UP:
            seconds.append(time.perf_counter() - began)
    if ranks.rank == 0:
        sys.stdout.write(json.dumps(seconds))


if __name__ == "__main__":
    vote()
