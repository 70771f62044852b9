"""Runs that end before their time: the ranks are gone, the books are there, the folder is clean."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from launched import Launched, launched, lives, until
from test_failures import case
from test_places import STRIKE, balanced

from coupler.bulks.folder import sweep
from launch.processes import is_stopped

LACKS = "Rank 0 ended before it could close its books: they lack its last moments."
MPI = pytest.mark.mpi
RUNGS = pytest.mark.parametrize(("rung", "ranks"), [("local", 1), pytest.param("mpi", 2, marks=MPI)])


def kept(summary: dict[str, Any]) -> bool:
    """Whether there are books. How far they reach depends on how busy the machine is."""
    return bool(summary["samples"]["produced"] and balanced(summary["samples"]))


@MPI
@pytest.mark.parametrize("rank", [0, 1])
def test_books_when_one_rank_fails(tmp_path: Path, rank: int) -> None:
    """Rank 1 fails while rank 0 waits for it in MPI, where no Python runs."""
    settings = case(tmp_path)
    settings["simulation"] |= {"fault": "raise", "fault_step": 150, "fault_rank": rank}
    with launched(tmp_path, rung="mpi", ranks=2, **settings) as run:
        run.ranks(2)
        result = run.ended()
    assert result.code == 1 and "the rotor broke" in result.summary["cause"]
    assert kept(result.summary)
    assert result.summary.get("books") == (LACKS if rank else None)


@MPI
def test_books_when_all_ranks_fail_alike(tmp_path: Path) -> None:
    """They agree on the fault of one; rank 0 is still saying goodbye when the other has done so."""
    settings = case(tmp_path)
    settings["simulation"] |= {"fault": "nan", "fault_step": 150, "fault_rank": 1}
    with launched(tmp_path, rung="mpi", ranks=2, **settings) as run:
        run.ranks(2)
        result = run.ended()
    assert result.code == 1 and "is not finite" in result.summary["cause"]
    assert kept(result.summary) and "books" not in result.summary


@RUNGS
def test_books_when_a_rank_is_killed(tmp_path: Path, rung: str, ranks: int) -> None:
    with launched(tmp_path, rung=rung, ranks=ranks, **case(tmp_path, (200, "one"))) as run:
        run.reached("one")
        os.kill(run.ranks(ranks)[-1], signal.SIGKILL)
        result = run.ended()
    assert result.code == 1 and kept(result.summary) and result.summary["books"] == LACKS


@RUNGS
def test_books_after_ctrl_c(tmp_path: Path, rung: str, ranks: int) -> None:
    with launched(tmp_path, rung=rung, ranks=ranks, **case(tmp_path, (200, "one"))) as run:
        run.reached("one")
        run.ranks(ranks)
        run.popen.send_signal(signal.SIGINT)
        result = run.ended()
    assert result.code == 130 and kept(result.summary)


def test_why_there_are_no_books(tmp_path: Path) -> None:
    with launched(tmp_path, rung="local", simulation={"fault": "constructor"}) as run:
        run.ranks(1)
        result = run.ended()
    assert result.summary["samples"]["produced"] is None
    assert result.summary["books"] == "Rank 0 ended before it had written any books."


@MPI
def test_launcher_killed_while_mpi_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank waits in MPI_Init, where no Python runs, for one that is not there yet and gets SIGTERM."""
    armed = tmp_path / "armed"
    order = {"who": "simulation", "place": "coupler.ranks:MpiRanks.__init__", "moment": "before"}
    order |= {"signal": signal.SIGSTOP, "armed": str(armed)}
    monkeypatch.setenv("COUPLER_STRIKE", json.dumps(order))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(STRIKE), os.environ.get("PYTHONPATH")])))
    armed.touch()
    with launched(tmp_path, rung="mpi", ranks=2, steps=10**9) as run:
        ranks = run.ranks(2)
        until(lambda: any(map(is_stopped, ranks)), "one rank to stop before MPI_Init")
        (waiting,) = (rank for rank in ranks if not is_stopped(rank))
        until(lambda: "libmpi" in Path(f"/proc/{waiting}/maps").read_text("utf-8"), "the other to come to MPI_Init")
        run.family()
        run.popen.kill()
        until(lambda: not any(map(lives, run.seen)), "all of the run to end")
    sweep()  # as the next run does


def contacts(run: Launched) -> list[Path]:
    return list(run.folder.glob("link/*.sst"))


@pytest.mark.parametrize("end", ["interrupted", "rank killed", "server stopped"])
def test_contact_file_of_a_stream(tmp_path: Path, end: str) -> None:
    pytest.importorskip("adios2", reason="needs the extra [adios]")
    with launched(tmp_path, rung="local", **case(tmp_path, (200, "one"), bulk={"use": "adios"})) as run:
        run.reached("one")
        run.ranks(1)
        until(lambda: contacts(run), "the stream")
        if end == "interrupted":
            run.popen.send_signal(signal.SIGINT)
        elif end == "rank killed":
            os.kill(run.ranks(1)[0], signal.SIGKILL)
        else:
            os.kill(run.server(), signal.SIGSTOP)
            run.open("one")
        result = run.ended()
    assert result.code == {"interrupted": 130, "rank killed": 1, "server stopped": 0}[end]
    assert not (run.folder / "link").exists()
