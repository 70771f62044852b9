"""Cases of the outside plug-ins, and what their run folders tell."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from coupler.trace import OBSERVABLES, TRACE, read, trajectory
from launch.check import check
from launch.run import run
from schemas.run import RunSpec, dump, from_table

HERE = str(Path(__file__).parent)


def spec_of(
    folder: Path,
    *,
    rung: str = "inline",
    mode: str = "act",
    steps: int = 200,
    use: str = "rotor:Rotor",
    ranks: int = 1,
    simulation: dict[str, Any] | None = None,
    task: dict[str, Any] | None = None,
    tasks: list[dict[str, Any]] | None = None,
    **sections: dict[str, Any],
) -> RunSpec:
    """Writes a case beside the run folder and reads it back as `coupler run` does."""
    table = {
        "run": {"name": "rotor", "steps": steps, "mode": mode, "rung": rung, "seed": 3, "path": [HERE]},
        "simulation": {"use": use, "ranks": ranks, **(simulation or {})},
        "task": tasks if tasks is not None else [{"use": "linear:Linear", **(task or {})}],
        "link": {"deadline_s": 20.0},
        "switch": {"tolerance": 0.01, "overhead": 1e6},
        "output": {"views": 10},
    }
    for name, section in sections.items():
        table[name] = {**table.get(name, {}), **section}
    path = folder.parent / f"{folder.name}.toml"
    path.write_text(dump(from_table(table)), encoding="utf-8")
    return check(path)


class Ran:
    """A run that is over: its exit code and what its folder holds."""

    def __init__(self, folder: Path, code: int, said: str) -> None:
        self.folder, self.code, self.said = folder, code, said

    @property
    def summary(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "summary.json").read_text("utf-8"))
        return content

    @property
    def trace(self) -> list[dict[str, Any]]:
        return list(read(self.folder / TRACE))

    @property
    def observables(self) -> list[dict[str, Any]]:
        return trajectory(read(self.folder / OBSERVABLES))

    def steps_of(self, action: str) -> list[int]:
        return [record["step"] for record in self.trace if record["action"] == action]

    def says(self, sentence: str) -> bool:
        """Whether the launcher showed a sentence; a terminal wraps lines anywhere."""
        return "".join(sentence.split()) in "".join(self.said.split())

    def reasons(self) -> set[str]:
        return {record["reason"] for record in self.trace}

    def views(self) -> dict[str, dict[str, Any]]:
        found = {}
        for path in sorted((self.folder / "views").glob("*.npz")):
            with np.load(path, allow_pickle=False) as arrays:
                found[path.name] = dict(arrays)
        return found


def ran(folder: Path, **case: Any) -> Ran:
    """Runs a case in this process (its server and ranks may be others) and collects what came of it."""
    said = io.StringIO()
    code = run(spec_of(folder, **case), folder, console=Console(file=said, width=200))
    return Ran(folder, code, said.getvalue())
