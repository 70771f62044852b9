"""Slots: states in one mapped file, written again only after every trainer let go."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest

from coupler.errors import LinkError
from ml_servers import from_case
from ml_servers import slots as slots_module
from ml_servers.slots import Slots
from schemas.fields import FieldSpec
from schemas.run import BulkSection, RunSection, RunSpec, SimulationSection

FIELDS = (
    FieldSpec("u", "<f4", (5, 3), "m/s"),
    FieldSpec("none", "<f8", (0, 2), "1"),
    FieldSpec("flags", "|u1", (7,), "1"),
    FieldSpec("energy", "<f8", (), "1", "scalar", "observable"),
)


def filled(slots: Slots, value: float, holders: int) -> int | None:
    arrays = slots.acquire()
    arrays["u"][...] = value
    return slots.filled({**arrays, "energy": np.array(value)}, holders)


def test_both_sides_see_the_same_values_and_generations(tmp_path: Path) -> None:
    owner = Slots(tmp_path / "slots", FIELDS, 3, create=True)
    reader = Slots(tmp_path / "slots", FIELDS, 3, create=False)
    for value in (1.0, 2.0, 3.0, 4.0):
        slot = filled(owner, value, 1)
        assert slot is not None
        seen = reader.arrays(slot)
        assert (seen["u"] == value).all() and seen["energy"] == value and seen["none"].shape == (0, 2)
        assert reader.generation(slot) == owner.generation(slot) >= 1
        owner.release(slot)
    assert all(array.ctypes.data % 64 == 0 for array in owner.arrays(2).values() if array.size)


def test_a_slot_is_free_when_every_holder_let_go(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots", FIELDS, 1, create=True)
    slot = filled(slots, 1.0, 2)
    assert slot == 0 and filled(slots, 9.0, 1) is None  # full: fresh arrays, which are no slot's
    assert (slots.arrays(0)["u"] == 1.0).all()
    slots.release(0)
    assert filled(slots, 9.0, 1) is None
    slots.release(0)
    slots.release(0)  # a trainer that came back may release again
    slots.release(77)
    before = slots.generation(0)
    assert filled(slots, 2.0, 1) == 0 and slots.generation(0) == before + 1
    assert filled(slots, 9.0, 1) is None


def test_what_nobody_wants_and_what_is_given_up_is_free_at_once(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots", FIELDS, 1, create=True)
    assert filled(slots, 1.0, 0) == 0
    slots.discard(slots.acquire())
    assert filled(slots, 1.0, 0) == 0


def test_a_lent_array_is_kept_so_that_no_other_gets_its_identity(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots", FIELDS, 1, create=True)
    lost = weakref.ref(slots.acquire()["u"])
    gc.collect()
    assert lost() is not None
    fresh = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in FIELDS}
    assert slots.filled(fresh, 1) is None


def test_a_file_that_is_not_this_runs_is_refused(tmp_path: Path) -> None:
    Slots(tmp_path / "slots", FIELDS, 3, create=True)
    for fields, count in ((FIELDS, 2), (FIELDS[:1], 3)):
        with pytest.raises(LinkError, match="not the training buffer"):
            Slots(tmp_path / "slots", fields, count, create=False)
    with pytest.raises(LinkError):
        Slots(tmp_path / "missing", FIELDS, 3, create=False)


def test_where_memory_runs_out_the_pool_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots(tmp_path / "slots", FIELDS, 3, create=True)
    assert filled(slots, 1.0, 1) is not None

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(slots_module.os, "posix_fallocate", full)
    assert filled(slots, 2.0, 1) is None and slots.no_room == 2
    slots.release(2)
    assert filled(slots, 3.0, 1) == 2  # what is there goes on
    slots.close()


def test_only_the_owner_removes_the_file(tmp_path: Path) -> None:
    owner = Slots(tmp_path / "slots", FIELDS, 1, create=True)
    Slots(tmp_path / "slots", FIELDS, 1, create=False).close()
    assert (tmp_path / "slots").exists()
    owner.close()
    owner.close()
    assert not (tmp_path / "slots").exists()


@pytest.mark.parametrize(
    ("free", "given", "expected"),
    [(64 << 20, None, 32 << 20), (4 << 30, None, 512 << 20), (64 << 20, 1 << 20, 1 << 20)],
)
def test_the_training_buffer_leaves_room_for_the_rings(
    monkeypatch: pytest.MonkeyPatch, free: int, given: int | None, expected: int
) -> None:
    monkeypatch.setattr(from_case, "free_bytes", lambda: free)
    run = RunSection(name="r", steps=1, mode="off", rung="inline")
    spec = RunSpec(run=run, simulation=SimulationSection(use="s"), bulk=BulkSection(buffer_bytes=given))
    assert from_case.buffer_bytes(spec) == expected
