"""What a LAMMPS deck tells before LAMMPS runs it: values of variables, lengths of run lines, fixes in force. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from sim_clients.adapters.lammps_deck import Command, Deck

SETS_STEP = ("reset_timestep", "read_restart", "read_dump", "clear")
"""Commands that may change the step without making any."""
_KEEPS_FIRST = ("index", "string")
"""Styles of a variable whose one value is a text."""
_NAMED = re.compile(r"\$\{(\w+)\}|\$(\w)")


def literals(commands: Sequence[Command]) -> dict[str, str]:
    """Values of the variables that stand in the deck as one number or word each, after these commands."""
    known: dict[str, str] = {}
    for command in commands:
        words = command.words
        if command.name == "next":
            for name in words[1:]:
                known.pop(name, None)
        for inner in command.inner:  # whether it happens is known only while LAMMPS runs
            if inner.name == "variable":
                known.pop(inner.words[1] if len(inner.words) > 1 else "", None)
        if command.name != "variable" or len(words) < 3:
            continue
        name, style, values = words[1], words[2], words[3:]
        if style == "index" and name in known:  # an index variable that is there stays as it is
            continue
        known.pop(name, None)
        value = resolved(values[0], known) if len(values) == 1 else ""
        if (style in _KEEPS_FIRST and value) or (style == "equal" and _is_number(value)):
            known[name] = value
    return known


def resolved(word: str, known: Mapping[str, str]) -> str:
    """A word with the variables replaced whose values are known."""
    return _NAMED.sub(lambda found: known.get(found[1] or found[2], found[0]), word)


def lengths(deck: Deck) -> list[int | None]:
    """MD steps of each run line, None where only LAMMPS will know them."""
    found: list[int | None] = []
    now: int | None = 0  # the MD step
    for at, command in enumerate(deck.commands):
        if not command.names.isdisjoint(SETS_STEP):
            now = None
        if command.name != "run":
            continue
        words = [resolved(word, literals(deck.commands[:at])) for word in command.words]
        told = int(words[1]) if len(words) > 1 and words[1].isdecimal() else None
        if "upto" in words:
            found.append(None if told is None or now is None else max(told - now, 0))
            now = told
        else:
            found.append(told)
            now = None if told is None or now is None else now + told
    return found


def fitting(steps: Sequence[int], near: int) -> int:
    """The largest number of MD steps up to `near` that divides all of these."""
    whole = math.gcd(*steps)
    return next(n for n in range(min(near, whole) if whole else near, 0, -1) if whole % n == 0)


def fixes(deck: Deck, at: int) -> list[Command]:
    """The fixes in force at a position of the deck."""
    found: dict[str, Command] = {}
    for command in deck.commands[:at]:
        words = command.words
        if command.name == "clear":
            found.clear()
        elif command.name == "fix" and len(words) > 3:
            found[words[1]] = command
        elif command.name == "unfix" and len(words) > 1:
            found.pop(words[1], None)
    return list(found.values())


def variables(deck: Deck, at: int) -> list[Command]:
    """The commands that define the variables which are there at a position of the deck."""
    found: dict[str, Command] = {}
    for command in deck.commands[:at]:
        words = command.words
        if command.name != "variable" or len(words) < 3:
            continue
        found.pop(words[1], None)
        if words[2] != "delete":
            found[words[1]] = command
    return list(found.values())


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
