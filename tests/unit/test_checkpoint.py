"""Checkpoints: whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors import SafetensorError

from ml_servers import checkpoint

STATE = {
    "weights": np.arange(12, dtype="<f4").reshape(3, 4),
    "version": np.array(7),
    "empty": np.zeros((0, 3)),
    "mask": np.array([True, False]),
}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        (a.dtype, a.shape, a.tobytes()) == (other[k].dtype, other[k].shape, other[k].tobytes()) for k, a in one.items()
    )


@pytest.mark.parametrize("durable", [False, True])
def test_a_state_comes_back_bitwise(tmp_path: Path, durable: bool) -> None:
    state = STATE | {"turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "nan": np.array([np.nan, -0.0])}
    checkpoint.write(tmp_path / "a", state, durable=durable)
    checkpoint.write(tmp_path / "a", state, durable=durable)
    assert same(checkpoint.read(tmp_path / "a"), state)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_torn_file_is_a_value_error_wherever_it_was_torn(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "a", STATE)
    whole = (tmp_path / "a").read_bytes()
    for size in {*range(0, len(whole), 7), len(whole) - 1, 8, 9}:
        (tmp_path / "torn").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="torn is damaged"):
            checkpoint.read(tmp_path / "torn")


@given(st.data())
def test_a_damaged_head_is_a_value_error_or_another_state(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    checkpoint.write(folder / "a", STATE)
    whole = bytearray((folder / "a").read_bytes())
    head = 8 + int.from_bytes(whole[:8], "little")
    whole[data.draw(st.integers(0, head - 1))] = data.draw(st.integers(0, 255))
    (folder / "a").write_bytes(whole)
    try:
        found = checkpoint.read(folder / "a")
    except ValueError:
        return
    assert all(isinstance(array, np.ndarray) for array in found.values())


def test_a_writer_that_dies_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.write(tmp_path / "a", STATE)

    def dies(_path: Path, _target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path / "a", {"weights": np.zeros(2)})
    assert same(checkpoint.read(tmp_path / "a"), STATE)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_state_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError, match="object"):
        checkpoint.write(tmp_path / "a", {"bad": np.array([object()])})
    assert list(tmp_path.iterdir()) == []


@given(npst.arrays(st.sampled_from(["<f4", "<f8", "<i8", "|u1"]), npst.array_shapes(min_dims=0, max_dims=3)))
def test_any_array(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    checkpoint.write(path, {"a": array})
    assert same(checkpoint.read(path), {"a": array})
