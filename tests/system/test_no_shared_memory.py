"""Shared memory that is full, read-only or taken: a run does without, and leaves nothing there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cases import ran, spec_of

from coupler.bulks import folder as bulk_folder
from coupler.bulks.folder import PREFIX, free_bytes, make, own, shared_folder, usable
from coupler.errors import LinkError
from ml_servers import __main__ as servers


def place(tmp_path: Path) -> Path:
    return tmp_path / f"{PREFIX}{os.geteuid()}-a"


def fails_for(monkeypatch: pytest.MonkeyPatch, begin: str, number: int) -> None:
    """Writing a file of a name fails once it is there, as on a full disk."""
    write_text = Path.write_text

    def full(path: Path, *arguments: Any, **more: Any) -> int:
        if path.name.startswith(begin):
            path.touch()
            raise OSError(number, os.strerror(number))
        return write_text(path, *arguments, **more)

    monkeypatch.setattr(Path, "write_text", full)


def test_no_room_for_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_for(monkeypatch, "token", errno.ENOSPC)
    with pytest.raises(LinkError, match="cannot be used for shared memory: No space left on device"):
        make(place(tmp_path))
    assert list(tmp_path.iterdir()) == [] and not usable(place(tmp_path))


def test_a_folder_in_use_stays_when_its_token_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_for(monkeypatch, "token", errno.ENOSPC)
    place(tmp_path).mkdir()
    (place(tmp_path) / "up-0-1").touch()
    with pytest.raises(LinkError):
        make(place(tmp_path))
    assert [path.name for path in place(tmp_path).iterdir()] == ["up-0-1"]


def test_no_room_for_the_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_for(monkeypatch, "owner", errno.ENOSPC)
    with pytest.raises(LinkError, match="cannot be used for shared memory: No space left on device"):
        own(place(tmp_path))
    assert list(tmp_path.iterdir()) == []


class Room:
    """What statvfs says."""

    def __init__(self, free: int, flag: int = 0) -> None:
        self.f_bavail, self.f_frsize, self.f_flag = free, 1, flag


@pytest.mark.parametrize(("room", "free"), [(Room(5000), 5000), (Room(1 << 30, os.ST_RDONLY), 0)])
def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: Room, free: int) -> None:
    monkeypatch.setattr(bulk_folder.os, "statvfs", lambda _: room)
    assert free_bytes() == free_bytes(tmp_path) == free
    assert not usable(place(tmp_path))  # too little to be worth the name


@contextmanager
def taken(folder: Path) -> Iterator[Path]:
    """A file lies where the run's folder in shared memory would be."""
    path = shared_folder(folder)
    path.touch()
    try:
        yield path
    finally:
        path.unlink()


@pytest.mark.parametrize(("rung", "use"), [("inline", "auto"), ("threads", "shared"), ("local", "shared")])
def test_a_run_without_shared_memory(tmp_path: Path, rung: str, use: str) -> None:
    """It learns: the states reach the trainer by the run folder."""
    simulation = {"pace_s": 0.001, "slow_until": str(tmp_path / "leads")} if rung != "inline" else {}
    settings = {"simulation": simulation, "task": {"marks": str(tmp_path)}, "bulk": {"use": use}}
    with taken(tmp_path / "run") as path:
        result = ran(tmp_path / "run", rung=rung, steps=300, **settings)
        assert path.read_bytes() == b""
    assert result.code == 0 and result.summary["status"] == "finished", result.said
    assert result.says("cannot be used for shared memory: File exists. Arrays travel in frames.")
    assert result.steps_of("learned") and result.summary["lost"] == []
    assert not (result.folder / "link").exists()
    assert {route["use"] for route in result.summary["bulk"].values()} == {"inline"}


def test_where_the_training_buffer_lies(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    spec = spec_of(folder)
    folder.mkdir()
    with taken(folder):
        slots, room = servers.place_of_slots(spec, folder)
    assert slots == folder / "link" and slots.stat().st_mode & 0o777 == 0o700
    assert 0 < room <= servers.BUFFER_BYTES
    with taken(folder):
        slots, room = servers.place_of_slots(spec_of(folder, bulk={"buffer_bytes": 12345}), folder)
    assert room == 12345
