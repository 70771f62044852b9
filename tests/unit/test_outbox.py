"""The outbox: every Block arrives, whichever way it goes, and every way that does not come up is replaced, and said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from coupler.bulks import folder, growing, shared
from coupler.bulks.bulk import Bulk
from coupler.bulks.choice import ADIOS_BYTES, FAR, SMALL_BYTES, BulkRules, choose, outlook
from coupler.bulks.outbox import IN_PLACE_BYTES, Outbox
from coupler.bulks.shared import RingReader
from coupler.errors import LinkError
from schemas import wire
from schemas.fields import Block

BIG = SMALL_BYTES // 8


def state(value: float, count: int = BIG) -> dict[str, Block]:
    ids = np.arange(count, dtype=np.int64)
    return {
        "x": Block(np.full(BIG, value), (0,)),
        "p": Block(np.full((count, 2), value, np.float32), (), ids),
        "s": Block(np.array(value), ()),
    }


class Pair:
    """An outbox and what its receiver sees."""

    def __init__(self, path: Path, use: str = "auto", **changes: object) -> None:
        self.outbox = Outbox(BulkRules(use=use), folder=path, stem="rank-0", slots=4, **changes)  # type: ignore[arg-type]
        self.outbox.near = ""
        self.receiver = Bulk(Outbox(BulkRules()), RingReader(path))
        self.key = 0

    def send(self, blocks: dict[str, Block], free: bool = True) -> dict[str, Block]:
        parcel = self.outbox.put(0, 0.0, blocks)
        self.key += 1
        self.outbox.sent(parcel, self.key)
        found = wire.blocks_of(parcel.table, parcel.frames, 1 << 30, self.receiver.fetch)
        found = {name: Block(np.array(b.array), b.offset, b.ids) for name, b in found.items()}
        if free:
            self.outbox.free(self.key)
        return found


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.outbox.close()
    assert not list(tmp_path.glob("rank-0-*"))
    del made.outbox, made.receiver


def arrived(found: dict[str, Block], sent: dict[str, Block]) -> bool:
    return all(np.array_equal(found[name].array, block.array) for name, block in sent.items()) and len(found) == len(
        sent
    )


@pytest.mark.parametrize(
    ("rules", "nbytes", "near", "adios", "use", "why"),
    [
        (BulkRules(), SMALL_BYTES - 1, "", "", "inline", "less than 4096 bytes"),
        (BulkRules(), SMALL_BYTES, "", "", "shared", "both sides are on one node"),
        (BulkRules(), ADIOS_BYTES, FAR, "", "adios", "the other side is on another node"),
        (BulkRules(), ADIOS_BYTES - 1, FAR, "", "inline", FAR),
        (BulkRules(), ADIOS_BYTES, FAR, "it is missing", "inline", FAR),
        (BulkRules(use="shared"), 1, "", "", "shared", "as the run file says"),
        (BulkRules(use="shared"), 1, FAR, "", "inline", f"not shared: {FAR}"),
        (BulkRules(use="adios"), 1, "", "", "adios", "as the run file says"),
        (BulkRules(use="adios"), 1, "", "it is missing", "inline", "not adios: it is missing"),
        (BulkRules(use="shared", fields={"x": "inline"}), 1 << 20, "", "", "inline", "as the run file says"),
    ],
)
def test_the_choice(rules: BulkRules, nbytes: int, near: str, adios: str, use: str, why: str) -> None:
    assert choose(rules, "x", nbytes, near, lambda: adios) == (use, why)
    assert all(line for line in outlook(rules, adios))


def test_blocks_arrive_by_slot_and_by_frame(pair: Pair) -> None:
    for turn in range(10):
        assert arrived(pair.send(state(float(turn))), state(float(turn)))
    assert {name: route.use for name, route in pair.outbox.routes.items()} == {
        "x": "shared",
        "p": "shared",
        "s": "inline",
    }


def test_a_field_that_grows_gets_a_larger_ring(pair: Pair, tmp_path: Path) -> None:
    assert arrived(pair.send(state(1.0), free=False), state(1.0))
    [first] = tmp_path.glob("rank-0-*")
    assert arrived(pair.send(state(2.0, 3 * BIG), free=False), state(2.0, 3 * BIG))
    assert len(list(tmp_path.glob("rank-0-*"))) == 2  # the first is still to be read
    pair.outbox.free(pair.key)
    assert not first.exists()
    assert arrived(pair.send(state(3.0, 3 * BIG + 9)), state(3.0, 3 * BIG + 9))  # there was some room to spare
    assert len(list(tmp_path.glob("rank-0-*"))) == 1


def test_with_all_slots_in_use_a_state_travels_in_frames(pair: Pair) -> None:
    for turn in range(6):
        assert arrived(pair.send(state(float(turn)), free=False), state(float(turn)))
    assert pair.outbox.framed == {"x": 2, "p": 2}
    pair.outbox.free_all()
    assert arrived(pair.send(state(9.0)), state(9.0)) and pair.outbox.framed == {"x": 2, "p": 2}


def test_a_lent_array_is_sent_where_it_lies(pair: Pair) -> None:
    plain = pair.outbox.lend("x", (BIG,), "<f8")  # before the first state nobody knows what a slot must hold
    plain[:] = 1.0
    assert arrived(pair.send({"x": Block(plain, (0,))}), {"x": Block(np.full(BIG, 1.0), (0,))})
    lent = pair.outbox.lend("x", (BIG,), "<f8")
    lent[:] = 2.0
    parcel = pair.outbox.put(1, 0.0, {"x": Block(lent, (0,))})
    [entry] = parcel.table
    [frame] = pair.receiver.fetch(entry)
    lent[0] = 7.0
    assert np.frombuffer(frame)[0] == 7.0  # there is one array
    pair.outbox.undo(parcel)
    assert pair.outbox.lend("x", (2 * BIG,), "<f8").shape == (2 * BIG,)  # too large for a slot: ordinary memory
    del lent, frame


LARGE = IN_PLACE_BYTES // 8


def framed(value: float) -> dict[str, Block]:
    return {"x": Block(np.full(LARGE, value), (0,)), "s": Block(np.array(value), ())}


def test_what_is_copied_for_frames_lies_in_memory_that_was_there(tmp_path: Path) -> None:
    pair = Pair(tmp_path, "inline")
    pair.outbox.staging = True
    small = {"x": Block(np.full(LARGE - 1, 1.0), (0,))}
    assert not pair.outbox.put(0, 0.0, small).in_place
    seen = set()
    for turn in range(12):
        blocks = framed(float(turn))
        parcel = pair.outbox.put(turn, 0.0, blocks)
        blocks["x"].array[:] = -1.0  # the caller's again
        assert parcel.in_place and (np.frombuffer(parcel.frames[0]) == turn).all()
        seen.add(np.frombuffer(parcel.frames[0]).__array_interface__["data"][0])
        pair.outbox.sent(parcel, turn + 1)
        pair.outbox.free(turn + 1)
    assert len(seen) == 4
    wandering = {"p": Block(np.ones((LARGE, 3), ">f4"), (), np.arange(LARGE, dtype=np.int64))}
    assert arrived(pair.send(wandering), wandering) and pair.outbox.put(1, 0.0, wandering).in_place
    pair.outbox.close()


def test_a_lent_array_that_travels_in_frames_is_sent_where_it_lies(tmp_path: Path) -> None:
    pair = Pair(tmp_path, "inline")
    parcel = pair.outbox.put(0, 0.0, framed(0.0))
    assert not parcel.in_place and not parcel.slots  # the Link copies
    pair.outbox.staging = True
    plain = pair.outbox.lend("x", (LARGE,), "<f8")  # before the first state nobody knows what a slot must hold
    plain[:] = 1.0
    assert arrived(pair.send({**framed(1.0), "x": Block(plain, (0,))}), framed(1.0))
    lent = pair.outbox.lend("x", (LARGE,), "<f8")
    lent[:] = 2.0
    parcel = pair.outbox.put(1, 0.0, {**framed(2.0), "x": Block(lent, (0,))})
    assert parcel.in_place and np.shares_memory(np.frombuffer(parcel.frames[0]), lent)
    pair.outbox.sent(parcel, 100)
    kept = [pair.outbox.put(2, 0.0, framed(3.0)) for _ in range(4)]
    assert [one.in_place for one in kept] == [True, True, True, False]  # there are four slots
    assert np.frombuffer(kept[-1].frames[0])[0] == 3.0
    pair.outbox.free(100)
    assert not pair.outbox.put(3, 0.0, framed(4.0)).in_place  # it was read, but somebody still uses the array
    del lent
    assert pair.outbox.put(3, 0.0, framed(4.0)).in_place
    pair.outbox.close()


def test_what_never_changes_is_sent_where_it_lies(tmp_path: Path) -> None:
    pair = Pair(tmp_path, "inline", unchanging=True)
    blocks = framed(1.0)
    parcel = pair.outbox.put(0, 0.0, blocks)
    assert parcel.in_place and np.shares_memory(np.frombuffer(parcel.frames[0]), blocks["x"].array)
    pair.outbox.close()


def test_without_memory_for_slots_the_link_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int, **__: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    pair = Pair(tmp_path, "inline")
    pair.outbox.staging = True
    monkeypatch.setattr(growing.mmap, "mmap", full)
    for turn in range(3):
        lent = pair.outbox.lend("x", (LARGE,), "<f8")
        lent[:] = turn
        assert arrived(pair.send({"x": Block(lent, (0,))}), {"x": Block(np.full(LARGE, float(turn)), (0,))})
    pair.outbox.close()


def test_where_there_is_no_room_it_goes_inline_and_says_so(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared.os, "posix_fallocate", full)
    assert arrived(pair.send(state(1.0)), state(1.0)) and arrived(pair.send(state(2.0)), state(2.0))
    assert pair.outbox.routes["x"].use == "inline" and "shared memory" in pair.outbox.routes["x"].why


class Broken:
    def put(self, step: int, time: float, blocks: object) -> object:
        raise LinkError("the courier has ended")

    def close(self) -> None:
        pass


def test_a_stream_that_fails_is_replaced_and_the_state_arrives(tmp_path: Path) -> None:
    pair = Pair(tmp_path, "adios", adios=lambda: "", stream=Broken)
    assert arrived(pair.send(state(1.0)), state(1.0)) and arrived(pair.send(state(2.0)), state(2.0))
    assert pair.outbox.routes["x"] == ("inline", "not adios: the courier has ended")
    pair.outbox.close()


def test_a_package_that_is_missing_is_looked_for_once(tmp_path: Path) -> None:
    asked: list[int] = []

    def missing() -> str:
        asked.append(1)
        return "it is missing"

    pair = Pair(tmp_path, "adios", adios=missing)
    for turn in range(5):
        assert arrived(pair.send(state(float(turn))), state(float(turn)))
    assert len(asked) == 3  # once for each field: to look again in every step would stall the solver
    pair.outbox.close()


def test_a_ring_is_not_read_from_another_folder(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    pair.receiver.rings = RingReader(tmp_path / "other")
    with pytest.raises(wire.WireError, match="no ring that can be read here"):
        pair.send(state(1.0))


def test_the_token_says_whether_two_see_the_same_folder(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "a", tmp_path / "b"
    assert folder.make(ours) == folder.make(ours) != folder.make(theirs)
    assert ours.stat().st_mode & 0o777 == 0o700
    (ours / "ring").touch()
    folder.leave(ours)
    assert ours.exists()  # somebody still uses it
    (ours / "ring").unlink()
    folder.leave(ours)
    assert not ours.exists()


def test_a_folder_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(LinkError, match="another user"):
        folder.make(tmp_path / "link")


def test_what_a_killed_launcher_left_is_swept(tmp_path: Path) -> None:
    left = tmp_path / f"{folder.PREFIX}{os.geteuid()}-0"
    code = (
        "import sys; from pathlib import Path; from coupler.bulks import folder; "
        f"folder.own(Path({str(left)!r})); print(1, flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as launcher:
        assert launcher.stdout is not None and launcher.stdout.readline()
        assert folder.sweep(tmp_path) == [] and left.exists()  # its owner lives
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
    assert folder.sweep(tmp_path) == [left] and not left.exists()
