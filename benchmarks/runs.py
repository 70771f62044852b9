"""Figures of whole runs: the examples over seeds, `shadow` against `off`, and how the net speedup grows.

Each run is `coupler run`, as a person would start it; its folder stays in `runs/bench`, without the stored fields.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.table import BenchmarkFailed, Row, Rows, judged, row, spread
from coupler.connect import read_case
from coupler.registry import parameters
from coupler.trace import OBSERVABLES, read, trajectory
from sim_clients.views import VIEWS, ViewStore

STREET = Path("examples/vortex_street.toml")
GUST = Path("examples/vortex_gust.toml")
RELAXATION = Path("examples/relaxation_timestep.toml")
KEPT = Path("runs/bench")
LENGTHS = (1, 3)
GRIDS = (0.75, 1.5)
SHADOW_SHARE = 3
"""`shadow` is compared over one such part of the example: long enough for a model to have taken over in `act`."""

Summary = Mapping[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a summary.

    Attributes:
        case: What it is called.
        path: Where it stands in the summary: keys and places in lists, with dots between.
        unit: Its unit; "times" for a ratio.
        at_most: Target for its magnitude, if it has one.
        at_least: The same from below.
    """

    case: str
    path: str
    unit: str = "1"
    at_most: float | None = None
    at_least: float | None = None


HANDED_OVER = (
    Figure("learned fraction", "learned_fraction"),
    Figure("first hand-over", "first_handover_step", "step"),
    Figure("largest error", "error.max"),
    Figure("coverage of the bound", "horizon_error.coverage"),
    Figure("stall, median", "time.stall_p50_s", "s"),
    Figure("wall time", "time.wall_s", "s"),
    Figure("wall time, all-direct", "time.reference_wall_s", "s"),
)
STEADY = (
    Figure("net speedup", "net_speedup", "times", at_least=3.0),
    Figure("error, first 40 periods", "error.periods.max_first_40", at_most=0.02),
    Figure("error beyond, shift removed", "error.periods.max_aligned_beyond", at_most=0.02),
    Figure("phase shift beyond", "error.periods.max_shift_periods", "period", at_most=0.05),
    Figure("periods after hand-over", "error.periods.periods_after_handover", "period"),
    *(
        Figure(f"{name}, {steps}", f"observables.{observable}.{where}.{key}", at_most=limit)
        for name, observable, key, limit in (
            ("Strouhal number", "lift", "frequency", 0.01),
            ("mean drag", "drag", "mean", 0.01),
            ("lift amplitude", "lift", "amplitude", 0.03),
        )
        for steps, where in (("all steps", "difference"), ("learned steps", "difference_learned_only"))
    ),
)
ANNOUNCED = (
    Figure("net speedup", "net_speedup", "times", at_least=1.5),
    Figure("direct after the change", "changes.0.delay_steps", "step", at_most=1.0),
    Figure("learned steps across it", "changes.0.learned_steps_kept", "step", at_most=0.0),
    Figure("learned again at", "changes.0.relearned_at_step", "step", at_most=math.inf),
)
UNANNOUNCED = (
    Figure("net speedup", "net_speedup", "times"),
    Figure("change found after", "changes.0.delay_steps", "step", at_most=math.inf),
    Figure("learned steps kept beyond it", "changes.0.learned_steps_kept", "step", at_most=0.0),
    Figure("rewinds", "rewinds", "1", at_least=1.0),
    Figure("learned again at", "changes.0.relearned_at_step", "step", at_most=math.inf),
)
TIMESTEP = (
    Figure("time per evaluation over fixed dt", "judged.over_fixed", "times", at_least=3.0),
    Figure("the same over a PI controller", "judged.over_controller", "times", at_least=0.8),
    Figure("deviation from the exact", "judged.deviation"),
    Figure("steps", "steps", "step"),
    Figure("wall time", "time.wall_s", "s"),
)


# ------------------------------------------------------------------------------------------------------- the groups


def street(seeds: Sequence[int], say: Say) -> Rows:
    """The steady wake over seeds."""
    return over_seeds("street", STREET, (*STEADY, *HANDED_OVER), seeds, say)


def gust(seeds: Sequence[int], say: Say) -> Rows:
    """The announced gust over seeds."""
    return over_seeds("gust", GUST, (*ANNOUNCED, *HANDED_OVER), seeds, say)


def hidden(seeds: Sequence[int], say: Say) -> Rows:
    """The gust that nobody announces, over seeds."""
    sets = ["simulation.announce=false"]
    return over_seeds("hidden", GUST, (*UNANNOUNCED, *HANDED_OVER), seeds, say, sets)


def relaxation(seeds: Sequence[int], say: Say) -> Rows:
    """The learned dt over seeds, against the largest safe fixed dt and a PI controller at equal error."""
    return over_seeds("relaxation", RELAXATION, TIMESTEP, seeds, say, judge=judge_dt)


def shadow(seeds: Sequence[int], say: Say) -> Rows:
    """Values in which a `shadow` run differs from an `off` run of the same steps: there must be none."""
    seed, steps = seeds[0], steps_of(STREET) // SHADOW_SHARE
    walls: dict[str, float] = {}
    for mode in ("off", "shadow"):
        say(f"{STREET}, seed {seed}, {steps} steps, mode {mode} ...")
        summary = run_case(STREET, fresh(f"{mode}-{seed}"), [f"run.steps={steps}", f"run.mode={mode}"], seed=seed)
        walls[mode] = summary["time"]["wall_s"]
    tried = len(summary["models"])
    folders = [KEPT / f"{mode}-{seed}" for mode in ("off", "shadow")]
    differing, compared = differences(*folders)
    for folder in folders:
        slim(folder)
    bitwise = spread("shadow, values unlike off", {seed: differing}, unit="values", against="mode off")
    extra = {"steps": steps, "compared": compared, "models": tried}
    wall = row("shadow, wall time", against="mode off", ratio=walls["shadow"] / walls["off"], steps=steps)
    return [judged(bitwise | extra, "high", at_most=0.0), wall]


def growth(seeds: Sequence[int], say: Say) -> Rows:
    """Net speedup against run length and grid, one seed."""
    seed, steps = seeds[0], steps_of(STREET)
    rows = []
    for times in LENGTHS:
        summary = kept(STREET, f"length{times}-{seed}", [f"run.steps={times * steps}"], say, seed)
        rows.append(grown(f"{times} x the steps", summary))
    rows[-1] = judged(rows[-1], "ratio", at_least=10.0)
    settings = read_table(STREET)["simulation"]
    for factor in GRIDS:
        sets = [f"simulation.{key}={value}" for key, value in scaled(settings, factor).items()]
        rows.append(grown(f"{factor:g} x the cells each way", kept(STREET, f"grid{factor:g}-{seed}", sets, say, seed)))
    return rows


# ------------------------------------------------------------------------------------------------------ many seeds


def over_seeds(
    name: str,
    case: Path,
    figures: Sequence[Figure],
    seeds: Sequence[int],
    say: Say,
    sets: Sequence[str] = (),
    judge: Callable[[Path, Summary], Summary] = lambda _, summary: summary,
) -> Rows:
    """Runs a case with each seed and makes a row of each figure.

    Args:
        name: Name of the run folders.
        case: Run file.
        figures: What to take from the summaries.
        seeds: Seeds.
        say: Takes lines that tell how far it is.
        sets: Changes of the run file.
        judge: Adds to a summary what the run folder says beyond it.
    """
    summaries = {}
    for seed in seeds:
        folder = f"{name}-{seed}"
        summaries[seed] = judge(KEPT / folder, kept(case, folder, sets, say, seed))
    return tabulate(figures, summaries)


def tabulate(figures: Sequence[Figure], summaries: Mapping[int, Summary]) -> Rows:
    """A row of each figure over the seeds."""
    rows = []
    for figure in figures:
        values = {seed: _number(at(summary, figure.path)) for seed, summary in summaries.items()}
        if figure.at_most is not None:
            values = {seed: None if value is None else abs(value) for seed, value in values.items()}
        made = spread(figure.case, values, unit=figure.unit, against="all-direct run" if figure.unit == "times" else "")
        if figure.at_most is not None:
            made = judged(made, "high", at_most=figure.at_most)
        elif figure.at_least is not None:
            made = judged(made, "low", at_least=figure.at_least)
        rows.append(made)
    return rows


def at(summary: Any, path: str) -> Any:
    """What stands at a path of keys and places in lists with dots between; None when there is no such place."""
    for part in path.split("."):
        if isinstance(summary, Mapping):
            summary = summary.get(part)
        elif isinstance(summary, list) and part.isdigit() and int(part) < len(summary):
            summary = summary[int(part)]
        else:
            return None
    return summary


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


# --------------------------------------------------------------------------------------------------------- one run


def kept(case: Path, name: str, sets: Sequence[str], say: Say, seed: int) -> Summary:
    """Runs a case with its reference, keeps its folder under a name, and says how it went."""
    say(f"{' '.join([str(case), *sets])}, seed {seed} ...")
    summary = run_case(case, fresh(name), sets, reference=True, seed=seed)
    slim(KEPT / name)
    speedup, error = summary.get("net_speedup"), at(summary, "error.max")
    say(
        f"  net speedup {'-' if speedup is None else f'{speedup:.2f}'}, largest error "
        f"{'-' if error is None else f'{error:.2e}'}, {summary['time']['wall_s']:.0f} s"
    )
    return summary


def run_case(
    case: Path, out: Path, sets: Sequence[str] = (), *, reference: bool = False, seed: int | None = None
) -> Summary:
    """Runs `coupler run` and reads its summary; what it wrote to the screen goes to a log beside `out`.

    Raises:
        BenchmarkFailed: The case is not there, or the run failed.
    """
    read_table(case)
    argv = [sys.executable, "-m", "launch.cli", "run", str(case), "--out", str(out)]
    argv += [part for change in sets for part in ("--set", change)]
    argv += (["--reference"] if reference else []) + ([] if seed is None else ["--seed", str(seed)])
    out.parent.mkdir(parents=True, exist_ok=True)
    log = out.with_name(f"{out.name}.log")
    with log.open("wb") as screen:
        code = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=screen, stderr=screen, check=False).returncode
    if code:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise BenchmarkFailed(f"{' '.join(argv[2:])} ended with code {code}: {' '.join(lines[-3:]) or 'no output'}")
    summary: Summary = json.loads((out / "summary.json").read_text("utf-8"))
    return summary


def fresh(name: str) -> Path:
    """A folder's path under `KEPT`, with nothing there."""
    shutil.rmtree(KEPT / name, ignore_errors=True)
    return KEPT / name


def slim(folder: Path) -> None:
    """Removes the stored fields of a run folder, which are most of it."""
    for views in (folder / VIEWS, folder / "reference" / VIEWS):
        shutil.rmtree(views, ignore_errors=True)


# ------------------------------------------------------------------------------------------- what the groups derive


def judge_dt(folder: Path, summary: Summary) -> Summary:
    """The summary with what the learned dt achieved against its baselines."""
    from sim_clients.relaxation_baselines import compare

    spec = read_case(folder)
    observed = trajectory(read(folder / OBSERVABLES))
    return {**summary, "judged": compare(observed, mu=spec.simulation.settings["mu"], seed=spec.run.seed)}


def differences(one: Path, other: Path) -> tuple[int, int]:
    """Records of observables and bytes of stored fields that two runs do not share, and how many were compared."""
    series = [{r["step"]: r["values"] for r in trajectory(read(folder / OBSERVABLES))} for folder in (one, other)]
    pairs = [(series[0].get(step), series[1].get(step)) for step in series[0].keys() | series[1].keys()]
    differing, compared = sum(a != b for a, b in pairs), len(pairs)
    ranks = {int(path.name.split("rank")[1].split(".")[0]) for path in (one / VIEWS).glob("*.npz")}
    for rank in sorted(ranks):
        stores = [ViewStore(folder, rank) for folder in (one, other)]
        shared = set(stores[0].steps()) & set(stores[1].steps())
        if not shared:
            raise BenchmarkFailed(f"{one} and {other} stored no field at the same step")
        for step in shared:
            fields = [store.read(step) for store in stores]
            for name in fields[0]:
                a, b = (np.frombuffer(field[name].tobytes(), np.uint8) for field in fields)
                differing += int(np.count_nonzero(a != b)) if a.shape == b.shape else len(a)
                compared += len(a)
    return differing, compared


def read_table(case: Path) -> dict[str, Any]:
    """A run file as it stands there.

    Raises:
        BenchmarkFailed: It is not there.
    """
    if not case.exists():
        raise BenchmarkFailed(f"{case} is not there; benchmarks run in the root of the repository")
    return tomllib.loads(case.read_text("utf-8"))


def steps_of(case: Path) -> int:
    """Coupling steps of a run file."""
    return int(read_table(case)["run"]["steps"])


def scaled(settings: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Settings of the same flow on a grid finer by a factor, with as many coupling steps to a shedding period."""
    from sim_clients.vortex_street import VortexStreet

    default = parameters(VortexStreet)["sponge_length"].default
    found: dict[str, Any] = {key: round(factor * settings[key]) for key in ("nx", "ny", "substeps")}
    found["diameter"] = factor * settings["diameter"]
    found["center"] = [factor * c for c in settings["center"]]
    found["sponge_length"] = round(factor * settings.get("sponge_length", default))
    return found


def grown(case: str, summary: Summary) -> Row:
    """A row of the net speedup of one run."""
    return row(
        case,
        against="all-direct run",
        ratio=summary["net_speedup"],
        unit="times",
        steps=summary["steps"],
        learned_fraction=summary["learned_fraction"],
        wall_s=summary["time"]["wall_s"],
        reference_wall_s=summary["time"]["reference_wall_s"],
        largest_error=at(summary, "error.max"),
    )
