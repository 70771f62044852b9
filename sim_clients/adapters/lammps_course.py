"""Where a run stands in its deck: executes commands up to the next `run` line, and that line block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from coupler.errors import SimulationFailed
from sim_clients.adapters.lammps_deck import Command, Deck, DeckError, run_line, with_keywords
from sim_clients.adapters.lammps_engine import EXTERNAL, Engine

_WRITES = ("write_data", "write_restart", "write_dump", "write_coeff", "print", "shell", "info")
"""Commands that only tell the outside something: not executed again when an instance is rebuilt."""


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

    def __init__(self, deck: Deck, keywords: Sequence[str], every: int, external: bool, alone: int = 0) -> None:
        """Makes the course; `begin` takes an instance to its first run.

        Args:
            deck: The deck.
            keywords: Thermo keywords that must be known at the end of each block.
            every: MD steps of one coupling step; each run line must be a multiple.
            external: Whether forces come in through a `fix external`.
            alone: Run lines at the beginning that are executed as they stand.
        """
        self._deck, self._keywords, self._every, self._external = deck, keywords, every, external
        self._alone = deck.runs[:alone]
        self.place = Place(0, 0, 0, 0)

    @property
    def over(self) -> bool:
        """Whether all runs of the deck are done."""
        return self.place.at >= len(self._deck.commands)

    def begin(self, engine: Engine) -> None:
        """Executes the deck up to its first run, and that run's set-up. Raises DeckError, SimulationFailed."""
        self._forward(engine, 0)

    def advance(self, engine: Engine, n: int) -> None:
        """Makes n MD steps of the run in progress.

        Raises:
            StepFailed: LAMMPS stopped.
            SimulationFailed: It stopped on this rank alone, or no steps are left.
        """
        if n > self.place.left:
            raise SimulationFailed(
                f"The deck's run lines are done ({self._deck.commands[-1].place}): ask for fewer run.steps, or write a "
                "longer run line."
            )
        engine.run(f"run {n} pre no post no start {self.place.first} stop {self.place.last}")
        self.place = self.place._replace(left=self.place.left - n)

    def finish(self, engine: Engine) -> bool:
        """After the last step of a run: executes what stands up to the next one. Whether there was anything to do."""
        if self.place.left or self.over:
            return False
        self._forward(engine, self.place.at + 1)
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

    def replay(self, engine: Engine, place: Place) -> None:
        """Takes a fresh instance to a place: every command up to there but the runs, and none that writes a file.

        Dumps and logs go on where they are. Random numbers and averages of fixes begin anew.
        """
        for command in self._deck.commands[: place.at]:
            if command.name not in ("run", *_WRITES):
                engine.command(_appending(with_keywords(command, self._keywords)), command.place)
            if command.name == "dump":
                engine.command(f"dump_modify {command.words[1]} append yes", command.place)
        self._add_external(engine)
        self.place = place

    def _forward(self, engine: Engine, at: int) -> None:
        commands = self._deck.commands
        for index in range(at, len(commands)):
            command = commands[index]
            if command.name != "run":
                engine.command(with_keywords(command, self._keywords), command.place)
            elif self._start(engine, index, command):
                return
        self.place = Place(len(commands), 0, 0, 0)

    def _start(self, engine: Engine, index: int, command: Command) -> bool:
        """Starts a run line; False when it has no steps to drive and was executed as it is."""
        told, now = run_line(command, engine.expand(command.text).split()), int(engine.number("ntimestep"))
        if told.upto:
            told = replace(told, steps=told.steps - now)
        if told.steps <= 0 or index in self._alone:
            engine.command(command.text, command.place)
            return False
        if told.steps % self._every:
            raise DeckError(
                f"{command.place}: {command.text!r} is no multiple of simulation.every = {self._every} MD steps; "
                f"choose simulation.every = {_divisor(told.steps, self._every)}, or change the run line"
            )
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
    """A `log` command that goes on with its file instead of beginning it anew."""
    words = text.split()
    return f"{text} append" if words[0] == "log" and len(words) == 2 and words[1] != "none" else text


def _divisor(steps: int, near: int) -> int:
    return next(n for n in range(min(near, steps), 0, -1) if steps % n == 0)
