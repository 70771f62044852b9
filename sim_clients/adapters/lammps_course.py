"""Where a run stands in its deck: executes commands up to the next `run` line, and that line block by block."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from coupler.errors import SimulationFailed
from sim_clients.adapters.lammps_deck import Command, Deck, DeckError, refuse, run_line, with_keywords
from sim_clients.adapters.lammps_engine import EXTERNAL, Engine
from sim_clients.adapters.lammps_reading import SETS_STEP, fitting, lengths

_WRITES = ("write_data", "write_restart", "write_dump", "write_coeff", "print", "shell", "info")
"""Commands that only tell the outside something: not executed again when an instance is rebuilt."""
_DUMPS = ("dump", "dump_modify", "undump")
_FILES = ("restart", "log", *_DUMPS, *_WRITES)
"""Commands that a course which leaves no files passes over."""
_NAMES_BOX = ("boundary", "change_box")
"""Commands that are looked at once more when their variables have values."""
ROUNDING = 1e-6
"""Share of a step by which two ways to the same time may differ."""
_FILE = re.compile(r"\sfile\s+(?=\S+(?!.*\sfile\s))")
_NAMED_FILE = re.compile(r"\s(file|append)\s+\S+(?!.*\s(?:file|append)\s)")
"""The last `file` in the text of a fix, without and with its name: a text that is printed may hold the word too."""


class Place(NamedTuple):
    """A place in a deck.

    Attributes:
        at: Position of the run line that is being driven; the number of commands when all are done.
        left: MD steps left of it.
        first: MD step at which its ramps start.
        last: MD step at which they stop.
    """

    at: int
    left: int
    first: int
    last: int


class Course:
    """The way of one instance through its deck."""

    def __init__(
        self,
        deck: Deck,
        keywords: Sequence[str],
        every: int,
        external: bool,
        alone: int = 0,
        *,
        quiet: bool = False,
        ended: Callable[[int], None] = lambda _at: None,
    ) -> None:
        """Makes the course; `begin` takes an instance to its first run.

        Args:
            deck: The deck.
            keywords: Thermo keywords that must be known at the end of each block.
            every: MD steps of one coupling step; each run line must be a multiple.
            external: Whether forces come in through a `fix external`.
            alone: Run lines at the beginning that are executed as they stand.
            quiet: Whether what the deck writes is left out: the files of another run of it are there.
            ended: Told the position of each run line whose steps are done, before the commands after it.

        Raises:
            DeckError: A run line holds no whole coupling steps.
        """
        self._deck, self._keywords, self._every, self._external = deck, keywords, every, external
        self._alone, self._quiet, self._ended = deck.runs[:alone], quiet, ended
        self.place = Place(0, 0, 0, 0)
        coupled = list(zip(deck.runs, lengths(deck), strict=True))[alone:]
        self._lengths = [length for _, length in coupled if length]
        for at, length in coupled:  # those that are written in the deck are looked at before anything is run
            fits(deck.commands[at], length or 0, every, self._lengths)

    @property
    def over(self) -> bool:
        """Whether all runs of the deck are done."""
        return self.place.at >= len(self._deck.commands)

    @property
    def ended(self) -> str:
        """Why no further step can be made; empty while one can."""
        where = self._deck.commands[-1].place
        return f"the deck's run lines are done ({where}); for a longer run write a longer line" if self.over else ""

    def begin(self, engine: Engine) -> None:
        """Executes the deck up to its first run, and that run's set-up. Raises DeckError, SimulationFailed."""
        self._forward(engine, 0)
        if self.over:
            where = self._deck.commands[self._deck.runs[-1]].place
            raise DeckError(
                f"{where}: no run line is left to couple: {len(self._alone)} of {len(self._deck.runs)} are taken by "
                "simulation.equilibration, the others have no steps"
            )

    def advance(self, engine: Engine, n: int) -> None:
        """Makes n MD steps of the run in progress.

        Raises:
            StepFailed: LAMMPS stopped.
            SimulationFailed: It stopped on this rank alone, or by itself, or no steps are left.
        """
        if n > self.place.left:
            raise SimulationFailed(self.ended)
        before, base = int(engine.number("ntimestep")), engine.time_base
        engine.run(f"run {n} pre no post no start {self.place.first} stop {self.place.last}")
        if (made := int(engine.number("ntimestep")) - before) != n:
            raise SimulationFailed(
                f"LAMMPS made {made} of {n} MD steps and stopped by itself: take out what ends runs early, such as "
                "`fix halt` with error soft, or `timer timeout`"
            )
        self.place = self.place._replace(left=self.place.left - n)
        # Where `fix dt/reset` (of a run to compare with) has changed dt on the way, LAMMPS's own base is the right one.
        steady = base[0] + (before + n - base[1]) * engine.dt
        if self.place.left and abs(engine.time - steady) < ROUNDING * engine.dt:
            engine.time_base = base

    def finish(self, engine: Engine) -> bool:
        """After the last step of a run: executes what stands up to the next one. Whether there was anything to do.

        Raises:
            SimulationFailed: It cannot be driven, or LAMMPS refuses it.
        """
        if self.place.left or self.over:
            return False
        self._ended(self.place.at)
        try:
            self._forward(engine, self.place.at + 1)
        except DeckError as problem:
            raise SimulationFailed(str(problem)) from problem
        return True

    def set_up(self, engine: Engine) -> None:
        """Sets the run in progress up anew: neighbour lists, forces and energies of the present state."""
        engine.run(f"run 0 post no start {self.place.first} stop {self.place.last}")

    def skip(self, n: int) -> None:
        """Counts n MD steps as done (negative: undone) that somebody else made.

        Raises:
            SimulationFailed: They leave the run line.
        """
        if n > self.place.left:
            raise SimulationFailed(
                f"A learned state lies {n} MD steps ahead, past the end of the run line in "
                f"{self._deck.commands[min(self.place.at, len(self._deck.commands) - 1)].place}; let output.every be "
                "the steps of one run line, so that no learned phase passes its end."
            )
        self.place = self.place._replace(left=self.place.left - n)

    def go_to(self, engine: Engine, step: int, time: float) -> None:
        """Sets step and time. Dumps are closed for that, and go on with their files.

        Raises:
            SimulationFailed: Something depends on the step, and LAMMPS refuses.
        """
        dumps = self._dumps(self.place.at)
        for name in dumps:
            engine.command(f"undump {name}")
        engine.go_to(step, time)
        self._add_dumps(engine, dumps)

    def replay(self, engine: Engine, place: Place, put: Callable[[int], None]) -> None:
        """Takes a fresh instance to a place: every command up to there, and none that begins a file anew.

        Dumps and logs go on where they are. Random numbers and averages of fixes begin anew.

        Args:
            engine: The instance.
            place: The place.
            put: Puts the state in that the end of a run line had, given by its position: what is said after it may
                depend on where the atoms are.
        """
        for index, command in enumerate(self._deck.commands[: place.at]):
            if command.name == "run":
                put(index)
            elif command.name not in (*_WRITES, *_DUMPS):
                self._execute(engine, _appending(with_keywords(command, self._keywords)), command)
        self._add_dumps(engine, self._dumps(place.at))
        self._add_external(engine)
        self.place = place

    def _forward(self, engine: Engine, at: int) -> None:
        commands = self._deck.commands
        for index in range(at, len(commands)):
            command = commands[index]
            if command.name != "run":
                self._execute(engine, with_keywords(command, self._keywords), command)
            elif self._start(engine, index, command):
                return
        self.place = Place(len(commands), 0, 0, 0)

    def _dumps(self, at: int) -> dict[str, list[Command]]:
        """The commands of each dump that is active at a position of the deck, by its name."""
        found: dict[str, list[Command]] = {}
        for command in () if self._quiet else self._deck.commands[:at]:
            name = command.words[1] if command.name in _DUMPS and len(command.words) > 1 else ""
            if command.name == "dump":
                found[name] = [command]
            elif command.name == "undump":
                found.pop(name, None)
            elif name in found:
                found[name].append(command)
        return found

    def _add_dumps(self, engine: Engine, dumps: Mapping[str, Sequence[Command]]) -> None:
        for name, commands in dumps.items():
            for command in commands:
                engine.command(command.text, command.place)
            engine.command(f"dump_modify {name} append yes", commands[0].place)

    def _execute(self, engine: Engine, text: str, command: Command) -> None:
        if self._quiet and command.name in _FILES:
            return
        if command.name in _NAMES_BOX and "$" in text:
            refuse(command, engine.expand(text, command.place))
        before = int(engine.number("ntimestep"))
        engine.command(_without_files(text) if self._quiet else text, command.place)
        if command.name not in SETS_STEP and (made := int(engine.number("ntimestep")) - before) > 0:
            raise DeckError(
                f"{command.place}: {command.text!r} made {made} MD steps without the coupling: write a plain `run` line"
            )

    def _start(self, engine: Engine, index: int, command: Command) -> bool:
        """Starts a run line; False when it has no steps to drive and was executed as it is."""
        told, now = (
            run_line(command, engine.expand(command.text, command.place).split()),
            int(engine.number("ntimestep")),
        )
        if told.upto:
            told = replace(told, steps=told.steps - now)
        if told.steps <= 0 or index in self._alone:
            engine.command(command.text, command.place)
            self._ended(index)
            return False
        fits(command, told.steps, self._every, self._lengths)
        self._add_external(engine)
        first = now if told.start is None else told.start
        last = now + told.steps if told.stop is None else told.stop
        self.place = Place(index, told.steps, first, last)
        if told.setup:
            engine.command(f"run 0 post no start {first} stop {last}", command.place)
        return True

    def _add_external(self, engine: Engine) -> None:
        if self._external and EXTERNAL not in engine.fixes():
            engine.command(f"fix {EXTERNAL} all external pf/array 1")


def _appending(text: str) -> str:
    """A `log` or `fix print` command that goes on with its file instead of beginning it anew."""
    words = text.split()
    if words[0] == "log" and len(words) == 2 and words[1] != "none":
        return f"{text} append"
    return _FILE.sub(" append ", text) if _prints(words) else text


def _without_files(text: str) -> str:
    """A fix that writes to nowhere instead of its file."""
    words = text.split()
    averages = words[0] == "fix" and words[3:4] and words[3].startswith("ave/")
    return _NAMED_FILE.sub(rf" \1 {os.devnull}", text) if averages or _prints(words) else text


def _prints(words: Sequence[str]) -> bool:
    return words[0] == "fix" and words[3:4] == ["print"]


def fits(command: Command, steps: int, every: int, others: Sequence[int]) -> None:
    """Raises DeckError when a run line does not hold whole coupling steps; `others` are the lengths of all others."""
    if steps % every:
        raise DeckError(
            f"{command.place}: {command.text!r} is no multiple of simulation.every = {every} MD steps; choose "
            f"simulation.every = {fitting([steps, *others], every)}, or change the run line"
        )
