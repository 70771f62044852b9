"""What a rank does that fails: it lets others have their last words, and ends the job."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from coupler.errors import FailedElsewhere
from coupler.ranks import Ranks
from coupler.recording import LEDGER, books_are_closed
from sim_clients import __main__ as client


class Failing(Ranks):
    """One of two ranks; its abort notes whether the books were closed by then."""

    size = 2

    def __init__(self, rank: int, folder: Path) -> None:
        self.rank, self.folder = rank, folder
        self.handled, self.closed = signal.getsignal(signal.SIGTERM), False
        self.causes: list[str] = []

    def abort(self, code: int) -> None:
        self.closed = books_are_closed(self.folder)
        self.causes = [failure["cause"] for failure in client.failures(self.folder / client.RESULT)]


class Time:
    """Passes when somebody sleeps; the other rank closes its books, and tells its cause, after a while."""

    def __init__(self, folder: Path, after: float) -> None:
        self.now, self.folder, self.after = 0.0, folder, after

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now > self.after:
            (self.folder / LEDGER).write_text(json.dumps({"closed": True}), "utf-8")
            client.note_failure(self.folder / client.RESULT, 9, "the rotor broke")


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def failed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    after: float,
    *words: str,
    error: Exception | None = None,
) -> tuple[Failing, Time]:
    ranks, time = Failing(rank, tmp_path), Time(tmp_path, after)
    (tmp_path / "reference").mkdir()
    (tmp_path / LEDGER).write_text(json.dumps({"closed": False}), "utf-8")

    def broken(*_: object) -> None:
        raise error or ArithmeticError("the rotor broke")

    def made() -> Failing:
        ranks.handled = signal.getsignal(signal.SIGTERM)
        return ranks

    monkeypatch.setattr(client, "_mpi_ranks", made)
    monkeypatch.setattr(client, "run", broken)
    monkeypatch.setattr(client, "run_reference", broken)
    monkeypatch.setattr(client, "time", time)
    spec = SimpleNamespace(run=SimpleNamespace(path=(), rung="mpi"))
    monkeypatch.setattr(client.connect, "read_case", lambda _: spec)
    monkeypatch.setattr(sys, "argv", ["sim_clients", str(tmp_path), *words])
    assert client.main() == 1
    return ranks, time


def test_it_waits_for_the_books_of_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks, time = failed(tmp_path, monkeypatch, 1, 0.5)
    assert ranks.closed and time.now < 0.6


def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks, time = failed(tmp_path, monkeypatch, 1, 1e9)
    assert not ranks.closed and client.LAST_WORDS_S <= time.now < client.LAST_WORDS_S + 0.1


@pytest.mark.parametrize(("rank", "words"), [(0, ()), (1, ("--reference",))])
def test_nobody_waits_where_there_is_nothing_to_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, words: tuple[str, ...]
) -> None:
    assert failed(tmp_path, monkeypatch, rank, 0.5, *words)[1].now == 0.0


def test_a_rank_that_heard_of_a_failure_lets_the_other_tell_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = FailedElsewhere("At step 3 another rank found its state unusable.")
    ranks, time = failed(tmp_path, monkeypatch, 0, 0.5, error=heard)
    assert ranks.causes == [f"FailedElsewhere: {heard}", "the rotor broke"] and time.now < 0.6


def test_it_does_not_wait_for_ever_for_that_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks, time = failed(tmp_path, monkeypatch, 0, 1e9, error=FailedElsewhere("Another rank failed."))
    assert len(ranks.causes) == 1 and client.LAST_WORDS_S <= time.now < client.LAST_WORDS_S + 0.1


def test_sigterm_is_taken_once_mpi_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    ranks, _ = failed(tmp_path, monkeypatch, 1, 0.5)
    assert ranks.handled is before and signal.getsignal(signal.SIGTERM) is client._on_sigterm


def test_books_that_were_never_written_are_not_closed(tmp_path: Path) -> None:
    assert not books_are_closed(tmp_path)
