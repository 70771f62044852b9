"""`coupler init --lammps DECK`: the case of a LAMMPS input deck, with what could not be decided said in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from coupler.errors import CaseError, CouplerError
from sim_clients.adapters.lammps_deck import UNITS, Command, Deck, DeckError, read_deck

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
_SETS_STEP = ("reset_timestep", "read_restart", "read_dump")

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
input = "{input}"
ranks = 2
{every_line}
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
    fixes = [command for command in deck.named("fix") if len(command.words) > 3]
    invariant = _invariant(deck, fixes, undecided)
    thermo = _thermo(deck, invariant)
    every, steps, why = _length(deck, undecided)
    md = _timestep(deck, units, undecided)
    choice, limits = _bounds(every, md)
    found = ", ".join(f"fix {c.words[3]} ({c.place})" for c in fixes if c.words[3].startswith(_INTEGRATORS))
    features = [keyword for keyword in thermo if keyword in ("temp", "press", "density")]
    powers = [keyword for keyword in features if keyword == "temp"]
    span = min(steps // WINDOWS, SPANS[1]) * every * md if md and steps >= WINDOWS * SPANS[0] else 0.0
    if invariant:
        undecided.append("which drift is tolerable (task.tolerance); 2e-4 of the kinetic energy is cautious")
    return CASE.format(
        input=name,
        name="".join(c if c.isalnum() or c in "_.-" else "_" for c in Path(name).name).lstrip("_.-") or "lammps",
        found=found or "no fix that moves atoms",
        open="".join(f"# Not decided: {line}.\n" for line in undecided),
        steps=steps,
        steps_why=why,
        every_line=_line(f"every = {every}", "MD steps of one coupling step"),
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


def _invariant(deck: Deck, fixes: list[Command], undecided: list[str]) -> str:
    """The keyword that is conserved, as far as the fixes and the pair styles tell."""
    styles = [(command, command.words[3]) for command in fixes]
    pairs = [(command, word) for command in deck.named("pair_style") for word in command.words[1:]]
    for command, why in (*_told(styles, _WORK), *_told(pairs, _DISSIPATES)):
        undecided.append(f"what is conserved: {command.text!r} ({command.place}) {why}")
        return ""
    for command, style in styles:
        if style.startswith(_BATHS) and (ramp := _ramp(command)):
            undecided.append(
                f"what is conserved: {style} with a ramp {ramp} ({command.place}) does not conserve econserve; "
                "fix nve with fix temp/csvr does"
            )
            return ""
        if style == "langevin" and "tally" not in command.words:
            undecided.append(f"what is conserved: fix langevin ({command.place}) tallies nothing; add `tally yes`")
            return ""
    if not any(style.startswith(("nve", "nvt", "npt", "nph", "rigid")) for _, style in styles):
        undecided.append("what is conserved: no known fix integrates the atoms")
        return ""
    baths = [style for _, style in styles if style.startswith(("temp/", "langevin", *_BATHS))]
    return "econserve" if baths else "etotal"


def _told(styles: list[tuple[Command, str]], by_prefix: Mapping[str, str]) -> list[tuple[Command, str]]:
    return [(c, why) for c, style in styles for prefix, why in by_prefix.items() if style.startswith(prefix)]


def _ramp(command: Command) -> str:
    words = command.words
    for index, word in enumerate(words[:-2]):
        if word in ("temp", "iso", "aniso", "x", "y", "z") and words[index + 1] != words[index + 2]:
            return f"{words[index + 1]} to {words[index + 2]}"
    return ""


def _thermo(deck: Deck, invariant: str) -> list[str]:
    styles = deck.named("thermo_style")
    words = styles[-1].words[2:] if styles and styles[-1].words[1:2] == ["custom"] else []
    shown = [word for word in words if word in _STATES]
    return list(dict.fromkeys(["temp", "press", *shown, *([invariant, "ke"] if invariant else [])]))


def _length(deck: Deck, undecided: list[str]) -> tuple[int, int, str]:
    """MD steps of a coupling step, coupling steps, and a comment."""
    lengths = _lengths(deck)
    for index, length in zip(deck.runs, lengths, strict=True):
        if length is None:
            command = deck.commands[index]
            undecided.append(f"how long {command.text!r} ({command.place}) is; simulation.every must divide it")
    known = [length for length in lengths if length is not None]
    every = math.gcd(EVERY, *known)
    if len(known) < len(lengths):
        return every, 1000, "                # a guess; with run.end_time = ... the most that may be needed"
    return every, max(sum(known) // every, 1), "                # all run lines; a chosen dt ends at run.end_time"


def _lengths(deck: Deck) -> list[int | None]:
    """MD steps of each run line, None where only LAMMPS will know them."""
    lengths: list[int | None] = []
    now: int | None = 0  # the MD step
    for command in deck.commands:
        if not command.names.isdisjoint(_SETS_STEP):
            now = None
        if command.name != "run":
            continue
        words = command.words
        told = int(words[1]) if len(words) > 1 and words[1].isdecimal() else None
        if "upto" in words:
            lengths.append(None if told is None or now is None else max(told - now, 0))
            now = told
        else:
            lengths.append(told)
            now = None if told is None or now is None else now + told
    return lengths


def _timestep(deck: Deck, units: str, undecided: list[str]) -> float | None:
    """The deck's dt, or LAMMPS's default; None where the unit style, on which that depends, is not known."""
    default = DEFAULT_DT.get(units)
    before = [command for command in deck.commands[: deck.runs[0]] if command.name == "timestep"]
    if not before:
        if default is None:
            undecided.append("the range of dt: the deck sets no timestep, and LAMMPS's default depends on the units")
        return default
    try:
        return float(before[-1].words[1])
    except (IndexError, ValueError):
        instead = ", nor its range" if default is None else "; the range is that of LAMMPS's default"
        undecided.append(f"the dt of {before[-1].text!r} ({before[-1].place}){instead}")
        return default


def _listed(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
