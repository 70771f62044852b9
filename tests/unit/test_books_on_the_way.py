"""The books of rank 0 are written on the way, for a rank that is killed before it can close them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import Spinner

from coupler import recording
from coupler.contracts import Advice
from coupler.ledger import Ledger
from coupler.recording import FLUSH_S, LEDGER, RunRecorder, books_are_closed
from coupler.testing.clock import ManualClock

WAY = {"use": "inline", "why": "small", "in_frames": 0}


class Kept:
    """A recorder whose books change, and whose time stands still."""

    def __init__(self, folder: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorder, self.folder = RunRecorder(folder), folder
        self.clock, self.ledger, self.produced, self.asked = ManualClock(100.0), Ledger(ManualClock()), 0, 0
        monkeypatch.setattr(recording, "perf_counter", self.clock)
        self.recorder.keep_books(self._books)

    def _books(self) -> recording.Books:
        self.asked += 1
        return self.ledger, {"produced": self.produced}, {"u": WAY}

    def step(self, seconds: float = 1.0) -> None:
        self.produced += 1
        self.clock.advance(seconds)
        sim = Spinner()
        fields = {spec.name: spec for spec in sim.fields()}
        self.recorder.decided(sim.snapshot(), fields, Advice.direct("fine", 0.5), 0.0, self.clock())

    def written(self) -> dict[str, Any]:
        assert self.folder is not None
        content: dict[str, Any] = json.loads((self.folder / LEDGER).read_text("utf-8"))
        return content


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    kept = Kept(tmp_path, monkeypatch)
    yield kept
    monkeypatch.undo()
    kept.recorder.close(kept.ledger, {}, {})


def test_they_are_there_from_the_first_step_on(kept: Kept, tmp_path: Path) -> None:
    assert not books_are_closed(tmp_path)
    for number in (1, 2, 3):
        kept.step()
        assert kept.written()["samples"] == {"produced": number}
    assert kept.written()["bulk"] == {"u": WAY}
    assert not books_are_closed(tmp_path) and kept.written()["time"]["direct_steps"] == 0
    kept.recorder.close(kept.ledger, {"produced": 9}, {})
    assert books_are_closed(tmp_path) and kept.written()["samples"] == {"produced": 9}
    kept.recorder.flush()
    assert books_are_closed(tmp_path) and kept.asked == 3


def test_they_are_not_written_all_the_time(kept: Kept) -> None:
    for _ in range(100):
        kept.step(0.01)
        kept.recorder.flush()
    assert 1 <= kept.asked <= 1 + 1.0 / FLUSH_S


def test_on_a_slow_disk_they_are_written_seldom(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole = recording.write_whole

    def slow(path: Path, content: str) -> None:
        kept.clock.advance(0.05)
        write_whole(path, content)

    monkeypatch.setattr(recording, "write_whole", slow)
    for _ in range(100):
        kept.step(0.5)
    assert 5 <= kept.asked <= 11  # one part in a hundred of the time


def test_a_full_disk_does_not_end_the_run_on_the_way(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def full(path: Path, content: str) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(recording, "write_whole", full)
    kept.step()
    assert kept.asked == 1 and not (tmp_path / LEDGER).exists()


def test_other_ranks_write_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(None, monkeypatch)
    kept.step()
    kept.recorder.flush()
    assert list(tmp_path.iterdir()) == []
