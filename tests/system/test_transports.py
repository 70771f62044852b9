"""The same run by every transport: shadow leaves the trajectory bitwise alone, and act decides the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from cases import Ran, ran

from coupler.bulks.adios_engine import available
from launch.plan import find_mpiexec

WAYS = ("shared", "inline", *([] if available() else ["adios"]))
STREET = {
    "nx": 67,
    "ny": 32,
    "diameter": 6.0,
    "center": [17.3, 16.2],
    "reynolds": 40.0,
    "inflow_speed": 0.1,
    "substeps": 60,
    "lateral": "periodic",
    "sponge_length": 16,
}
PROPAGATOR = [{"use": "propagator", "models": ["affine"], "min_snapshots": 40}]


def street(folder: Path, use: str, mode: str) -> Ran:
    ways = {"use": use, "fields": {"lift": "inline"}}
    return ran(
        folder,
        rung="mpi",
        ranks=2,
        mode=mode,
        steps=2500,
        use="vortex_street",
        simulation=STREET,
        tasks=PROPAGATOR,
        bulk=ways,
    )


def seen(run: Ran) -> dict[str, dict[str, bytes]]:
    return {step: {name: array.tobytes() for name, array in view.items()} for step, view in run.views().items()}


@pytest.mark.mpi
@pytest.mark.skipif(find_mpiexec() is None, reason="no mpiexec")
def test_shadow_is_bitwise_the_uncoupled_run_by_every_transport(tmp_path: Path) -> None:
    alone = street(tmp_path / "off", "auto", "off")
    assert alone.code == 0, alone.said
    for use in WAYS:
        run = street(tmp_path / use, use, "shadow")
        assert run.code == 0, run.said
        ways = {field: way["use"] for field, way in run.summary["bulk"].items()}
        assert ways == {"populations": use, "drag": use, "inflow_speed": use, "lift": "inline"}
        assert run.summary["samples"]["admitted"] > 10
        theirs, ours = seen(run), seen(alone)
        shown = ours.keys() & theirs.keys()  # a trial shows one more
        assert len(shown) > 3 and all(theirs[step] == ours[step] for step in shown)
        assert [r["values"] for r in run.observables] == [r["values"] for r in alone.observables]


@pytest.mark.parametrize("rung", ["inline", "threads"])
def test_a_run_in_one_process_decides_the_same_by_slot_and_by_frame(tmp_path: Path, rung: str) -> None:
    runs = [ran(tmp_path / use, rung=rung, bulk={"use": use}) for use in ("shared", "inline")]
    assert all(run.code == 0 for run in runs), runs[0].said + runs[1].said
    assert {way["use"] for way in runs[0].summary["bulk"].values()} == {"shared"}
    if rung == "inline":
        stories = [[(r["step"], r["action"], r["reason"], r["bound"]) for r in run.trace] for run in runs]
        assert stories[0] == stories[1] and any(action == "learned" for _, action, *_ in stories[0])
