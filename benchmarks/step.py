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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import zmq

from benchmarks.links import child
from benchmarks.peers.exchange import announce
from benchmarks.runs import STREET, run_case
from benchmarks.table import BenchmarkFailed, Row, Rows, judged, row, timing
from coupler.agreement import Vote, agree
from coupler.bulks.bulk import Bulk, frames_only
from coupler.bulks.choice import BulkRules
from coupler.bulks.folder import make, shared_folder
from coupler.bulks.outbox import Outbox
from coupler.bulks.shared import RingReader
from coupler.contracts import Advice, Backtest, Forecast, Frames, Link, Report
from coupler.coupling import Coupling
from coupler.links.security import ServerKeys
from coupler.links.zeromq import LinkLimits, connect, listen
from coupler.ranks import MpiRanks
from coupler.recording import RunRecorder
from coupler.switch import Switch
from coupler.terms import Terms
from launch.plan import find_mpiexec
from ml_servers.core import CoreSettings
from ml_servers.server import Server
from schemas.fields import Array, FieldSpec, Snapshot
from schemas.messages import Action

RUN, LAST_STEP = "bench", 1 << 40
LIMITS = LinkLimits(max_message_bytes=8_000_000, queue_bytes=400_000_000)
SMALL = 64
ANSWER = 100
"""Bytes of an answer that says "go on": what an Advice without arrays has, about."""
TRIPS, WARM_UP = {0.0: 4000, 0.001: 1500}, 200
"""Round trips to time, by the seconds of host work before each."""
SIZES = {"64 B": (64, 1000, 0.002), "8 kB": (8_000, 1000, 0.002), "800 kB": (800_000, 400, 0.005)}
SIZES |= {"4.3 MB": (4_300_000, 200, 0.04)}
"""Bytes of a state, number of exchanges, and seconds that the host integrates between two of them."""
OFF_STEPS = 1000
VOTES = 5000


class Still:
    """A Task whose forecast is a state that never changes."""

    owns: ClassVar[frozenset[str]] = frozenset({"arrays"})

    def __init__(self, fields: Sequence[FieldSpec]) -> None:
        """Args: fields: The declared fields."""
        self._arrays = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in fields if spec.role == "state"}

    def observe(self, snapshot: Snapshot) -> None:
        """See `Task.observe`."""

    def forecast(self, snapshot: Snapshot, horizon: int) -> Forecast:  # noqa: ARG002
        """See `Task.forecast`."""
        scales = dict.fromkeys(self._arrays, 1.0)
        return Forecast(horizon, 1e-3, 1, self._arrays, scales=scales)

    def learn(self, steps: int) -> Report:  # noqa: ARG002
        """See `Task.learn`."""
        return Report(idle=True)

    def state(self) -> dict[str, Array]:
        """See `Task.state`."""
        return {}

    def restore(self, state: Mapping[str, Array]) -> None:
        """See `Task.restore`."""


class Stamped:
    """A Link that remembers, of the last message each way, the sizes of its frames and when it left or arrived."""

    def __init__(self, link: Link) -> None:
        """Args: link: Connected Link."""
        self._link = link
        self.sent: list[int] = []
        self.received: list[int] = []
        self.left = self.arrived = 0.0

    def send(self, frames: Frames, peer: bytes = b"") -> bool:
        """See `Link.send`."""
        self.sent = [len(frame) for frame in frames]
        self.left = time.perf_counter()
        return self._link.send(frames, peer)

    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        """See `Link.receive`."""
        found = self._link.receive(timeout_s)
        if found is not None:
            self.arrived = time.perf_counter()
            self.received = [len(frame) for frame in found[1]]
        return found

    def close(self, linger_s: float = 0.0) -> None:
        """See `Link.close`."""
        self._link.close(linger_s)


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


def integrate(state: Array, seconds: float) -> None:
    """Sweeps over the state, as a solver does, for some time."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        np.add(state, 1.0, out=state)


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


@contextmanager
def serving(
    address: str,
    folder: str,
    *,
    act: bool,
    limits: LinkLimits = LIMITS,
    shared: bool = False,
    digest: bool = True,
    keys: ServerKeys | None = None,
) -> Iterator[Server]:
    """A server with the Task `Still`; it has a model from the first HELLO on when it may act.

    It writes the address that it listens at, with the real port, into the folder.
    """
    settings = CoreSettings(
        run=RUN,
        tasks=("still",),
        switch=Switch(tolerance=1.0, confirm=1, min_horizon=1, first_spacing=LAST_STEP),
        act=act,
        max_horizon=LAST_STEP,
        overhead=float("inf"),
    )

    def started(line: str) -> None:
        if not line.endswith(" is up."):  # a trainer's greeting; all else would be a fault
            raise RuntimeError(line)

    link = listen(address, limits=limits, keys=keys)
    announce(Path(folder), link.address)
    server = Server(
        link,
        settings,
        lambda _, fields: Still(fields),
        Path(folder),
        slot_folder=Path(folder),
        buffer_bytes=64 << 20,
        max_message_bytes=limits.max_message_bytes,
        bulk=lambda stem: by_slots(folder, stem) if shared else frames_only(digest),
        log=started,
    )
    with closing(server):
        if act:
            while server.core.arbiter is None:
                server.poll(0.1)
            server.core.trained("still", 1, "still", 1, [Backtest(LAST_STEP, 1e-3, 1e-3)] * 40)
        yield server


def serve(address: str, folder: str) -> None:
    """Child: a server that has nothing to say."""
    with serving(address, folder, act=False) as server:
        server.serve()


@contextmanager
def client(
    link: Link, size: int, folder: Path, bulk: Bulk | None = None, limits: LinkLimits = LIMITS
) -> Iterator[Coupling]:
    """A Coupling of a host with one state field of `size` bytes, recorded as in a run."""
    terms = Terms(run=RUN, last_step=LAST_STEP, dt=1.0, deadline_s=60.0, max_message_bytes=limits.max_message_bytes)
    (folder / "client").mkdir(parents=True)
    recorder = RunRecorder(folder / "client")
    with Coupling(link, declared(size), terms, recorder=recorder, bulk=bulk) as coupling:
        yield coupling


def by_slots(folder: str, stem: str) -> Bulk:
    """The bulk of one side in slots of shared memory, small Blocks too."""
    place = shared_folder(Path(folder))
    token = make(place)
    return Bulk(Outbox(BulkRules(use="shared"), folder=place, stem=stem), RingReader(place), None, token, place)


def declared(size: int) -> tuple[FieldSpec, ...]:
    """One state field and two observables, as a flow solver has them."""
    return (
        FieldSpec("state", "<f8", (size // 8,), "1"),
        FieldSpec("lift", "<f8", (), "1", "scalar", "observable"),
        FieldSpec("drag", "<f8", (), "1", "scalar", "observable"),
    )


def snapshot_at(step: int, state: Array) -> Snapshot:
    """The host's state at a step."""
    return Snapshot.of(step, float(step), 1.0, state=state, lift=0.5, drag=1.5)


def hand_over(coupling: Coupling, size: int = SMALL) -> Snapshot:
    """Integrates until the model takes over."""
    state = np.zeros(size // 8)
    for step in range(2000):
        advice = coupling.exchange(snapshot_at(step, state), until=step + 50)
        if advice.action is Action.LEARNED:
            return adopted(advice)
        time.sleep(0.002)
    raise BenchmarkFailed("the model never took over; the server's last reason was: " + coupling.advice.reason)


def learned(coupling: Coupling, snapshot: Snapshot) -> Snapshot:
    """One learned step."""
    advice = coupling.exchange(snapshot, until=snapshot.step + 1)
    if advice.action is not Action.LEARNED:
        raise BenchmarkFailed(f"a learned step became {advice.action.name}: {advice.reason}")
    return adopted(advice)


def adopted(advice: Advice) -> Snapshot:
    """The state that the host stands at."""
    assert advice.snapshot is not None  # the action is LEARNED
    return advice.snapshot


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


def met(coupling: Coupling, state: Array) -> int:
    """Exchanges until the server has answered, and gives the next step."""
    for step in range(5000):
        coupling.exchange(snapshot_at(step, state))
        if coupling.books["admitted"]:
            return step + 1
        time.sleep(0.002)
    raise BenchmarkFailed("the server did not come")


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
        agree(ranks, Vote(turn, True))
        if turn >= WARM_UP:
            seconds.append(time.perf_counter() - began)
    if ranks.rank == 0:
        sys.stdout.write(json.dumps(seconds))


if __name__ == "__main__":
    vote()
