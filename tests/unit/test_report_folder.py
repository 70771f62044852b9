"""Reading run folders, whole and torn, and making their fields ready to draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coupler.trace import Observed, Record, Recorder
from launch.report import fields
from launch.report.rundir import Shown, View, read_folder, read_view


def save(path: Path, name: str, array: np.ndarray, offset: tuple[int, ...], origin: int = 0) -> Path:
    np.savez(path, **{name: array, f"offset.{name}": np.array(offset, np.int64), "origin": origin, "time": 0.5})
    return path


def test_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    folder = read_folder(tmp_path)
    said = " ".join(folder.missing)
    for name in ("summary.json", "fields.json", "trace.msgpack", "observables.msgpack", "case.toml"):
        assert name in said
    assert folder.history.kept == () and folder.reference is None and folder.errors is None


def test_a_torn_last_record_is_left_out_and_garbage_is_counted(tmp_path: Path) -> None:
    out = Recorder(tmp_path / "trace.msgpack")
    for step in range(3):
        out.write(Record(step=step, time=0.5 * step, dt=0.5, action="direct", to_step=step + 1))
    out.close()
    whole = (tmp_path / "trace.msgpack").read_bytes()
    (tmp_path / "trace.msgpack").write_bytes(whole[:-7])
    assert len(read_folder(tmp_path).records) == 2
    (tmp_path / "trace.msgpack").write_bytes(whole + b"\x05\x81\xa4step\xa1x")
    folder = read_folder(tmp_path)
    assert len(folder.records) == 3
    assert "trace.msgpack holds 2 records of another form; they are left out." in folder.missing
    (tmp_path / "trace.msgpack").write_bytes(whole + b"\xc1")
    assert any("damaged after 3 records" in line for line in read_folder(tmp_path).missing)


@pytest.mark.parametrize("content", ["{", "[1]", '{"view": 3}', '{"view": [{"name": 1}]}'])
def test_broken_json_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "fields.json").write_text(content)
    folder = read_folder(tmp_path)
    assert folder.viewed == ()
    assert any(line.startswith("fields.json") and "missing" not in line for line in folder.missing)


def test_superseded_observables_are_kept_apart(tmp_path: Path) -> None:
    out = Recorder(tmp_path / "observables.msgpack")
    for step, value in ((1, 1.0), (2, 2.0), (3, 3.0), (2, 2.5)):
        out.write(Observed(step=step, time=0.0, origin=0, values={"lift": value}))
    out.close()
    folder = read_folder(tmp_path)
    assert [r["values"]["lift"] for r in folder.observed] == [1.0, 2.5]
    assert [r["values"]["lift"] for r in folder.superseded] == [2.0, 3.0]


def test_views_of_all_ranks_are_put_together(tmp_path: Path) -> None:
    whole = np.arange(24.0).reshape(2, 3, 4)
    files = (
        save(tmp_path / "00000004.rank0.npz", "velocity", whole[:, :, :1], (0, 0, 0), origin=3),
        save(tmp_path / "00000004.rank1.npz", "velocity", whole[:, :, 1:], (0, 0, 1), origin=3),
    )
    view = read_view(files, 4, ())
    assert view.origin == 3 and list(view.arrays) == ["velocity"]
    np.testing.assert_array_equal(view.arrays["velocity"], whole)
    half = read_view(files[1:], 4, (Shown("velocity", "<f8", (2, 3, 4)),)).arrays["velocity"]
    assert np.isnan(half[:, :, 0]).all() and (half[:, :, 1:] == whole[:, :, 1:]).all()
    with pytest.raises(ValueError, match="does not fit"):
        read_view(files, 4, (Shown("velocity", "<f8", (2, 3, 3)),))


def test_torn_and_incomplete_views_are_said(tmp_path: Path) -> None:
    views = tmp_path / "views"
    views.mkdir()
    for step in (2, 4):
        for rank in (0, 1):
            save(views / f"{step:08d}.rank{rank}.npz", "u", np.ones((3, 2)), (0, 2 * rank))
    (views / "00000004.rank1.npz").write_bytes(b"PK\x03\x04")
    folder = read_folder(tmp_path)
    assert {step: len(files) for step, files in folder.views.items()} == {2: 2, 4: 1}
    assert "00000004.rank1.npz is torn; it is left out." in folder.missing
    assert any("1 views lack the part of a rank, first at step 4" in line for line in folder.missing)


def test_vorticity_of_a_rotating_body_of_fluid_is_twice_its_rate() -> None:
    y, x = np.mgrid[0:20, 0:30].astype(float)
    np.testing.assert_allclose(fields.vorticity(np.stack([-0.3 * (y + 1), 0.3 * (x + 1)])), 0.6)


def test_vorticity_next_to_a_body_is_left_out() -> None:
    velocity = np.ones((2, 12, 20))
    velocity[:, 5:7, 5:7] = 0.0
    turning = fields.vorticity(velocity)
    assert np.isnan(turning[4:8, 5:7]).all() and np.isnan(turning[5:7, 4:8]).all()
    assert np.nansum(np.abs(turning)) == 0.0


@pytest.mark.parametrize(
    ("shape", "kind", "form", "size"),
    [
        ((2, 20, 50), "cell", "image", (20, 50)),
        ((20, 50, 2), "cell", "image", (20, 50)),
        ((2, 50, 20), "cell", "image", (20, 50)),
        ((3, 20, 50, 30), "cell", "image", (30, 50)),
        ((64, 9, 20), "cell", "image", (20, 64)),
        ((50, 20), "cell", "image", (20, 50)),
        ((200,), "cell", "curves", (1, 200)),
        ((3, 200), "cell", "curves", (3, 200)),
        ((40, 3), "particle", "points", (40, 2)),
        ((2,), "cell", "few", (2,)),
        ((), "scalar", "few", (1,)),
    ],
)
def test_every_shape_has_a_form(shape: tuple[int, ...], kind: str, form: str, size: tuple[int, ...]) -> None:
    view = View(0, 0, {"a": np.random.default_rng(0).random(shape)})
    seen = fields.look(view, Shown("a", "<f8", shape, kind=kind))
    assert (seen.form, seen.values.shape) == (form, size)


def test_a_plane_vector_is_shown_before_all_else() -> None:
    arrays = {"mass": np.ones(()), "pressure": np.ones((9, 9)), "velocity": np.ones((2, 9, 9))}
    chosen = fields.choose((), arrays)
    assert chosen is not None and chosen.name == "velocity"
    assert fields.choose((), {}) is None
