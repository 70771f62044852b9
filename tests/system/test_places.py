"""A side is killed or stopped at an exact place of a step, whichever way the Blocks go.

The run goes on, or ends with the cause; the books balance; nothing torn is taken, and nothing is left behind.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from launched import Launched, launched, lives, until
from test_failures import STEPS, case, finished

STRIKE = Path(__file__).parent / "strike"
READ = {
    "shared": "coupler.bulks.shared:RingReader.fetch",
    "inline": "schemas.wire:_block",
    "adios": "coupler.bulks.streams:Streams.fetch",
}
WRITE = {
    "shared": "coupler.bulks.ring:Ring._copy",
    "inline": "schemas.wire:block_table",
    "adios": "coupler.bulks.node_stream:NodeStream.put",
}
UP, DOWN = 25, 200
"""Steps at which states go up, and at which learned ones come down."""
SERVER = {
    "has a message": (UP, "schemas.wire:decode", "before"),
    "reads its Blocks": (UP, READ, "before"),
    "has read its Blocks": (UP, READ, "after"),
    "admits it": (UP, "ml_servers.core:ServerCore.handle", "before"),
    "gives it to the trainer": (UP, "ml_servers.slots:Slots.filled", "after"),
    "has decided": (DOWN, "ml_servers.core:ServerCore.handle", "after"),
    "writes a learned state": (DOWN, {**WRITE, "adios": WRITE["inline"]}, "after"),
    "has answered": (DOWN, "ml_servers.server:Server._say", "after"),
}
SIMULATION = {
    "has a state to send": (UP, "coupler.bulks.outbox:Outbox.put", "before"),
    "writes its Blocks": (UP, WRITE, "after"),
    "has written them": (UP, "coupler.bulks.outbox:Outbox.put", "after"),
    "has sent it": (UP, "coupler.links.zeromq:ZmqConnection.send", "after"),
    "has an answer": (DOWN, "schemas.wire:decode", "before"),
    "reads a learned state": (DOWN, {**READ, "adios": READ["inline"]}, "before"),
    "has voted for it": (DOWN, "coupler.coupling:Coupling._carry_out", "after"),
    "adopts it": (DOWN, "coupler.applying:_adopt", "before"),
}
COURIER = {
    "reads the ring": "coupler.bulks.shared:RingReader.fetch",
    "begins a step": "coupler.bulks.adios:AdiosWriter.put_parts",
    "is in the step": "coupler.bulks.adios:AdiosWriter._put",
    "has written it": "coupler.bulks.adios_engine:Sockets.hurry",
}
SOAK = pytest.mark.slow
WAYS = pytest.mark.parametrize("use", ["shared", pytest.param("inline", marks=SOAK), pytest.param("adios", marks=SOAK)])
SIGNALS = pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=SOAK)])


@contextmanager
def struck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str, place: str, moment: str, number: int, at: int, use: str
) -> Iterator[Launched]:
    """A run in which a process is struck once the host is at a step; the host waits at gate "two" later."""
    armed = tmp_path / "armed"
    order = {"who": who, "place": place, "moment": moment, "signal": number, "armed": str(armed)}
    monkeypatch.setenv("COUPLER_STRIKE", json.dumps(order))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(STRIKE), os.environ.get("PYTHONPATH")])))
    settings: dict[str, Any] = case(tmp_path, (at, "one"), (360, "two"), bulk={"use": use}, output={"every": 10})
    settings["simulation"] |= {"n": 600}
    with launched(tmp_path, rung="local", **settings) as run:
        run.reached("one")
        run.family()
        armed.touch()
        run.open("one")
        until(lambda: (tmp_path / "armed.struck").exists(), "the strike")
        (tmp_path / "leads").touch()  # after a strike so early the model may never lead: do not be slow for ever
        yield run


def balanced(samples: dict[str, Any]) -> bool:
    rest = sum(samples[key] for key in ("admitted", "in_flight", "retained"))
    return bool(samples["produced"] == rest + sum(samples["dropped"].values()))


@WAYS
@SIGNALS
@pytest.mark.parametrize("place", SERVER)
def test_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, number: signal.Signals, use: str) -> None:
    at, where, moment = SERVER[place]
    name = where if isinstance(where, str) else where[use]
    with struck(tmp_path, monkeypatch, "server", name, moment, number, at, use) as run:
        server = run.pids("ml_servers")
        if number == signal.SIGKILL:
            until(lambda: not any(map(lives, server)), "the server to go")
        run.reached("two")  # the host came here without the server
        if number == signal.SIGSTOP:
            os.kill(server[0], signal.SIGCONT)
        run.open("two")
        result = finished(run)
    assert balanced(result.summary["samples"])
    assert bool(result.summary["lost"]) == (number == signal.SIGKILL)


@WAYS
@pytest.mark.parametrize("place", SIMULATION)
def test_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, use: str) -> None:
    at, where, moment = SIMULATION[place]
    name = where if isinstance(where, str) else where[use]
    with struck(tmp_path, monkeypatch, "simulation", name, moment, signal.SIGKILL, at, use) as run:
        result = run.ended()
    assert result.code == 1 and "killed by SIGKILL" in result.summary["cause"]
    assert result.says(result.summary["cause"]) and result.summary["steps"] < STEPS


@SIGNALS
@pytest.mark.parametrize("place", COURIER)
def test_courier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, number: signal.Signals) -> None:
    pytest.importorskip("adios2", reason="needs the extra [adios]")
    moment = "after" if place == "is in the step" else "before"
    with struck(tmp_path, monkeypatch, "courier", COURIER[place], moment, number, UP, "adios") as run:
        run.reached("two")
        run.open("two")
        result = finished(run)
    assert balanced(result.summary["samples"]) and result.summary["lost"] == []
    way = result.summary["bulk"]["x"]
    if number == signal.SIGKILL:
        assert way["use"] == "inline" and result.steps_of("learned")
    else:  # most runs are over before a courier that stopped is given up
        assert way["use"] == "adios" or "has done nothing" in way["why"]
