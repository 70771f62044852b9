"""A server that answers garbage, or that belongs to another run: nothing of it enters the trajectory."""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from cases import Ran, spec_of
from launched import until

from coupler import connect
from coupler.contracts import Link
from launch.plan import plan
from launch.run import prepare
from launch.supervise import Supervisor
from schemas import wire
from schemas.fields import Block
from schemas.messages import Ack, Action, Advice, Ask, Bye, Hello, Refusal, Welcome
from schemas.run import RunSpec

STEPS = 300
ROTORS = 20
"""So many that their Blocks go in frames."""
Answer = Callable[[Link, bytes, object, np.random.Generator], None]


def garbage(link: Link, peer: bytes, message: object, rng: np.random.Generator) -> None:
    """Bytes that are no messages: none, few, many, almost right."""
    head = bytes(wire.encode(Welcome(1, 8, ()))[0])
    damaged = bytearray(head)
    damaged[int(rng.integers(len(head)))] ^= 1 << int(rng.integers(8))
    for frames in ([b""], [rng.bytes(100)], [b"\x93"] * 9, [head, b"more"], [bytes(damaged)], [rng.bytes(1 << 20)]):
        link.send(list(frames), peer)


def lies(link: Link, peer: bytes, message: object, rng: np.random.Generator) -> None:
    """A server that keeps to the protocol, but whose every answer is wrong."""
    if isinstance(message, Hello):
        link.send(wire.encode(Welcome(1, 8, ("Linear",))), peer)
    if not isinstance(message, Ask):
        return
    stamp = message.stamp
    at, shape = stamp.step, (ROTORS,)
    lies.count += 1  # type: ignore[attr-defined]
    good = np.ones(shape)
    states = [
        {"x": good * math.nan, "v": good},
        {"x": good, "v": good[:3]},
        {"x": good.astype(np.float32), "v": good},
        {"x": good},
        {"x": good, "v": good, "w": good},
        {"x": good * 1e9, "v": good},
        {},
    ]
    changes = [
        {"step": at},
        {"step": at - 5},
        {"time": math.nan},
        {"weight": 0.0},
        {"weight": math.nan},
        {"weight": -3.0},
        {"action": Action.REWIND, "rewind_to": at + 7},
        {"action": Action.REWIND, "rewind_to": -1},
        {"action": Action.DIRECT, "dt": math.nan, "lease": -5},
        {"action": Action.DIRECT, "dt": -1.0},
        {"answers": at - 100, "step": at - 90},
    ]
    fate = int(rng.integers(len(states) + len(changes) + 2))
    arrays = states[fate] if fate < len(states) else {"x": good, "v": good}
    change = changes[fate - len(states)] if 0 <= fate - len(states) < len(changes) else {}
    table, frames = wire.block_table({name: Block(array, (0,)) for name, array in arrays.items()})
    if fate == len(states) + len(changes):
        frames[0] = memoryview(bytes(len(frames[0])))  # not what its digest says
    elif fate > len(states) + len(changes):
        frames = frames[:-1]
    advice = {
        "action": Action.LEARNED,
        "decision": lies.count,  # type: ignore[attr-defined]
        "ack": Ack(stamp.epoch, stamp.seq, 0, 8),
        "answers": at,
        "step": at + 4,
        "time": stamp.time + 4 * stamp.dt,
        "dt": stamp.dt,
        "horizon": 4,
        "version": 1,
        "blocks": table,
    }
    link.send(wire.encode(Advice(**(advice | change)), frames), peer)  # type: ignore[arg-type]


def refuses(link: Link, peer: bytes, message: object, rng: np.random.Generator) -> None:
    link.send(wire.encode(Refusal("The client belongs to run 'rotor', this server to 'other'.")), peer)


def ends_the_run(link: Link, peer: bytes, message: object, rng: np.random.Generator) -> None:
    if isinstance(message, Hello):
        link.send(wire.encode(Welcome(1, 8, ())), peer)
    elif isinstance(message, Ask):
        ack = Ack(message.stamp.epoch, message.stamp.seq, 0, 8)
        advice = Advice(action=Action.STOP, reason="converged", decision=message.stamp.seq, ack=ack)
        link.send(wire.encode(advice), peer)


@contextmanager
def answering(spec: RunSpec, folder: Path, answer: Answer, heard: list[object]) -> Iterator[None]:
    """A server of our own on the address of a run."""
    link, over, rng = connect.listen(spec, folder), threading.Event(), np.random.default_rng(1)

    def serve() -> None:
        while not over.is_set():
            if (received := link.receive(0.05)) is not None:
                message, _ = wire.decode(received[1], 1 << 25)
                heard.append(message)
                answer(link, received[0], message, rng)
        link.close()

    server = threading.Thread(target=serve)
    server.start()
    try:
        yield
    finally:
        over.set()
        server.join()


def simulated(spec: RunSpec, folder: Path) -> Ran:
    """Runs the simulation of a case alone."""
    (simulation,) = (p for p in plan(spec, folder, sys.executable, "mpiexec") if p.role == "simulation")
    with Supervisor() as supervisor:
        outcome = supervisor.watch(supervisor.start(simulation))
    assert outcome.code is not None
    return Ran(folder, outcome.code, (folder / "logs" / "simulation.log").read_text("utf-8"))


@pytest.mark.parametrize("answer", [garbage, lies, refuses])
def test_server_that_answers_nonsense(tmp_path: Path, answer: Answer) -> None:
    folder, heard = tmp_path / "run", list[object]()
    limits = {"dt": 0.1, "dt_min": 0.1, "dt_max": 0.1}
    link = {"deadline_s": 0.2}
    simulation = {"pace_s": 0.002, "n": ROTORS}
    spec = spec_of(folder, rung="local", steps=STEPS, simulation=simulation, limits=limits, link=link,
                   guard={"bounds": {"x": [-2.0, 2.0]}})  # fmt: skip
    prepare(spec, folder)
    lies.count = 0  # type: ignore[attr-defined]
    with answering(spec, folder, answer, heard):
        result = simulated(spec, folder)
    assert result.code == 0, result.said
    assert result.steps_of("learned") == result.steps_of("rewind") == []
    assert [record["step"] for record in result.trace] == list(range(STEPS))
    energies = [record["values"]["energy"] for record in result.observables]
    assert max(energies) == pytest.approx(min(energies), rel=1e-9)
    asked = sum(isinstance(message, Ask) for message in heard)
    if answer is lies:
        assert asked > 100
        reasons = " ".join(result.reasons())
        for words in ("not finite", "lacks field", "undeclared", "bounds", "too late", "no state is saved", "<f4"):
            assert words in reasons
    else:
        assert asked == 0  # never opened
        if answer is refuses:
            assert any("belongs to run 'rotor'" in reason for reason in result.reasons())
            assert [type(message) for message in heard] == [Hello, Bye]  # it does not insist


def test_server_that_ends_the_run(tmp_path: Path) -> None:
    """In good order, but nobody must take it for the whole run."""
    folder = tmp_path / "run"
    spec = spec_of(folder, rung="local", steps=10_000, simulation={"pace_s": 0.002})
    prepare(spec, folder)
    with answering(spec, folder, ends_the_run, []):
        result = simulated(spec, folder)
    assert result.code == 0 and result.trace[-1]["action"] == "stop"
    assert result.trace[-1]["to_step"] == result.trace[-1]["step"] == result.observables[-1]["step"]
    told = json.loads((folder / "simulation.json").read_text("utf-8"))
    assert told["stopped"] == f"The server ended the run at step {told['step']}: converged"


def test_server_of_another_run(tmp_path: Path) -> None:
    """The address of another run's server: it refuses, and the simulation goes on directly and says why."""
    ours, other = tmp_path / "ours", tmp_path / "other"
    spec = spec_of(ours, rung="local", steps=200, simulation={"pace_s": 0.002})
    theirs = spec_of(other, rung="local", run={"name": "other"})
    prepare(spec, ours)
    prepare(theirs, other)
    (server,) = (p for p in plan(theirs, ours, sys.executable, "mpiexec") if p.role == "server")
    (ours / connect.CASE).rename(ours / "ours.toml")
    (other / connect.CASE).rename(ours / connect.CASE)  # the server reads this one ...
    with Supervisor() as supervisor:
        supervisor.start(server)
        until(connect.socket_path(ours).exists, "the server")
        (ours / "ours.toml").replace(ours / connect.CASE)  # ... and the simulation that one
        result = simulated(spec, ours)
    assert result.code == 0 and len(result.steps_of("direct")) == 200
    assert any("client belongs to run 'rotor', this server to 'other'" in reason for reason in result.reasons())
    assert "Refused a client" in (ours / "logs" / "server.log").read_text("utf-8")
