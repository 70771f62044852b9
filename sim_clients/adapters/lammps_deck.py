"""Reads a LAMMPS input deck: its commands with their lines, its `run` lines, and what in it cannot be driven. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

UNITS = ("lj", "real", "metal", "si", "cgs", "electron", "micro", "nano")
"""Unit styles that LAMMPS has."""

_DRIVES_ITSELF = {
    "minimize": "it moves atoms outside of time: minimise in a deck of its own, write_data, and read that here",
    "rerun": "it reads its states from a file: there is no dynamics to couple",
    "jump": "jumps need LAMMPS to read the file by itself: write the loop out, or use one deck for each pass",
    "temper": "it runs several replicas: couple one of them",
    "temper/grem": "it runs several replicas: couple one of them",
    "temper/npt": "it runs several replicas: couple one of them",
    "neb": "it runs several replicas: couple one of them",
    "prd": "it runs several replicas: couple one of them",
    "tad": "it runs several replicas: couple one of them",
    "hyper": "it drives the run by itself: write plain run lines",
    "dynamical_matrix": "it moves atoms outside of time: use a deck of its own",
    "third_order": "it moves atoms outside of time: use a deck of its own",
    "mdi": "somebody else would drive LAMMPS: take it out",
}
_CHANGES_ATOMS = ("create_atoms", "delete_atoms", "read_data", "read_restart", "read_dump", "replicate", "clear")
_CHANGING_FIXES = ("deposit", "pour", "evaporate", "gcmc", "atom/swap", "widom", "charge/regulation", "append/atoms")
_RUN_KEYS = ("upto", "start", "stop", "pre", "post")


class Command(NamedTuple):
    """One command of a deck.

    Attributes:
        file: File it stands in.
        line: Its first line there, from 1.
        text: The command in one line, without comment and continuations.
    """

    file: str
    line: int
    text: str

    @property
    def words(self) -> list[str]:
        """The words; what stands in quotes is one word."""
        try:
            return shlex.split(self.text)
        except ValueError:  # a quote that is never closed; LAMMPS says so itself
            return self.text.split()

    @property
    def name(self) -> str:
        """The command's name."""
        return self.text.split(None, 1)[0]

    @property
    def place(self) -> str:
        """`FILE:LINE`."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class RunLine:
    """What a `run` command says, once LAMMPS has put the values of its variables in.

    Attributes:
        steps: Steps to run, or with `upto` the step to run up to.
        upto: Whether it is an absolute step.
        start: First step of a ramp, None for the run's own.
        stop: Last step of a ramp, None for the run's own.
        setup: Whether the run begins with a set-up (`pre yes`).
    """

    steps: int
    upto: bool = False
    start: int | None = None
    stop: int | None = None
    setup: bool = True


@dataclass(frozen=True, slots=True)
class Deck:
    """A deck that can be driven.

    Attributes:
        commands: All commands up to `quit`, included files put in.
        runs: Positions of the `run` commands among them.
    """

    commands: tuple[Command, ...]
    runs: tuple[int, ...] = field(default=())

    @property
    def units(self) -> str:
        """The unit style; LAMMPS's default where the deck sets none."""
        return next((c.words[1] for c in reversed(self.commands) if c.name == "units" and len(c.words) > 1), "lj")

    def named(self, name: str) -> list[Command]:
        """The commands of one name, in order."""
        return [command for command in self.commands if command.name == name]


class DeckError(ValueError):
    """A deck cannot be driven. The message names file and line, what is wrong and what to try."""


def read_deck(path: str, read: Callable[[str], str]) -> Deck:
    """Reads a deck and the files it includes.

    Args:
        path: The deck.
        read: Gives the text of a file by name.

    Raises:
        DeckError: Something in it cannot be driven.
        OSError: From `read`.
    """
    found: list[Command] = []
    for command in _included(path, read, ()):
        if command.name == "quit":
            break
        found.append(command)
    runs = [index for index, command in enumerate(found) if command.name == "run"]
    _refuse(found, runs)
    return Deck(tuple(found), tuple(runs))


def split(text: str, file: str = "deck") -> Iterator[Command]:
    """The commands of a text: `&` continues a line, triple quotes span lines, `#` outside quotes begins a comment."""
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        whole = line
        while whole.rstrip().endswith("&") or whole.count('"""') % 2:
            cut = whole.rstrip()
            _, more = next(lines, (0, None))
            if more is None:
                whole = cut.removesuffix("&")
                break
            whole = cut[:-1] + " " + more if cut.endswith("&") else f"{whole}\n{more}"
        if bare := _without_comment(whole).strip():
            yield Command(file, number, bare)


def run_line(command: Command, words: Sequence[str]) -> RunLine:
    """What a `run` command says.

    Args:
        command: The command, for its place.
        words: Its words with variables replaced, `run` first.

    Raises:
        DeckError: It is none that can be driven.
    """
    if "every" in words:
        raise DeckError(
            f"{command.place}: `run ... every` runs commands on the way, which cannot be driven in blocks; use "
            "`fix print`, `fix ave/time` or a variable, or write several run lines"
        )
    try:
        steps, rest = int(words[1]), list(words[2:])
        upto = "upto" in rest
        if upto:
            rest.remove("upto")
        told = dict(zip(rest[::2], rest[1::2], strict=True))
    except (IndexError, ValueError):
        raise DeckError(f"{command.place}: {' '.join(words)!r} is no run command; write: run STEPS") from None
    if unknown := [key for key in told if key not in _RUN_KEYS]:
        raise DeckError(f"{command.place}: run knows no {unknown[0]!r}; there are {', '.join(_RUN_KEYS)}")
    start, stop = (int(told[key]) if key in told else None for key in ("start", "stop"))
    return RunLine(steps, upto, start, stop, told.get("pre", "yes") not in ("no", "off", "false"))


def with_keywords(command: Command, keywords: Sequence[str]) -> str:
    """A `thermo_style custom` command that also shows the keywords that it lacks; other commands as they are.

    LAMMPS computes an energy only on steps where its own output asks for it.
    """
    words = command.words
    if command.name != "thermo_style" or words[1:2] != ["custom"]:
        return command.text
    return " ".join([command.text, *(keyword for keyword in keywords if keyword not in words)])


def _included(path: str, read: Callable[[str], str], above: tuple[str, ...]) -> Iterator[Command]:
    for command in split(read(path), path):
        if command.name != "include":
            yield command
            continue
        name = command.words[1] if len(command.words) == 2 else ""
        if not name or "$" in name or name in (*above, path):
            raise DeckError(
                f"{command.place}: {command.text!r} cannot be followed before LAMMPS starts, and a run line in it "
                "would be missed; write the name of one other file"
            )
        yield from _included(name, read, (*above, path))


def _refuse(commands: Sequence[Command], runs: Sequence[int]) -> None:
    if not runs:
        last = commands[-1].place if commands else "the deck"
        raise DeckError(f"{last}: there is no run line up to here, so there is nothing to couple; add: run STEPS")
    for index, command in enumerate(commands):
        if why := _objection(command, after_run=index > runs[0]):
            raise DeckError(f"{command.place}: {command.text!r} cannot be driven: {why}")


def _objection(command: Command, after_run: bool) -> str:
    name, words = command.name, command.words
    if name in _DRIVES_ITSELF:
        return _DRIVES_ITSELF[name]
    inner = {word.split(None, 1)[0] for word in words[1:] if word.strip()} if name in ("if", "partition") else set()
    if hidden := inner & {"run", *_DRIVES_ITSELF}:
        return f"whether its {min(hidden)} happens is known only while LAMMPS runs; write the line out"
    if after_run and name in _CHANGES_ATOMS:
        return "the atoms that are coupled must stay the same; do it before the first run, or in a deck of its own"
    if name == "fix" and len(words) > 3 and words[3] in _CHANGING_FIXES:
        return "it adds or deletes atoms during the run, and the coupled fields have a fixed number of them"
    if name in ("boundary", "change_box") and any(re.fullmatch("[pfsm]{1,2}", w) and {*w} & {*"sm"} for w in words[1:]):
        return "a shrink-wrapped box changes with the atoms and is not saved; use p or f"
    return ""


def _without_comment(line: str) -> str:
    quote = ""
    for index, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter == "#":
            return line[:index]
    return line
