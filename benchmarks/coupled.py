"""A real server and a real client for benchmarks: a Coupling whose host has one state field and two observables."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np

from benchmarks.peers.exchange import announce
from benchmarks.table import BenchmarkFailed
from coupler.bulks.bulk import Bulk, frames_only
from coupler.bulks.choice import BulkRules
from coupler.bulks.folder import make, shared_folder
from coupler.bulks.outbox import Outbox
from coupler.bulks.shared import RingReader
from coupler.contracts import Advice, Backtest, Forecast, Frames, Link, Report
from coupler.coupling import Coupling
from coupler.links.security import ServerKeys
from coupler.links.zeromq import LinkLimits, listen
from coupler.recording import RunRecorder
from coupler.switch import Switch
from coupler.terms import Terms
from ml_servers.server import Server
from ml_servers.settings import CoreSettings
from schemas.fields import Array, FieldSpec, Snapshot
from schemas.messages import Action

RUN, LAST_STEP = "bench", 1 << 40


LIMITS = LinkLimits(max_message_bytes=8_000_000, queue_bytes=400_000_000)


SMALL = 64


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
        self._leaves(frames)
        return self._link.send(frames, peer)

    def send_in_place(self, frames: Frames, peer: bytes = b"") -> bool:
        """See `Link`."""
        self._leaves(frames)
        taken: bool = getattr(self._link, "send_in_place", self._link.send)(frames, peer)
        return taken

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

    def _leaves(self, frames: Frames) -> None:
        self.sent = [len(frame) for frame in frames]
        self.left = time.perf_counter()


def integrate(state: Array, seconds: float) -> None:
    """Sweeps over the state, as a solver does, for some time."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        np.add(state, 1.0, out=state)


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
        bulk=lambda stem: by_slots(folder, stem) if shared else frames_only(digest, unchanging=True),
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


def met(coupling: Coupling, state: Array) -> int:
    """Exchanges until the server has answered, and gives the next step."""
    for step in range(5000):
        coupling.exchange(snapshot_at(step, state))
        if coupling.books["admitted"]:
            return step + 1
        time.sleep(0.002)
    raise BenchmarkFailed("the server did not come")
