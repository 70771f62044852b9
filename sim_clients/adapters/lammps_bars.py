"""What in a LAMMPS deck bars another dt, or the way back to a saved state: each as a sentence. Pure."""

from __future__ import annotations

import re
from functools import lru_cache

from sim_clients.adapters.lammps_deck import Command, Deck
from sim_clients.adapters.lammps_reading import fixes, variables

_BY_STEP = re.compile(r"\b(swiggle|cwiggle|vdisplace)\(")
"""Functions of the MD steps since the run began times the present dt (documentation of `variable`)."""
_BY_STEP_FIXES = ("deform", "move")
_MOVING = ("wiggle", "shear")
"""Keywords of walls that move in the same way."""
_REBONDS = ("bond/break", "bond/create", "bond/create/angle", "bond/react", "bond/swap", "bond/history")
SAVED_STYLES = (
    "atomic",
    "angle",
    "bond",
    "charge",
    "dipole",
    "full",
    "hybrid",
    "molecular",
    "sphere",
    "spin",
    "template",
)
"""Atom styles all of whose state is saved, as `lammps_instant` knows it, or does not change."""


@lru_cache(maxsize=16)  # asked in every step that changes dt
def bars_dt(deck: Deck, at: int) -> str:
    """Why dt must stay what it is at a position of the deck; empty when it need not."""
    for command in fixes(deck, at):
        style, rest = command.words[3], command.words[4:]
        moving_wall = style.startswith("wall/gran") and any(word in _MOVING for word in rest)
        if style.partition("/")[0] in _BY_STEP_FIXES or moving_wall:
            return _by_step(command)
    counting = (command for command in variables(deck, at) if _BY_STEP.search(command.text))
    return next(map(_by_step, counting), "")


def bars_return(deck: Deck, at: int, atom_style: str) -> str:
    """Why no other state can be put in at a position of the deck; empty when one can.

    Args:
        deck: The deck.
        at: The position.
        atom_style: LAMMPS's name of what its atoms have.
    """
    if why := bars_dt(deck, at):
        return why
    for command in fixes(deck, at):
        if command.words[3].startswith(_REBONDS):
            return f"{command.text!r} ({command.place}) changes bonds, and those of a saved state cannot be put back"
    styles = [atom_style]
    if atom_style == "hybrid" and (told := deck.named("atom_style")):
        styles += [word for word in told[-1].words[2:] if not word.isdecimal()]
    if unknown := [style for style in styles if style not in SAVED_STYLES]:
        return (
            f"atoms of style {unknown[0]!r} have more than position, velocity, spin and charge, and the rest of a "
            "saved state cannot be put back"
        )
    return ""


def _by_step(command: Command) -> str:
    return (
        f"{command.text!r} ({command.place}) goes by the number of MD steps times the present dt, and would jump; "
        "write it as a function of `time`, or leave dt alone: mode shadow, or no task that advises dt, and a "
        "run.end_time that ends a coupling step"
    )
