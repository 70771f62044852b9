"""What must be true of a deck and of the instance that executes it, for its states to be coupled."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from coupler.errors import SimulationFailed
from sim_clients.adapters.lammps_deck import UNITS, Deck, DeckError, read_deck
from sim_clients.adapters.lammps_engine import Engine

KEYWORDS = (
    "atoms", "cella", "cellb", "cellc", "density", "dt", "ecoul", "econserve", "ecouple", "ebond", "eangle", "edihed",
    "eimp", "elong", "emol", "enthalpy", "epair", "etail", "etotal", "evdwl", "fmax", "fnorm", "ke", "lx", "ly", "lz",
    "pe", "press", "pxx", "pxy", "pxz", "pyy", "pyz", "pzz", "step", "temp", "time", "vol", "xhi", "xlo", "yhi", "ylo",
    "zhi", "zlo",
)  # fmt: skip
"""Thermo keywords of LAMMPS's documentation (`thermo_style`), to find the one that was meant."""

GIVE_WAY = ("index", "loop", "universe", "uloop", "world", "delete")
"""Styles of a variable that leave it as it is when it was set on the command line (documentation of `variable`)."""


def deck_at(path: str) -> Deck:
    """Reads a deck, from the current folder or else from `sys.path`, of which the case's folder is the first.

    Raises:
        DeckError: It cannot be read or driven.
    """
    beside = (Path(folder) / path for folder in ("", *sys.path))
    found = next((str(file) for file in beside if file.is_file()), path)

    def read(name: str) -> str:
        try:
            return Path(name).read_bytes().decode("utf-8-sig", "replace")  # comments may be in any encoding
        except OSError as problem:
            raise DeckError(
                f"the deck {name} cannot be read ({problem.strerror}); names of files count from the current folder, "
                f"{Path.cwd()}"
            ) from problem

    return read_deck(found, read)


def check_units(deck: Deck, actual: str, wanted: str | None) -> None:
    """Whether the case is written in the units of the deck.

    Args:
        deck: The deck, for the place.
        actual: Its unit style; empty where that is not known yet.
        wanted: That of the case; None for any.

    Raises:
        ValueError: It is not.
    """
    if wanted is None:
        return
    if wanted not in UNITS:
        raise ValueError(f"units is {wanted!r}; LAMMPS has {', '.join(UNITS)}")
    if actual and wanted != actual:
        place = next((command.place for command in deck.named("units")), "LAMMPS's default, or a restart file's")
        raise ValueError(
            f"the case is written in units = {wanted!r}, but the deck in {actual!r} ({place}); make them the same"
        )


def check_seed(deck: Deck, seed: int) -> None:
    """Whether the deck's variable `seed` gives way to one from outside, as LAMMPS lets variables of some styles do.

    Raises:
        ValueError: It does not, and there is a seed.
    """
    for command in deck.named("variable") if seed else ():
        words = command.words
        if words[1:2] == ["seed"] and words[2:3] and words[2] not in GIVE_WAY:
            raise ValueError(
                f"{command.place}: {command.text!r} would set the variable `seed` again, which run.seed = {seed} has "
                'set; write it as "variable seed index NUMBER", or run.seed = 0 to leave it to the deck'
            )


def check_box(engine: Engine) -> None:
    """Raises SimulationFailed where the box is triclinic: at the start, and after what a deck says between runs."""
    if engine.number("triclinic"):
        raise SimulationFailed(
            "the box is triclinic, and positions are unwrapped for orthogonal boxes only; use another"
        )


def check_keywords(engine: Engine, names: Sequence[str]) -> None:
    """Whether LAMMPS has thermo keywords and variables of these names, once the first run is set up.

    Raises:
        ValueError: It has not; it would give 0.
    """
    for name in names:
        if name.startswith(("c_", "f_")):
            raise ValueError(
                f"{name!r} is no thermo keyword; put it into the deck as a variable: variable my equal {name}"
            )
        if name.startswith("v_"):
            engine.value(name)
        elif not engine.knows(name):
            near = difflib.get_close_matches(name, KEYWORDS, 1)
            hint = f"did you mean {near[0]!r}?" if near else "see the documentation of thermo_style"
            raise ValueError(f"LAMMPS knows no thermo keyword {name!r}; {hint}")
