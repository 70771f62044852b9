"""One run from start to summary: prepares the folder, starts what the plan says, watches, compares, sums up."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coupler import connect
from coupler.bulks import folder as bulk_folder
from coupler.channel import NO_SERVER
from coupler.errors import CouplerError, LinkError
from coupler.files import sweep_parts, write_whole
from coupler.protocol.client import UNUSABLE
from coupler.recording import LEDGER, books_are_closed
from launch import one_process
from launch.check import crowded
from launch.judged import advised_error, limited_errors
from launch.plan import Process, find_mpiexec, plan
from launch.processes import signal_name
from launch.progress import Line, Progress, last_said
from launch.report.summary import summarise
from launch.report.tables import compared
from launch.report.words import beyond, limits_in_words
from launch.signals import Signals
from launch.supervise import Outcome, Supervisor, last_line
from ml_servers.recorder import BOOKS
from ml_servers.server import SUMMARY as SERVER
from schemas import run as run_file
from schemas.run import RunSpec
from sim_clients.__main__ import RESULT, failures, note_failure
from sim_clients.reference import REFERENCE

SUMMARY = "summary.json"
INTERRUPTED = 130
LEFT = "The simulation ended with code 0 before its last step: something in it calls exit, or stops the program."
STOPPED = "Interrupted while the reference ran; the coupled run had finished."


def run(spec: RunSpec, folder: Path, *, reference: bool = False, console: Console | None = None) -> int:
    """Runs a case and writes its run folder.

    Args:
        spec: The resolved case.
        folder: Run folder; must not hold a run yet.
        reference: Whether to run the same case all-direct afterwards, compare, and write the report.
        console: Where to show progress.

    Returns:
        Exit code: 0 finished, 1 failed, 130 interrupted. The cause is in `summary.json` and was shown.

    Raises:
        CouplerError: The folder holds a run already, or cannot be used.
    """
    console = console or Console(stderr=True)
    prepare(spec, folder)
    with Signals() as signals:
        return _run(spec, folder, reference, console, signals)


def _run(spec: RunSpec, folder: Path, reference: bool, console: Console, signals: Signals) -> int:
    began = time.perf_counter()
    console.print(f"[bold]{spec.run.name}[/]: {length(spec)}, mode {spec.run.mode}, rung {spec.run.rung}")
    if sentence := crowded(spec):
        console.print(f"[yellow]{sentence}[/]", highlight=False)
    outcome = _coupled(spec, folder, console, signals)
    if outcome.code == 0 and not outcome.interrupted and not (folder / RESULT).exists():
        note_failure(folder / RESULT, 0, LEFT)
        outcome.code = 1
    wall_s = time.perf_counter() - began
    reference_wall_s, problem = None, ""
    if reference and outcome.code == 0 and not outcome.interrupted:
        reference_wall_s, problem = _reference(spec, folder, console, signals)
    sweep_parts(folder)
    summary = summarise(folder, _facts(spec, folder, outcome, wall_s, reference_wall_s))
    if problem:
        summary |= {"status": "stopped" if problem == STOPPED else "failed", "cause": problem}
    write_whole(folder / SUMMARY, json.dumps(summary, indent=1))
    _conclude(summary, console)
    if outcome.interrupted or problem == STOPPED:
        return INTERRUPTED
    if outcome.code != 0 or problem:
        return 1
    if reference:
        from launch.report import page  # it draws, which takes a second to import

        console.print(f"report: {escape(str(page.write(folder)))}", highlight=False, soft_wrap=True)
    return 0


def prepare(spec: RunSpec, folder: Path) -> None:
    """Makes an empty run folder with the resolved case in it (mode 0700, for the sockets and keys).

    Raises:
        CouplerError: There is a run in it already.
    """
    if (folder / connect.CASE).exists():
        raise CouplerError(f"{folder} holds a run already; give another --out, or remove it.")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "logs").mkdir(exist_ok=True)
    except OSError as error:
        raise CouplerError(f"{folder} cannot be made ({error.strerror}); give another --out.") from error
    if spec.link.curve:
        from coupler.links.security import make_keys

        make_keys(folder / connect.KEYS)
    write_whole(folder / connect.CASE, run_file.dump(spec))


def _coupled(spec: RunSpec, folder: Path, console: Console, signals: Signals) -> Outcome:
    bulk_folder.sweep()
    if spec.run.mode != "off":
        _own_shared_memory(folder, console)
    progress = Progress(folder, spec.run.steps, console, spec.run.end_time)
    try:
        if spec.run.rung in ("inline", "threads"):
            with progress:
                return _here(spec, folder, console, signals)
        with Supervisor() as supervisor:
            *servers, simulation = sorted(_planned(spec, folder), key=_is_simulation)
            for process in servers:
                supervisor.start(process)
            child = supervisor.start(simulation)
            with progress:
                return supervisor.watch(
                    child,
                    progress.tick,
                    notice=lambda line: console.print(f"[yellow]{escape(line)}[/]"),
                    asked=lambda: signals.asked,
                    met=lambda: _has_met(folder),
                )
    except CouplerError as error:  # a process could not be started
        note_failure(folder / RESULT, 0, f"{type(error).__name__}: {error}")
        return Outcome(code=1)
    finally:
        _remove_meeting_places(folder)
        bulk_folder.remove(bulk_folder.shared_folder(folder))


def _own_shared_memory(folder: Path, console: Console) -> None:
    """Without shared memory a run is slower, and no more than that."""
    try:
        bulk_folder.own(bulk_folder.shared_folder(folder))
    except LinkError as error:
        console.print(f"[yellow]{escape(str(error))}. Arrays travel in frames.[/]", highlight=False)


def _remove_meeting_places(folder: Path) -> None:
    """A killed process leaves its socket, its stream's contact file or its training buffer."""
    shutil.rmtree((folder / connect.SOCKET).parent, ignore_errors=True)
    path = connect.socket_path(folder)
    path.unlink(missing_ok=True)
    if not path.is_relative_to(folder.resolve()) and path.parent.exists():  # it had a directory to itself
        path.parent.rmdir()


def _here(spec: RunSpec, folder: Path, console: Console, signals: Signals) -> Outcome:
    """Runs the one-process rungs; their failures are reported as those of a process would be."""
    log = (folder / "logs" / "server.log").open("a", encoding="utf-8")
    sys.path[:0] = [entry for entry in spec.run.path if entry not in sys.path]
    outcome = Outcome(code=0)
    with log:
        try:
            with signals.raised():
                facts = one_process.run(spec, folder, lambda line: print(line, file=log, flush=True), outcome.lost)
        except KeyboardInterrupt:
            return Outcome(interrupted=True, lost=outcome.lost)
        except (Exception, SystemExit) as error:  # whatever the plug-ins raise is the cause of this run's failure
            note_failure(folder / RESULT, 0, f"{type(error).__name__}: {error}")
            console.print_exception(max_frames=4)
            return Outcome(code=1, lost=outcome.lost)
    write_whole(folder / RESULT, json.dumps(facts))
    for sentence in outcome.lost:
        console.print(f"[yellow]{escape(sentence)}[/]")
    return outcome


def _reference(spec: RunSpec, folder: Path, console: Console, signals: Signals) -> tuple[float | None, str]:
    """Runs the reference; its wall time without the comparisons, and what went wrong."""
    (folder / REFERENCE).mkdir(exist_ok=True)
    alone = spec if spec.run.rung == "mpi" else with_rung(spec, "local")
    planned = next(p for p in _planned(alone, folder) if _is_simulation(p))
    log = folder / "logs" / "reference.log"
    process = replace(planned, argv=(*planned.argv, "--reference"), log=log)
    console.print("Running the reference: the same case all-direct, or what the simulation compares with ...")
    began = time.perf_counter()
    with Line(console) as line, Supervisor() as supervisor:
        child = supervisor.start(process)
        outcome = supervisor.watch(child, tick=lambda: line.show(last_said(log)), asked=lambda: signals.asked)
    wall_s = time.perf_counter() - began
    result = folder / REFERENCE / RESULT
    if outcome.interrupted:
        return None, STOPPED
    if outcome.code != 0 or not result.exists():
        return None, f"The reference failed: {_cause(folder / REFERENCE, outcome, log)}"
    told = _read(result)
    if told["compared_s"] is None:
        return None, ""
    if spec.run.rung in ("inline", "threads"):  # the coupled run started no process either
        return told["startup_s"] + told["loop_s"], ""
    return wall_s - told["compared_s"], ""


def _facts(
    spec: RunSpec, folder: Path, outcome: Outcome, wall_s: float, reference_wall_s: float | None
) -> dict[str, Any]:
    client, server, simulation = (_read(folder / name) for name in (LEDGER, SERVER, RESULT))
    ledger = client.get("time", {})
    books = client.get("samples", {})
    served = server.get("samples", {})
    switch = server.get("switch", {})
    stopped = outcome.interrupted or simulation.get("stopped")
    status = "stopped" if stopped else "finished" if outcome.code == 0 else "failed"
    return {
        "status": status,
        "cause": None
        if status == "finished"
        else simulation.get("stopped") or _cause(folder, outcome, folder / "logs" / "simulation.log"),
        "case": spec.run.name,
        "seed": spec.run.seed,
        "mode": spec.run.mode,
        "simulated_time": simulation.get("time"),
        "tolerance": spec.switch.tolerance,
        "dt_error": advised_error(spec),
        "limits": limited_errors(spec, ledger.get("rejected_steps")),
        "time": {
            **{key: ledger.get(key) for key in ("direct_step_s", "learned_step_s", "stall_p50_s", "stall_p99_s")},
            "train_s": server.get("train_s"),
            "wall_s": wall_s,
            "reference_wall_s": reference_wall_s,
        },
        "library_s": ledger.get("stall_s"),
        "samples": books | {"superseded": served.get("superseded"), "server": served},
        "books": _doubt(client),
        "bulk": client.get("bulk", {}),
        "models": server.get("models", []),
        "horizon_error": server.get("horizon_error", {}),
        "switch": switch,
        "failures": server.get("failures", {}),
        "recording": _recording(spec, server, _read(folder / BOOKS)),
        "lost": outcome.lost,
        "ledger": {key: ledger[key] for key in ("direct_s", "learned_s", "stall_s") if key in ledger}
        | ({"startup_s": simulation["startup_s"]} if "startup_s" in simulation else {}),
        "rung": spec.run.rung,
        "ranks": spec.simulation.ranks,
        "changes": simulation.get("changes") or None,
        "judgement": _read(folder / REFERENCE / RESULT).get("judgement"),
        "torch_in_simulation": simulation.get("torch_loaded"),
    }


def _doubt(client: dict[str, Any]) -> str | None:
    """Why the books of rank 0 are not all that there is to tell; None where they are."""
    if not client:
        return "Rank 0 ended before it had written any books."
    if not client["closed"]:
        return "Rank 0 ended before it could close its books: they lack its last moments."
    return None


def _recording(spec: RunSpec, server: dict[str, Any], books: dict[str, Any]) -> dict[str, Any] | None:
    """States in the recording, and those that are missing there; None when nothing was to be recorded."""
    if spec.output.record is None:
        return None
    told, states = server.get("recording", {}), books.get("states")
    lost = None if states is None or not told else told["missed"] + told["given"] - states
    return {"states": states, "missed": lost, "failure": told.get("failure") or None}


def _cause(folder: Path, outcome: Outcome, log: Path) -> str:
    if outcome.interrupted:
        return "Interrupted."
    told = [failure for failure in failures(folder / RESULT) if not failure["cause"].startswith("Ended")]
    if told:
        return str(min(told, key=lambda failure: bool(failure["elsewhere"]))["cause"])
    code = outcome.code or 0
    if code < 0:
        return f"The simulation was killed by {signal_name(-code)}; see logs/{log.name}."
    last = f" Its last words: {line}." if (line := last_line(log)) else ""
    return f"The simulation ended with code {code} and no cause of its own; a rank may have been killed.{last}"


def _has_met(folder: Path) -> bool:
    """Whether a simulation that has ended ever heard of a server, as its books say."""
    books = _read(folder / LEDGER).get("samples", {}) if books_are_closed(folder) else {}
    dropped = set(books.get("dropped", {})) - {NO_SERVER}
    return bool(books.get("admitted") or books.get("in_flight") or dropped)


def _conclude(summary: dict[str, Any], console: Console) -> None:
    if summary["status"] != "finished":
        console.print(f"[red]{summary['status']}[/]: {escape(str(summary['cause']))}", highlight=False)
        return
    parts = [f"{100 * (summary['learned_fraction'] or 0.0):.1f} % of the simulated time was learned"]
    if summary.get("net_speedup"):
        parts.append(f"net speedup {summary['net_speedup']:.2f}")
    error = (summary.get("error") or {}).get("max")
    if error is not None:
        parts.append(f"largest trajectory error {error:.2e} of the rms fluctuation")
    dt = summary.get("dt_error") or {}
    if dt.get("n"):
        most = beyond(dt["max"] / dt["tolerance"])
        share = _plain(100 * dt["missed"])
        parts.append(f"{share} % of the steps missed their tolerance, at most {most} times it")
    parts += limits_in_words(summary)
    console.print(f"[green]finished[/]: {'; '.join(parts)}", highlight=False)
    if summary.get("unverified_steps"):
        console.print(f"[yellow]{summary['unverified_steps']} learned steps were not covered by an audit.[/]")
    for name, value in (summary.get("judgement") or {}).items():
        if isinstance(value, list | dict):  # the table comes last; curves are for the report
            continue
        console.print(f"  {name}: {value:.4g}" if isinstance(value, float) else f"  {name}: {value}", highlight=False)
    if rows := (summary.get("judgement") or {}).get("table"):
        console.print(_side_by_side(rows))
    if sentence := mostly_dropped(summary.get("samples") or {}):
        console.print(f"[yellow]{escape(sentence)}[/]", highlight=False)
    if missed := (summary.get("recording") or {}).get("missed"):
        console.print(f"[yellow]{missed} states are missing in the recording: the recorder did not keep up.[/]")
    for name, reason in summary.get("failures", {}).items():
        console.print(f"[yellow]Task {name} was out of use: {escape(str(reason))}[/]")


def _side_by_side(rows: list[dict[str, Any]]) -> Table:
    """The runs that a simulation compared, one a row."""
    _, head, cells, _ = compared(rows)
    table = Table(*head, box=None, padding=(0, 2))
    for row in cells:
        table.add_row(*map(escape, row))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def mostly_dropped(samples: Mapping[str, Any]) -> str:
    """That most states of a run came to nothing, and why, as a sentence; empty where most did not."""
    dropped, produced = samples.get("dropped") or {}, samples.get("produced") or 0
    lost = sum(dropped.values())
    if 2 * lost <= produced:
        return ""
    reason = max(dropped, key=dropped.__getitem__)
    said = (samples.get("server") or {}).get("unusable") or {}
    why = f": {max(said, key=said.__getitem__)}" if reason == UNUSABLE and said else ""
    return f"{lost} of {produced} states were dropped, most of them for one reason: {(reason + why).rstrip('.')}."


def _plain(value: float) -> str:
    """Two digits, or a whole number where it has more: 3.2, 100 and not 1e+02."""
    return f"{value:.2g}" if abs(value) < 99.5 else f"{value:.0f}"


def _planned(spec: RunSpec, folder: Path) -> tuple[Process, ...]:
    return plan(spec, folder, sys.executable, find_mpiexec() or "mpiexec")


def length(spec: RunSpec) -> str:
    """How long the run is, in words."""
    if spec.run.end_time is None:
        return f"{spec.run.steps} steps"
    return f"to time {spec.run.end_time:g} in at most {spec.run.steps} steps"


def with_rung(spec: RunSpec, rung: run_file.Rung) -> RunSpec:
    """The same case on another rung."""
    return msgspec.structs.replace(spec, run=msgspec.structs.replace(spec.run, rung=rung))


def _is_simulation(process: Process) -> bool:
    return process.role == "simulation"


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
