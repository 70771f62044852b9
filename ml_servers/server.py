"""The Server: the shell round ServerCore. Owns the listening Link and the slots, serves until every rank has left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from coupler.bulks import outbox
from coupler.bulks.bulk import Bulk, frames_only
from coupler.contracts import Backtest, Link
from coupler.files import write_whole
from ml_servers import checkpoint
from ml_servers.core import Instruction, Sampled, Send, ServerCore
from ml_servers.facts import summary
from ml_servers.keeping import Keeping
from ml_servers.recorder import RECORDER
from ml_servers.serving import JointTask, MakeTask, Reports, ServingTask
from ml_servers.settings import CoreSettings
from ml_servers.slots import Slots
from ml_servers.trainer import WHOLE
from schemas import wire
from schemas.fields import FieldSpec, Snapshot
from schemas.messages import VERSION, Advice, Ask, Begin, Halt, Message, Pace, Ready, Refusal, Sample, Trained, Welcome

SUMMARY = "server.json"
SLOTS = "slots"
LEARNED_SLOTS = 4
"""Slots of a ring for learned states: one is under way at a time."""
MOST_SLOTS = 1024
POLL_S = 0.2
RECORDER_S = 10.0
"""Time that the recorder gets to finish when the ranks have left."""
STALLED_S = 4.0
"""A recorder that writes nothing for so long is not waited for."""
LINGER_S = 1.0
"""Time that the last messages (acknowledgements, Halt) get to leave."""


class Server:
    """Takes messages from ranks and trainers, hands them to the core, carries out its instructions."""

    def __init__(
        self,
        link: Link,
        settings: CoreSettings,
        make_task: MakeTask,
        folder: Path,
        *,
        slot_folder: Path,
        buffer_bytes: int,
        max_message_bytes: int,
        bulk: Callable[[str], Bulk] = lambda _: frames_only(digest=True, unchanging=True),
        cpu_clock: Callable[[], float] = time.process_time,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Makes the server; it speaks when spoken to.

        Args:
            link: Listening Link.
            settings: Settings of the core.
            make_task: Constructs what answers for a task.
            folder: Run folder.
            slot_folder: Folder for the slots file, in shared memory where there is some.
            buffer_bytes: Largest size of the slots file.
            max_message_bytes: Largest message accepted.
            bulk: How Blocks travel: opens the bulk for one receiver, or of this server, by a name for it.
            cpu_clock: CPU seconds of this process.
            log: Takes one line for each event that a person may want to read.
        """
        self._open_bulk, self._bulk = bulk, bulk("server")
        settings = msgspec.structs.replace(settings, token=self._bulk.token)
        self.core = ServerCore(settings, make_task, self._start_slots)
        self.slots: Slots | None = None
        self.garbled = 0
        self.unsent = 0
        self.train_cpu_s = 0.0
        self.superseded = 0
        self.untrained = 0
        self.keeping = Keeping(settings.records)
        self._link, self._folder, self._log = link, folder, log
        self._slot_folder, self._buffer_bytes = slot_folder, buffer_bytes
        self._max_message_bytes = max_message_bytes
        self._bulks: dict[bytes, Bulk] = {}  # by rank's peer
        self._epochs: dict[bytes, int] = {}
        self._cpu_clock, self._cpu = cpu_clock, 0.0  # starting up counts too
        self._share = 1.0
        self._shares = {name: settings.shares.get(name, (WHOLE,)) for name in settings.tasks}
        self._reports = {name: Reports(each) for name, each in self._shares.items()}
        self._trainers: dict[tuple[str, int], bytes] = {}  # by task and rank
        self._offered = 0  # states for the trainers
        self._recorder = b""
        self._told_no_room = False
        self._told: set[str] = set()  # tasks whose failure was logged

    def serve(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Serves until every rank has said goodbye or should_stop() is true (asked between messages)."""
        while not (self.core.all_finished or should_stop()):
            self.poll(POLL_S)
        self._let_record(should_stop)

    def _let_record(self, should_stop: Callable[[], bool]) -> None:
        """Waits until the recorder has written what it has, as long as it gets on."""
        left, now = -1, time.monotonic()
        end = stalled = now + RECORDER_S
        while self.keeping.left and not should_stop() and now < min(end, stalled):
            if self.keeping.left != left:
                left, stalled = self.keeping.left, now + STALLED_S
            self.poll(POLL_S)
            now = time.monotonic()

    def poll(self, timeout_s: float) -> bool:
        """Handles one message; waits up to timeout_s seconds for it. False when none came."""
        received = self._link.receive(timeout_s)
        if received is None:
            return False
        peer, frames = received
        try:
            message, blocks = wire.decode(frames, self._max_message_bytes, self._bulk.fetch)
        except wire.BlocksLost as error:
            self.garbled += 1
            self._log(f"The arrays of a message are lost: {error}")
            for instruction in self.core.lost(peer, error.message):
                self._carry_out(instruction)
            return True
        except wire.WireError as error:
            self.garbled += 1
            self._log(f"A message of {len(frames)} frames was refused: {error}")
            return True
        if isinstance(message, Ready):
            self._ready(peer, message)
        elif isinstance(message, Trained):
            self._trained(message)
        else:
            if isinstance(message, Ask) and peer in self._bulks:
                self._bulks[peer].outbox.free(message.executed)
            now = self._cpu_clock()
            spent, self._cpu = now - self._cpu, now
            instructions = self.core.handle(peer, message, blocks, spent)
            if not instructions:  # one rank's part of a step: nothing was decided that anyone could be told
                return True
            for instruction in instructions:
                self._carry_out(instruction)
            self._tell_failures()
        self._pace()
        return True

    def close(self) -> None:
        """Ends the trainers, writes what the server knows into the run folder and frees everything."""
        for peer in self._consumers():
            self._send(peer, Halt())
        self.keeping.over()
        facts = summary(self.core)
        facts["train_s"] = self.train_cpu_s
        facts["samples"] |= {"superseded": self.superseded, "untrained": self.untrained, "garbled": self.garbled}
        if self.keeping.wanted:
            facts["recording"] = {key: getattr(self.keeping, key) for key in ("given", "missed", "failure")}
        if self.keeping.missed:
            self._log(f"The recorder missed {self.keeping.missed} states, which are not in the recording.")
        write_whole(self._folder / SUMMARY, json.dumps(facts, indent=1))
        self._link.close(LINGER_S)
        if self.slots is not None:
            self.slots.close()
        for bulk in (*self._bulks.values(), self._bulk):
            bulk.close()

    # ----------------------------------------------------------------------------------------------- instructions

    def _carry_out(self, instruction: Instruction) -> None:
        if isinstance(instruction, Send):
            self._say(instruction)
        elif isinstance(instruction, Sampled):
            self._give(instruction.snapshot, instruction.trains)

    def _say(self, instruction: Send) -> None:
        message, peer = instruction.message, instruction.peer
        if isinstance(message, Advice) and instruction.blocks:  # the only message of ours that carries a state
            box = self._bulks[peer].outbox
            parcel = box.put(message.step, message.time, instruction.blocks)
            if outbox.send(self._link, msgspec.structs.replace(message, blocks=parcel.table), parcel, peer):
                box.sent(parcel, message.decision)
            else:
                box.undo(parcel)
                self.unsent += 1
        elif not self._link.send(wire.encode(message), peer):
            self.unsent += 1
        if isinstance(message, Refusal):
            self._log(f"Refused a client: {message.reason}")
        elif isinstance(message, Welcome):
            self._greeted(peer, message)

    def _greeted(self, peer: bytes, welcome: Welcome) -> None:
        """A rank came, or another in its place: what lay in slots for it belongs to nobody any more."""
        if peer not in self._bulks:
            self._bulks[peer] = self._open_bulk(f"down-{len(self._bulks)}")
        if self._epochs.get(peer) != welcome.epoch:
            self._epochs[peer] = welcome.epoch
            self._bulks[peer].outbox.greeted(welcome.near)

    def _give(self, snapshot: Snapshot, trains: bool) -> None:
        """Hands a state to the trainers and the recorder, in the slot that it was assembled in.

        The state of a single rank was not assembled: it is copied now that the answer is on its way.
        """
        assert self.slots is not None  # a state came, so the slots exist
        keeps = trains and self.keeping.has_room(self.slots.count)
        takers = self._takers() if trains else []
        wanted = len(takers) + keeps
        self.untrained += trains and not takers and bool(self._shares)
        given = {name: block.array for name, block in snapshot.blocks.items()}
        arrays = self.slots.copied(given) if wanted else given
        slot = self.slots.filled(arrays, wanted) if arrays is not None else None
        if slot is None:
            self.untrained += wanted > keeps
            self.keeping.missed += keeps
            if self.slots.no_room and not self._told_no_room:
                self._told_no_room = True
                self._log(
                    f"{self._slot_folder} is full: {self.slots.no_room} slots of the training buffer have no room."
                )
            return
        generation = self.slots.generation(slot)
        sample = Sample(slot, generation, snapshot.step, snapshot.time, snapshot.dt, snapshot.controls_until)
        for peer in takers:
            if not self._send(peer, sample):
                self.slots.release(slot)
                self.untrained += 1
        if keeps and not self.keeping.give(sample):
            self.slots.release(slot)

    def _takers(self) -> list[bytes]:
        """The trainers that take the next state."""
        number, self._offered = self._offered, self._offered + 1
        return [peer for (task, rank), peer in self._trainers.items() if self._shares[task][rank].takes(number)]

    def _fail(self, task: str, reason: str) -> None:
        """A task is out of use: no rank of it has anything to learn for."""
        self.core.failed(task, reason)
        for key in [key for key in self._trainers if key[0] == task]:
            self._send(self._trainers.pop(key), Halt())
        self._tell_failures()

    def _tell_failures(self) -> None:
        for task in self.core.failures.keys() - self._told:
            self._told.add(task)
            self._log(f"Task {task} is out of use: {self.core.failures[task]}")

    def _pace(self) -> None:
        """Tells the trainers when their share of a core changes."""
        share = self.core.trainer_share
        if share != self._share:
            self._share = share
            for peer in self._trainers.values():
                self._send(peer, Pace(share))

    def _send(self, peer: bytes, message: Message) -> bool:
        return self._link.send(wire.encode(message), peer)

    def _start_slots(self, fields: Sequence[FieldSpec]) -> Slots:
        if self._bulk.streams is not None:
            self._bulk.streams.declare(fields)
        size = sum(spec.nbytes for spec in fields) + 8192
        count = int(min(max(self._buffer_bytes // size, 4), MOST_SLOTS))
        self.slots = Slots(self._slot_folder / SLOTS, fields, count, create=True)
        for peer in self._consumers():
            self._send(peer, self._begin(self.slots))
        return self.slots

    def _consumers(self) -> list[bytes]:
        """Peers that take states: the trainers, and the recorder."""
        return [*self._trainers.values(), *([self._recorder] if self._recorder else [])]

    def _begin(self, slots: Slots) -> Begin:
        return Begin(slots.fields, str(slots.path), slots.count)

    # ---------------------------------------------------------------------------------------------------- trainers

    def _ready(self, peer: bytes, ready: Ready) -> None:
        if ready.version != VERSION or ready.run != self.core.settings.run:
            self._send(peer, Refusal("This trainer belongs to another run or release."))
            return
        if self.slots is not None and not (ready.begun and peer in self._consumers()):
            self._send(peer, self._begin(self.slots))
        if ready.task == RECORDER:
            self._recorder = peer
            for sample in self.keeping.ready(lambda sample: self._send(peer, sample)):
                if self.slots is not None:
                    self.slots.release(sample.slot)
            self._log("The recorder is up.")
            return
        ranks = len(self._shares.get(ready.task, ()))
        if not 0 <= ready.rank < ranks:
            self._send(peer, Refusal(f"This run has {ranks} trainers of {ready.task}, counted from 0."))
            return
        self._trainers[ready.task, ready.rank] = peer
        self._log(f"The trainer of {ready.task} is up." if ranks == 1 else f"{ready.task}: trainer {ready.rank} is up.")

    def _trained(self, done: Trained) -> None:
        for slot in done.released:
            if self.slots is not None:
                self.slots.release(slot)
        if done.task == RECORDER:
            self._recorded(done)
            return
        self.train_cpu_s += done.cpu_s
        self.core.charge(done.cpu_s)
        self.superseded = max(self.superseded, done.superseded)
        if done.failure:
            self._fail(done.task, done.failure)
        elif done.task in self.core.tasks and (not done.path or self._taken_over(done, self.core.tasks[done.task])):
            self._reported(done, self._reports[done.task].joined(done))

    def _taken_over(self, done: Trained, task: ServingTask) -> bool:
        """Whether the new model of a trainer serves from now on."""
        member = task.members[done.rank] if isinstance(task, JointTask) else task
        try:
            member.restore(checkpoint.read(self._folder / done.path))
        except (ValueError, OSError) as error:
            self._log(f"Model {done.version} of {done.task} could not be taken over: {error}")
            return False
        except Exception as error:  # a plug-in may raise anything, and may now be half-way between two models
            self._fail(done.task, f"{type(error).__name__}: {error}")
            return False
        return True

    def _reported(self, done: Trained, all_ranks: Trained | None) -> None:
        """A trainer's news, and what they mean for its task; nothing yet while other ranks have no model."""
        if all_ranks is None:
            return
        backtests = [Backtest(*row) for row in all_ranks.backtests]
        if done.path:
            self.core.trained(done.task, all_ranks.version, all_ranks.kind, all_ranks.trained_on, backtests)
            self._log(
                f"Model {all_ranks.version} of {done.task} serves: {all_ranks.kind}, trained on {all_ranks.trained_on} "
                f"states up to step {all_ranks.last_step}."
            )
        elif done.calibrated:
            self.core.calibrated(done.task, backtests)

    def _recorded(self, done: Trained) -> None:
        self.keeping.released(done.released)
        if done.failure:
            for slot in self.keeping.failed(done.failure):
                if self.slots is not None:
                    self.slots.release(slot)
            self._log(f"The recorder has stopped, and the run goes on without it: {done.failure}")
