"""`coupler init --lammps DECK`: the case of a LAMMPS input deck, with what could not be decided said in it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

from coupler.errors import CaseError, CouplerError
from sim_clients.adapters.lammps_bars import bars_dt
from sim_clients.adapters.lammps_deck import UNITS, Command, Deck, DeckError, read_deck
from sim_clients.adapters.lammps_reading import fixes, lengths, literals, resolved

DEFAULT_DT = {
    "lj": 0.005,
    "real": 1.0,
    "metal": 0.001,
    "si": 1e-8,
    "cgs": 1e-8,
    "electron": 0.001,
    "micro": 2.0,
    "nano": 0.00045,
}
"""LAMMPS's timestep where a deck sets none, by unit style (documentation of `timestep`)."""
EVERY = 10
WINDOWS, SPANS = 50, (10, 40)
"""Share of a run that the drift looks back over, and least and most coupling steps in it; one step in shorter runs."""
_INTEGRATORS = ("nve", "nvt", "npt", "nph", "rigid", "langevin", "temp/", "press/", "bond/react", "shake", "rattle")
_STATES = ("temp", "press", "pe", "ke", "etotal", "econserve", "epair", "emol", "density", "vol", "lx", "ly", "lz")
_BATHS = ("nvt", "npt", "nph", "rigid/nvt", "rigid/npt", "rigid/nph")
_WORKERS = ("move", "deform", "addforce", "aveforce", "efield", "indent", "wall/", "spring", "heat", "ehex", "setforce")
_DRAGS = ("viscous", "viscosity", "drag", "brownian", "smd", "tmd", "gravity", "press/", "colvars", "plumed")
_WORK = dict.fromkeys((*_WORKERS, *_DRAGS), "does work on the atoms") | {
    "nve/limit": "limits how far atoms move, which costs energy",
    "momentum": "takes momentum away, and energy with it",
}
"""What fixes do with energy that no keyword counts, by the begin of their style."""
_CONTACT, _FRICTION = "takes energy away in each contact", "has friction that no keyword counts"
_DISSIPATES = dict.fromkeys(("gran/", "granular"), _CONTACT) | dict.fromkeys(
    ("dpd", "mdpd", "edpd", "tdpd", "brownian", "lubricate"), _FRICTION
)
"""What pair styles do with it, by the begin of their name."""
_SHAPES = ("", "/sphere", "/asphere", "/body", "/eff")
_MOVES = {f"{style}{shape}" for style in ("nve", "nvt", "npt", "nph") for shape in _SHAPES} | {"nve/line", "nve/tri"}
_RIGID = {f"rigid{kind}{small}" for kind in ("", "/nve", "/nvt", "/npt", "/nph") for small in ("", "/small")}
_COUNTS = {"temp/berendsen", "temp/csvr", "temp/csld", "temp/rescale", "langevin"}
_LOOKS = {"print", "property/atom", "balance", "halt", "vector", "recenter", "enforce2d", "cmap", "pair", "numdiff"}
_KEEPS = _MOVES | _RIGID | _COUNTS | _LOOKS | {"shake", "rattle"}
"""Fixes with which `etotal` or `econserve` is conserved (each fix's documentation)."""
_KEEPS_BEGIN = ("ave/", "store/", "qeq/", "reaxff/")
_FASTER = re.compile(r"/(omp|kk|kk/host|kk/device|gpu|intel|opt)$")
"""What the name of a style ends with that does the same in another way."""

CASE = """\
# A coupled run of the LAMMPS deck {input}, which stays as it is.
#
# Found: {found}.
{open}#
#     coupler check case.toml       what it would start
#     coupler run case.toml         in the folder that the file names in the deck count from

[run]
name = "{name}"
steps = {steps}{steps_why}
mode = "shadow"             # learns and scores only: bitwise the deck. "advise" lets the task choose the dt
rung = "mpi"
seed = 0                    # above 0: the value of the deck's variable `seed`

[simulation]
use = "lammps"
input = {input}
ranks = 2
{every_line}{alone}
{units_line}
particles = []              # "x", "v": also stream positions and velocities
thermo = [{thermo}]
{invariant}
[[task]]
use = "timestep"
{range}
{error}
features = [{features}]
powers = [{powers}]
order = 2.0                 # velocity Verlet

[limits]
{limits}

[output]
views = 0
"""


def init_lammps(deck: Path, folder: Path) -> list[Path]:
    """Writes `case.toml` for a deck.

    Args:
        deck: The input deck.
        folder: Made when missing.

    Returns:
        The file written.

    Raises:
        CaseError: The deck cannot be driven.
        CouplerError: The file is there already; nothing is changed in either case.
    """
    path = folder / "case.toml"
    if path.exists():
        raise CouplerError(f"{path} is there already and is not overwritten; name another folder")
    try:
        text = case_of(read_deck(str(deck), _text), str(deck))
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except DeckError as problem:
        raise CaseError([f"The deck cannot be driven: {problem}"]) from problem
    except OSError as problem:
        raise CaseError([f"{problem.filename or deck} cannot be used ({problem})"]) from problem
    return [path]


def case_of(deck: Deck, name: str) -> str:
    """The text of the case. Pure.

    Args:
        deck: The deck.
        name: Its path.

    Raises:
        DeckError: It names a unit style that LAMMPS lacks.
    """
    undecided: list[str] = []
    units = _units(deck, undecided)
    invariant, alone = _invariant(deck, undecided)
    thermo = _thermo(deck, invariant)
    every, steps, why = _length(deck, alone, undecided)
    md = _timestep(deck, deck.runs[alone], units, undecided)
    choice, limits = _bounds(every, md)
    used = (c for c in deck.named("fix") if len(c.words) > 3 and c.words[3].startswith(_INTEGRATORS))
    features = [keyword for keyword in thermo if keyword in ("temp", "press", "density")]
    powers = [keyword for keyword in features if keyword == "temp"]
    span = min(steps // WINDOWS, SPANS[1]) * every * md if md and steps >= WINDOWS * SPANS[0] else 0.0
    if invariant:
        error = f"# errors = {{ {'window_drift' if span else 'drift'} = 2e-4 }}"
        limits += "\n" + _line(error, "a step beyond is made again, if the deck can go back")
        undecided.append(
            "which drift is tolerable (task.tolerance): 2e-4 of the kinetic energy is cautious; the run in mode shadow "
            "shows the `drift` of the deck's own dt"
        )
    if bar := bars_dt(deck, deck.runs[-1]):
        undecided.append(f"another dt than the deck's, which only mode shadow keeps: {bar}")
    return CASE.format(
        input=json.dumps(name, ensure_ascii=False),
        name="".join(c if c.isalnum() or c in "_.-" else "_" for c in Path(name).name).lstrip("_.-") or "lammps",
        found=", ".join(f"fix {c.words[3]} ({c.place})" for c in used) or "no fix that moves atoms",
        open="".join(f"# Not decided: {line}.\n" for line in undecided),
        steps=steps,
        steps_why=why,
        every_line=_line(f"every = {every}", "MD steps of one coupling step"),
        alone=_alone(alone),
        units_line=f'units = "{units}"' if units else _line("# units = ...", "not decided"),
        thermo=_listed(thermo),
        invariant=_looks(invariant, every, span) if invariant else "# invariant = ...\n",
        range=choice,
        limits=limits,
        error=_error(invariant, span),
        features=_listed(features),
        powers=_listed(powers),
    )


def _text(name: str) -> str:
    """The text of a file, with its line ends as they are; comments may be in any encoding."""
    return Path(name).read_bytes().decode("utf-8-sig", "replace")


def _units(deck: Deck, undecided: list[str]) -> str:
    """The unit style, empty where it is not known."""
    for command in deck.named("units"):
        if "$" not in command.text and " ".join(command.words[1:]) not in UNITS:
            raise DeckError(f"{command.place}: {command.text!r} names no unit style; write one of {', '.join(UNITS)}")
    if not deck.units and (source := deck.units_from):
        undecided.append(f"the unit style: that of {source.text!r} ({source.place}) is known only while LAMMPS runs")
    return deck.units


def _bounds(every: int, md: float | None) -> tuple[str, str]:
    """The keys of the task that bound dt, and those of the limits."""
    if md is None:
        keys = ["# dt_min = ...", "# dt_max = ..."]
        whys = [f"not decided; of a coupling step: {every} MD steps"] * 2
    else:
        keys = [f"dt_min = {every * md / 10:g}", f"dt_max = {every * md * 4:g}"]
        whys = [
            f"of a coupling step: {every} MD steps of {md / 10:g}",
            f"{every} MD steps of {md * 4:g}; the deck has {md:g}",
        ]
    return "\n".join(map(_line, keys, whys)), "\n".join(keys)


def _looks(invariant: str, every: int, span: float) -> str:
    """How the invariant is looked at: each look makes LAMMPS evaluate it, so a long span makes do with few."""
    samples = 1 if span else every
    lines = [f'invariant = "{invariant}"', _line(f"samples = {samples}", "looks at it within a coupling step")]
    if span:
        lines.append(_line(f"span = {span:g}", "simulated time whose range is `drift`"))
    return "\n".join(lines) + "\n"


def _error(invariant: str, span: float) -> str:
    """The keys of the task that say what its error is."""
    if not invariant:
        return "\n".join(
            (
                _line("# tolerance = ...", "largest error of a coupling step"),
                _line("# error_field = ...", 'an observable that is it, or whose change is: "drift:NAME"'),
            )
        )
    lines = [
        _line("tolerance = 2e-4", "of `drift`: range of the invariant over the kinetic energy"),
        'error_field = "drift"',
    ]
    if span:
        lines += [
            _line(f"over = {span:g}", "`span`"),
            _line("follow = 0.1", "what the integrator conserves depends on dt: let dt change slowly"),
        ]
    return "\n".join(lines)


def _line(code: str, comment: str) -> str:
    return f"{code:<27} # {comment}"


def _invariant(deck: Deck, undecided: list[str]) -> tuple[str, int]:
    """The keyword that is conserved in the last run lines, and how many come before those in which it is."""
    told = [_conserved(deck, at) for at in deck.runs]
    if not told[-1][0]:
        undecided.append(f"what is conserved: {told[-1][1]}")
        return "", 0
    first = max((line + 1 for line, (keyword, _) in enumerate(told) if not keyword), default=0)
    return ("econserve" if "econserve" in [keyword for keyword, _ in told[first:]] else "etotal"), first


def _conserved(deck: Deck, at: int) -> tuple[str, str]:
    """The keyword that is conserved in a run line, as far as fixes and pair styles tell; or nothing, and why."""
    styles = [(command, _FASTER.sub("", command.words[3])) for command in fixes(deck, at)]
    last_pair = [command for command in deck.commands[:at] if command.name == "pair_style"][-1:]
    pairs = [(command, word) for command in last_pair for word in command.words[1:]]
    for command, why in (*_told(styles, _WORK), *_told(pairs, _DISSIPATES)):
        return "", f"{command.text!r} ({command.place}) {why}"
    for command, style in styles:
        if style not in _KEEPS and not style.startswith(_KEEPS_BEGIN):
            why = "is not known to keep the energy; if it does, name `invariant`, such as etotal or econserve"
            return "", f"{command.text!r} ({command.place}) {why}"
        if style.startswith(_BATHS) and (ramp := _ramp(command)):
            why = f"{style} with a ramp {ramp} ({command.place}) does not conserve econserve"
            return "", f"{why}; fix nve with fix temp/csvr does"
        if style == "langevin" and "tally" not in command.words:
            return "", f"fix langevin ({command.place}) tallies nothing; add `tally yes`"
    if not any(style in _MOVES | _RIGID for _, style in styles):
        return "", "no known fix integrates the atoms"
    baths = [style for _, style in styles if style.startswith(("temp/", "langevin", *_BATHS))]
    return ("econserve" if baths else "etotal"), ""


def _told(styles: list[tuple[Command, str]], by_prefix: Mapping[str, str]) -> list[tuple[Command, str]]:
    return [(c, why) for c, style in styles for prefix, why in by_prefix.items() if style.startswith(prefix)]


def _ramp(command: Command) -> str:
    words = command.words
    for index, word in enumerate(words[:-2]):
        if word in ("temp", "iso", "aniso", "x", "y", "z") and _differ(*words[index + 1 : index + 3]):
            return f"{words[index + 1]} to {words[index + 2]}"
    return ""


def _differ(one: str, other: str) -> bool:
    try:
        return float(one) != float(other)
    except ValueError:
        return one != other


def _thermo(deck: Deck, invariant: str) -> list[str]:
    styles = deck.named("thermo_style")
    words = styles[-1].words[2:] if styles and styles[-1].words[1:2] == ["custom"] else []
    shown = [word for word in words if word in _STATES]
    return list(dict.fromkeys(["temp", "press", *shown, *([invariant, "ke"] if invariant else [])]))


def _length(deck: Deck, alone: int, undecided: list[str]) -> tuple[int, int, str]:
    """MD steps of a coupling step, coupling steps, and a comment."""
    coupled = list(zip(deck.runs, lengths(deck), strict=True))[alone:]
    for index, length in coupled:
        if length is None:
            command = deck.commands[index]
            undecided.append(f"how long {command.text!r} ({command.place}) is; simulation.every must divide it")
    if len(coupled) > 1:
        undecided.append(
            f"where the run ends in mode advise (run.end_time): its {len(coupled)} run lines count MD steps, and with "
            "another dt each of them takes another time"
        )
    known = [length for _, length in coupled if length is not None]
    every = math.gcd(EVERY, *known)
    if len(known) < len(coupled):
        return every, 1000, "                # a guess; with run.end_time = ... the most that may be needed"
    return every, max(sum(known) // every, 1), "                # all run lines; a chosen dt ends at run.end_time"


def _alone(lines: int) -> str:
    """The key for the run lines that come before those in which an energy is conserved."""
    return "\n" + _line(f"equilibration = {lines}", "run lines that come first, uncoupled") if lines else ""


def _timestep(deck: Deck, until: int, units: str, undecided: list[str]) -> float | None:
    """The deck's dt at a run line, or LAMMPS's default; None where the unit style that tells it is not known."""
    default = DEFAULT_DT.get(units)
    before = [at for at in range(until) if deck.commands[at].name == "timestep"]
    if not before:
        if default is None:
            undecided.append("the range of dt: the deck sets no timestep, and LAMMPS's default depends on the units")
        return default
    command = deck.commands[before[-1]]
    try:
        return float(resolved(command.words[1], literals(deck.commands[: before[-1]])))
    except (IndexError, ValueError):
        instead = ", nor its range" if default is None else "; the range is that of LAMMPS's default"
        undecided.append(f"the dt of {command.text!r} ({command.place}){instead}")
        return default


def _listed(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
