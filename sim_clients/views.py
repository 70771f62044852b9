"""Views: what a person looks at, stored at chosen steps of a run, one small file a rank."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coupler.contracts import Simulation, Viewable
from coupler.files import write_whole
from schemas.fields import Array, Snapshot, with_role

VIEWS = "views"
IDS = "ids."
"""Begin of the name under which a view holds the ids of a field's particles."""


def view(simulation: Simulation) -> Snapshot:
    """This rank's part of what the simulation shows: its `view()`, or its state fields."""
    if isinstance(simulation, Viewable):
        return simulation.view()
    snapshot = simulation.snapshot()
    names = [spec.name for spec in with_role(tuple(simulation.fields()), "state")]
    # A state that lacks a field is shown as it is; the next exchange ends the run and says so.
    states = {name: snapshot.blocks[name] for name in names if name in snapshot.blocks}
    return Snapshot(snapshot.step, snapshot.time, snapshot.dt, states)


class ViewStore:
    """The `views` folder of a run, for one rank."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Args: folder: Run folder (or its `reference` folder). rank: This rank."""
        self._folder, self._rank = folder / VIEWS, rank
        self._folder.mkdir(parents=True, exist_ok=True)

    def write(self, simulation: Simulation, origin: int, step: int | None = None) -> None:
        """Stores the present view. `origin` is 0 for a direct state, else the model version.

        It stands under its own step unless another is given.
        """
        shown = view(simulation)
        arrays: dict[str, Array] = {"origin": np.array(origin), "time": np.array(shown.time)}
        for name, block in shown.blocks.items():
            arrays[name] = block.array
            arrays[f"offset.{name}"] = np.array(block.offset, dtype=np.int64)
            if block.ids is not None:
                arrays[f"{IDS}{name}"] = block.ids
        write_whole(
            self._path(shown.step if step is None else step), lambda file: np.savez(file, allow_pickle=False, **arrays)
        )

    def rewound(self, step: int) -> None:
        """Removes views of later steps: they left the trajectory."""
        for path in self._folder.glob(f"*.rank{self._rank}.npz"):
            if int(path.name.split(".")[0]) > step:
                path.unlink()

    def steps(self) -> list[int]:
        """Steps stored by this rank, in order."""
        return sorted(int(path.name.split(".")[0]) for path in self._folder.glob(f"*.rank{self._rank}.npz"))

    def read(self, step: int) -> dict[str, Array]:
        """The stored arrays of a step."""
        with np.load(self._path(step), allow_pickle=False) as stored:
            return dict(stored)

    def time(self, step: int) -> float:
        """Simulated time of a stored step."""
        with np.load(self._path(step), allow_pickle=False) as stored:
            return float(stored["time"])

    def _path(self, step: int) -> Path:
        return self._folder / f"{step:08d}.rank{self._rank}.npz"
