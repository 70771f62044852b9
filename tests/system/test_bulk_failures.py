"""A side that dies or stops while Blocks lie in shared memory or in frames: the run goes on and leaves nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from cases import ran
from launched import launched, lives, until
from test_failures import STEPS, case, finished

WAYS = pytest.mark.parametrize("use", ["shared", "inline"])


def balanced(samples: dict[str, object]) -> bool:
    dropped = samples["dropped"]
    assert isinstance(dropped, dict)
    rest = [samples[key] for key in ("admitted", "in_flight", "retained")]
    return samples["produced"] == sum(rest) + sum(dropped.values())  # type: ignore[arg-type]


@WAYS
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("place", ["the host integrates", "before the Advice"])
def test_server(tmp_path: Path, place: str, number: signal.Signals, use: str) -> None:
    asks = place == "before the Advice"
    task = {"gate": str(tmp_path / "asked"), "gate_step": 150} if asks else None
    settings = case(tmp_path, (300, "one"), (340, "two"), task=task, bulk={"use": use})
    with launched(tmp_path, rung="local", output={"every": 10}, **settings) as run:
        run.reached("asked" if asks else "one")
        server = run.server()
        os.kill(server, number)
        if number == signal.SIGKILL:
            until(lambda: not lives(server), "the server to go")
        run.open("one")
        run.reached("two")  # the host came here without the server
        if number == signal.SIGSTOP:
            run.open("asked")
            os.kill(server, signal.SIGCONT)
        run.open("two")
        result = finished(run)
    assert balanced(result.summary["samples"])
    assert bool(result.summary["lost"]) == (number == signal.SIGKILL)


@WAYS
@pytest.mark.parametrize("place", ["the host integrates", "before the Advice"])
def test_simulation_killed(tmp_path: Path, place: str, use: str) -> None:
    asks = place == "before the Advice"
    task = {"gate": str(tmp_path / "asked"), "gate_step": 150} if asks else None
    settings = case(tmp_path, (300, "one"), task=task, bulk={"use": use}, output={"every": 10})
    with launched(tmp_path, rung="local", **settings) as run:
        run.reached("asked" if asks else "one")
        os.kill(run.ranks(1)[0], signal.SIGKILL)
        run.open("asked")
        result = run.ended()
    assert result.code == 1 and "killed by SIGKILL" in result.summary["cause"]
    assert result.summary["steps"] < STEPS


def test_trajectory_is_the_same_whichever_way_the_blocks_go(tmp_path: Path) -> None:
    runs = [ran(tmp_path / use, mode="shadow", steps=100, bulk={"use": use}) for use in ("shared", "inline")]
    assert all(result.code == 0 for result in runs)
    assert runs[0].observables == runs[1].observables
    first, second = (result.views() for result in runs)
    assert first.keys() == second.keys() and first
    assert all(np.array_equal(first[n][k], second[n][k], equal_nan=True) for n in first for k in first[n])
    assert runs[0].summary["samples"] == runs[1].summary["samples"]
