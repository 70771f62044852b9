"""Reads a LAMMPS input deck: its commands with their lines, its `run` lines, and what in it cannot be driven. Pure."""

from __future__ import annotations

import re
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
_SETS_UNITS = ("units", "read_restart", "kim", "kim_init", "clear")
"""The last of these decides; `clear` goes back to the default."""
_CHANGES_ATOMS = ("create_atoms", "delete_atoms", "read_data", "read_restart", "read_dump", "replicate", "clear")
_RENUMBERS = ("reset_atoms", "reset_atom_ids", "reset_ids")
_SHRINKS = r"(?<!\S)(?=\S*[sm])[pfsm]{1,2}(?!\S)"
_AVOID = (
    (
        "fix",
        r"^\S+ \S+ (deposit|pour|evaporate|gcmc|atom/swap|widom|charge/regulation|append/atoms)(?!\S)",
        "it adds or deletes atoms during the run, and the coupled fields have a fixed number of them",
    ),
    (
        "fix",
        r"^\S+ \S+ (dt/reset|smd/adjust_dt)",
        "LAMMPS would choose dt by itself, which is for the coupled task; take it out, and use run.mode advise",
    ),
    (
        "fix",
        r"^\S+ \S+ halt .*(?<!\S)error (soft|continue)",
        "it ends runs early, which is not seen between blocks; use error hard, or write run lines as long as wanted",
    ),
    ("timer", r"(?<!\S)timeout (?!off)", "it ends runs early, which is not seen between blocks; leave it out"),
    (
        "run",
        r"(?<!\S)every(?!\S)",
        "it runs commands on the way, which blocks cannot; use `fix print`, `fix ave/time` or several run lines",
    ),
    ("run_style", "^respa", "blocks without a set-up do not work with it; use run_style verlet"),
    ("thermo", "^v_", "energies are computed only on steps of LAMMPS's own output, known beforehand; write a number"),
    (
        "variable",
        r"^\S+ (equal|atom|vector) .*(?<!{)\belapsed\b",
        "elapsed counts from the begin of a block; use elaplong, which counts from the begin of the run line",
    ),
    (
        "fix",
        r"^\S+ \S+ print .*\$\([^)]*\belapsed\b",
        "elapsed counts from the begin of a block; use elaplong, which counts from the begin of the run line",
    ),
    ("boundary", _SHRINKS, "a shrink-wrapped box changes with the atoms and is not saved; use p or f"),
    ("change_box", _SHRINKS, "a shrink-wrapped box changes with the atoms and is not saved; use p or f"),
    (
        "change_box",
        r"(?<!\S)triclinic(?!\S)",
        "positions are unwrapped for orthogonal boxes only; leave the box orthogonal",
    ),
    ("atom_modify", r"(?<!\S)id (no|off|false)(?!\S)", "atoms are coupled by their ids; leave `id no` out"),
)
"""Name, a pattern in the words that follow, and why such a command cannot be driven."""
_RUN_KEYS = ("upto", "start", "stop", "pre", "post")
_SPACE = " \t\n\v\f\r"
_WORD = re.compile(rf'"""(.*?)"""|"(.*?)"|\'(.*?)\'|([^{_SPACE}]+)', re.DOTALL)
_CODE = re.compile(r'(""".*?("""|\Z)|".*?("|\Z)|\'.*?(\'|\Z)|[^#])*', re.DOTALL)
"""What stands before a comment: `#` in quotes begins none."""
_READ_AS = {
    " ": "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u200b\u202f\u2060\u2063\ufeff",
    "'": "\u2018\u2019",
    '"': "\u201c\u201d",
    "+": "\u02d6\u2064",
    "-": "\u02d7\u2212",
}
"""What LAMMPS reads some letters as, such as a byte order mark as a space (its `utils::utf8_subst`)."""
_PLAIN = str.maketrans({letter: plain for plain, letters in _READ_AS.items() for letter in letters})


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
        """The words as LAMMPS tells them apart; what stands in quotes is one word."""
        return [word[word.lastindex or 0] for word in _WORD.finditer(self.text)]

    @property
    def name(self) -> str:
        """The command's name."""
        return self.words[0]

    @property
    def inner(self) -> list[Command]:
        """The commands that an `if` or a `partition` holds, and other words of an `if`."""
        words = self.words
        texts = {"if": words[2:], "partition": [" ".join(words[3:])]}.get(self.name, [])
        return [Command(self.file, self.line, text) for text in texts if text.strip(_SPACE)]

    @property
    def names(self) -> set[str]:
        """Its name and those of the commands that it holds."""
        return {self.name}.union(*(command.names for command in self.inner))

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
        """The unit style; "" where only LAMMPS will know it: a variable, a word that it lacks, a restart file."""
        command = self.units_from
        if command is None:
            return "lj"
        style = " ".join(command.words[1:])
        return style if command.name == "units" and style in UNITS else ""

    @property
    def units_from(self) -> Command | None:
        """The command that the unit style comes from, None for LAMMPS's default. A restart file brings its own."""
        last = next((command for command in reversed(self.commands) if not command.names.isdisjoint(_SETS_UNITS)), None)
        return None if last is None or last.name == "clear" else last

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
        DeckError: Something in it cannot be driven, or a file that it includes cannot be read.
        OSError: From `read`, of the deck itself.
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
    lines = iter(enumerate(text.split("\n"), 1))
    for number, line in lines:
        whole, quotes = line.rstrip(_SPACE), line.count('"""')
        while whole.endswith("&") or quotes % 2:
            _, more = next(lines, (0, None))
            if more is None:
                whole = whole.removesuffix("&")
                break
            # Nothing comes in the place of `&`: LAMMPS may go on in the middle of a word.
            kept = whole[:-1] if whole.endswith("&") else f"{whole}\n"
            whole = (kept + more).rstrip(_SPACE)
            quotes += more.count('"""')
        if (code := _CODE.match(whole)) and (bare := code[0].translate(_PLAIN).strip(_SPACE)):
            yield Command(file, number, bare)


def run_line(command: Command, words: Sequence[str]) -> RunLine:
    """What a `run` command says.

    Args:
        command: The command, for its place.
        words: Its words with variables replaced, `run` first.

    Raises:
        DeckError: It is none that can be driven.
    """
    refuse(command, " ".join(words))
    try:
        steps, rest = int(words[1]), list(words[2:])
        upto = "upto" in rest
        if upto:
            rest.remove("upto")
        told = dict(zip(rest[::2], rest[1::2], strict=True))
        start, stop = (int(told[key]) if key in told else None for key in ("start", "stop"))
    except (IndexError, ValueError):
        raise DeckError(
            f"{command.place}: {' '.join(words)!r} is no run command; write: run STEPS, with whole numbers"
        ) from None
    if unknown := [key for key in told if key not in _RUN_KEYS]:
        raise DeckError(f"{command.place}: run knows no {unknown[0]!r}; there are {', '.join(_RUN_KEYS)}")
    return RunLine(steps, upto, start, stop, told.get("pre", "yes") not in ("no", "off", "false"))


def refuse(command: Command, text: str, after_run: bool = False) -> None:
    """Raises DeckError when a command cannot be driven.

    Args:
        command: The command, for its place.
        text: Its text, where that is known with the values of its variables.
        after_run: Whether a run comes before it.
    """
    if why := _objection(command._replace(text=text), after_run):
        raise DeckError(f"{command.place}: {text!r} cannot be driven: {why}")


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
        try:
            yield from _included(name, read, (*above, path))
        except OSError as problem:
            raise DeckError(
                f"{command.place}: {command.text!r}: {name} cannot be read ({problem.strerror}); names of files count "
                "from the current folder"
            ) from problem


def _refuse(commands: Sequence[Command], runs: Sequence[int]) -> None:
    if not runs:
        last = commands[-1].place if commands else "the deck"
        raise DeckError(f"{last}: there is no run line up to here, so there is nothing to couple; add: run STEPS")
    for index, command in enumerate(commands):
        refuse(command, command.text, after_run=index > runs[0])


def _objection(command: Command, after_run: bool) -> str:
    if command.name in _DRIVES_ITSELF:
        return _DRIVES_ITSELF[command.name]
    for inner in command.inner:
        if inner.name in ("run", "include", "quit", *_DRIVES_ITSELF):
            return (
                f"whether its {inner.name} happens is known only while LAMMPS runs; write the line out or leave it out"
            )
        if why := _objection(inner, after_run):
            return why
    if after_run and command.name in _CHANGES_ATOMS:
        return "the atoms that are coupled must stay the same; do it before the first run, or in a deck of its own"
    if after_run and command.name in _RENUMBERS:
        return "it renumbers atoms, which are coupled by their ids; do it before the first run, or in a deck of its own"
    rest = " ".join(command.words[1:])
    found = (why for name, pattern, why in _AVOID if name == command.name and re.search(pattern, rest, re.DOTALL))
    return next(found, "")
