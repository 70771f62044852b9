"""`coupler init --lammps DECK`: the case of a LAMMPS input deck, with what could not be decided said in it."""

from __future__ import annotations

import math
from pathlib import Path

from coupler.errors import CaseError, CouplerError
from sim_clients.adapters.lammps_deck import Command, Deck, DeckError, read_deck

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
_WORK = ("move", "deform", "addforce", "efield", "indent", "wall/", "spring", "heat", "viscous", "setforce", "smd")

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
units = "{units}"
particles = []              # "x", "v": also stream positions and velocities
thermo = [{thermo}]
{invariant}
[[task]]
use = "timestep"
{low_line}
{high_line}
{error}
features = [{features}]
powers = [{powers}]
order = 2.0                 # velocity Verlet

[limits]
dt_min = {low:g}
dt_max = {high:g}

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
        text = case_of(read_deck(str(deck), lambda name: Path(name).read_text("utf-8")), str(deck))
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except DeckError as problem:
        raise CaseError([f"The deck cannot be driven: {problem}"]) from problem
    except (OSError, UnicodeDecodeError) as problem:
        raise CaseError([f"{getattr(problem, 'filename', deck)} cannot be used ({problem})"]) from problem
    return [path]


def case_of(deck: Deck, name: str) -> str:
    """The text of the case. Pure.

    Args:
        deck: The deck.
        name: Its path.
    """
    undecided: list[str] = []
    fixes = [command for command in deck.named("fix") if len(command.words) > 3]
    invariant = _invariant(fixes, undecided)
    thermo = _thermo(deck, invariant)
    every, steps, why = _length(deck, undecided)
    md = _timestep(deck, undecided)
    low, high = every * md / 10, every * md * 4
    found = ", ".join(f"fix {c.words[3]} ({c.place})" for c in fixes if c.words[3].startswith(_INTEGRATORS))
    features = [keyword for keyword in thermo if keyword in ("temp", "press", "density")]
    powers = [keyword for keyword in features if keyword == "temp"]
    span = min(steps // WINDOWS, SPANS[1]) * every * md if steps >= WINDOWS * SPANS[0] else 0.0
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
        units=deck.units,
        thermo=_listed(thermo),
        invariant=_looks(invariant, every, span) if invariant else "# invariant = ...\n",
        low=low,
        high=high,
        low_line=_line(f"dt_min = {low:g}", f"of a coupling step: {every} MD steps of {md / 10:g}"),
        high_line=_line(f"dt_max = {high:g}", f"{every} MD steps of {md * 4:g}; the deck has {md:g}"),
        error=_error(invariant, span),
        features=_listed(features),
        powers=_listed(powers),
    )


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
        return '# tolerance = ...           # largest error of a coupling step; see error_field\nerror_field = ""'
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


def _invariant(fixes: list[Command], undecided: list[str]) -> str:
    """The keyword that is conserved, as far as the fixes tell."""
    styles = [(command, command.words[3]) for command in fixes]
    if work := [c for c, style in styles if style.startswith(_WORK)]:
        undecided.append(f"what is conserved: {work[0].text!r} ({work[0].place}) does work on the atoms")
        return ""
    for command, style in styles:
        if style.startswith(("nvt", "npt", "nph")) and (ramp := _ramp(command)):
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
    baths = [style for _, style in styles if style.startswith(("temp/", "nvt", "npt", "nph", "press/", "langevin"))]
    return "econserve" if baths else "etotal"


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
    lengths = []
    for index in deck.runs:
        command = deck.commands[index]
        if len(command.words) > 1 and command.words[1].isdecimal() and "upto" not in command.words:
            lengths.append(int(command.words[1]))
        else:
            undecided.append(f"how long {command.text!r} ({command.place}) is; simulation.every must divide it")
    every = math.gcd(EVERY, *lengths) if lengths else EVERY
    if len(lengths) < len(deck.runs):
        return every, 1000, "                # a guess; with run.end_time = ... the most that may be needed"
    return every, max(sum(lengths) // every, 1), "                # all run lines; a chosen dt ends at run.end_time"


def _timestep(deck: Deck, undecided: list[str]) -> float:
    before = [command for command in deck.commands[: deck.runs[0]] if command.name == "timestep"]
    if not before:
        return DEFAULT_DT[deck.units]
    try:
        return float(before[-1].words[1])
    except (IndexError, ValueError):
        undecided.append(f"the dt of {before[-1].text!r} ({before[-1].place}); the range is that of LAMMPS's default")
        return DEFAULT_DT[deck.units]


def _listed(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
