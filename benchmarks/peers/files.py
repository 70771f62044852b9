"""Files: written under another name, renamed when complete, found by looking; NumPy's own format and HDF5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.peers.exchange import IDLE_S, PATIENCE_S, Array, Peer, Place, await_any, modules_missing, respond


@dataclass(frozen=True, slots=True)
class Format:
    """How an array becomes a file and is read from one."""

    suffix: str
    save: Callable[[Path, Array], None]
    load: Callable[[Path], Array]


def save_hdf5(path: Path, array: Array) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("array", data=array)


def load_hdf5(path: Path) -> Array:
    import h5py

    with h5py.File(path, "r") as file:
        found: Array = file["array"][()]
        return found


NPY = Format(".npy", np.save, np.load)
HDF5 = Format(".h5", save_hdf5, load_hdf5)


def write(path: Path, array: Array, how: Format) -> None:
    """Writes a file that appears whole."""
    part = path.with_name("part-" + path.name)
    how.save(part, array)
    part.replace(path)


def take(path: Path, patience_s: float, how: Format) -> Array:
    """Waits for a file, reads it and removes it."""
    array = how.load(await_any([path], patience_s))
    path.unlink()
    return array


class Files:
    """Producer."""

    def __init__(self, place: Place, *, how: Format) -> None:
        self._folder, self._how, self._step = place.folder, how, 0

    def put(self, array: Array) -> None:
        """See `Exchange.put`."""
        self._step += 1
        write(self._folder / f"question-{self._step}{self._how.suffix}", array, self._how)

    def get(self) -> Array:
        """See `Exchange.get`."""
        return take(self._folder / f"answer-{self._step}{self._how.suffix}", PATIENCE_S, self._how)

    def close(self) -> None:
        """See `Exchange.close`: nothing is held."""


def consume(place: Place, *, how: Format) -> None:
    """Consumer."""
    out, step = place.empty(), 0
    while True:
        step += 1
        question = take(place.folder / f"question-{step}{how.suffix}", IDLE_S, how)
        write(place.folder / f"answer-{step}{how.suffix}", respond(question, out), how)


PEERS = (
    Peer("files, npy", partial(Files, how=NPY), partial(consume, how=NPY)),
    Peer(
        "files, HDF5",
        partial(Files, how=HDF5),
        partial(consume, how=HDF5),
        partial(modules_missing, "h5py", install="pip install 'coupler[bench]'"),
    ),
)
