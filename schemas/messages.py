"""The closed union of messages. Every message is one MessagePack array: its tag, then its fields in this order.

    client -> server    Hello, Ask, Push, Bye
    server -> client    Welcome, Refusal, Advice, Ack
    server -> trainer   Begin, Sample, Pace, Halt
    trainer -> server   Ready, Trained

Adding, removing or reordering a field is a new `VERSION`, refused loudly by the handshake.
"""

from __future__ import annotations

import enum
import math
from typing import Literal

import msgspec

from schemas.fields import FieldSpec

VERSION = 6
"""Version of the wire layout. Both sides must have the same."""

LOST_TOLD = 32
"""Lost messages that an acknowledgement names; acknowledgements themselves may be lost."""

Phase = Literal["direct", "trial", "learned", "audit"]


class Action(enum.IntEnum):
    """What an Advice tells the host to do."""

    DIRECT = 0
    """Integrate yourself, with the dt of the Advice."""
    LEARNED = 1
    """Take the state of the Advice, with its step and time."""
    REWIND = 2
    """Restore the saved state of step `rewind_to`."""
    STOP = 3
    """End the run in good order."""


class Place(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where the bytes of a Block lie that do not travel in frames.

    Attributes:
        bulk: `shared` or `adios`.
        name: File of the ring, or stream, in the folder that both sides know; letters, digits and hyphens.
        slot: Slot of the ring; for `adios` the rank's name in the stream.
        generation: Generation of the slot, or number of what the rank put into the stream.
        at: Bytes from the begin of the slot to the array; its ids begin at the next multiple of 64 behind it.
    """

    bulk: str
    name: str
    slot: int
    generation: int
    at: int


class BlockEntry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One Block in a block table.

    Without place and data its array is the next frame, its ids (if any) the frame after that.

    Attributes:
        field: Name of the declared field.
        dtype: Little-endian NumPy type string.
        shape: Shape of the block.
        offset: Position in the global array; empty for particles.
        has_ids: Whether a frame of int64 ids follows the array frame.
        digest: xxh3-64 of the array's bytes (then the ids'), 0 when digests are off.
        place: Where the bytes are, if not in frames.
        data: The bytes themselves, of a small array without ids: frame 0 has a digest of its own.
    """

    field: str
    dtype: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    has_ids: bool
    digest: int
    place: Place | None = None
    data: bytes | None = None


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """Base of all messages; no fields of its own."""


class Hello(_Message, frozen=True, tag=1):
    """A client rank introduces itself. Nothing else is accepted from it before.

    Attributes:
        version: `VERSION` of the sender.
        run: Name of the run; both sides must agree.
        rank: Rank of the sender in the simulation.
        ranks: Number of ranks.
        fields: Declared fields, the same on every rank.
        invariants: Names and reductions of the conserved quantities.
        step: Coupling step that this incarnation continues from.
        last_step: Coupling step at which the run will end.
        can_rewind: Whether the host keeps saved states.
        end_time: Simulated time at which the run will end, if it comes before `last_step`.
        token: Token that the client found in the run's folder in shared memory; empty when it uses none.
        epoch: Epoch that it is in already, and goes on in if the server knows it; 0 for a newcomer.
        seq: Highest seq that it has sent in that epoch: what has not come by now is lost.
    """

    version: int
    run: str
    rank: int
    ranks: int
    fields: tuple[FieldSpec, ...]
    invariants: dict[str, str]
    step: int
    last_step: int
    can_rewind: bool
    end_time: float = math.inf
    token: str = ""
    epoch: int = 0
    seq: int = 0


class Welcome(_Message, frozen=True, tag=2):
    """The server accepts a rank.

    Attributes:
        epoch: Incarnation of this stream; messages of a lower epoch are refused.
        credit: Messages that may be in flight.
        tasks: Names of the tasks that will answer.
        near: Whether the server found the same token: both sides see the same shared memory.
    """

    epoch: int
    credit: int
    tasks: tuple[str, ...]
    near: bool = False


class Refusal(_Message, frozen=True, tag=3):
    """The server does not accept a rank or a message, and says why in one sentence."""

    reason: str


class Stamp(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a message with a state belongs: stream, place in it, instant, and the table of the frames that follow.

    Attributes:
        rank: Sender.
        epoch: Incarnation given by Welcome.
        seq: Gap-free number in this stream and epoch, from 1.
        step: Coupling step of the state.
        time: Simulated time of the state.
        dt: Simulated time that one coupling step advances.
        controls_until: Simulated time of the next known change of a control.
        blocks: Table of the array frames.
    """

    rank: int
    epoch: int
    seq: int
    step: int
    time: float
    dt: float
    controls_until: float
    blocks: tuple[BlockEntry, ...]


class Ask(_Message, frozen=True, tag=4):
    """A rank's part of a question: what shall I do next? The state rides along, or is named by its decision number.

    Attributes:
        stamp: Stream, instant and block table.
        until: Next step that no horizon may pass.
        known: Decision number of the learned state that the host stands at; 0: the arrays are in this message.
        direct: True when the state was reached by direct integration alone since the last adopted state (only such
            states train), False for a blended one.
        saved: Steps of the saved states that the host could rewind to.
        invariants: This rank's contributions to the conserved quantities.
        refused: Why the host did not carry out the decision before; empty when it did.
        direct_step_s: Typical wall time of one directly integrated step, seconds; 0 when not known yet.
        stall_s: Wall time spent in the library since the last Ask, seconds.
        executed: Highest decision that the host carried out or refused: what it was sent later it has not acted on.
        adopted: Decision of the last learned state that the host took and did not undo; 0 when there is none.
    """

    stamp: Stamp
    until: int
    known: int = 0
    direct: bool = True
    saved: tuple[int, ...] = ()
    invariants: dict[str, float] = {}
    refused: str = ""
    direct_step_s: float = 0.0
    stall_s: float = 0.0
    executed: int = 0
    adopted: int = 0


class Push(_Message, frozen=True, tag=5):
    """A rank's part of a directly integrated state that asks for no answer."""

    stamp: Stamp
    invariants: dict[str, float] = {}


class Bye(_Message, frozen=True, tag=6):
    """A rank leaves. `status` is `finished` or the cause of its failure in one sentence."""

    rank: int
    epoch: int
    step: int
    status: str


class Ack(_Message, frozen=True, tag=7):
    """Acknowledges a stream up to and including a seq.

    Attributes:
        epoch: Incarnation that the numbers belong to.
        received: Highest seq received; frees the send window.
        durable: Highest seq that outlives the server; frees the client's retention.
        credit: Messages that may be in flight from now on.
        lost: The newest seqs up to `received` that never came, or came damaged; at most `LOST_TOLD`. Negative: it came,
            but its state could not be assembled.
    """

    epoch: int
    received: int
    durable: int
    credit: int
    lost: tuple[int, ...] = ()


class Advice(_Message, frozen=True, tag=8, kw_only=True):
    """The only answer to an Ask; what the host sees of it is `coupler.contracts.Advice`.

    Attributes:
        action: What to do.
        reason: Why, as a short sentence.
        decision: Number of the decision, the same on all ranks, rising; 0 when the client decided alone.
        ack: Acknowledgement and credit of this rank's stream; None when the client decided alone.
        answers: Step of the Ask that this answers.
        step: Step of the state to adopt (`answers + horizon`).
        time: Simulated time of that state.
        dt: dt for direct steps, or of the learned state; 0 keeps the host's own.
        horizon: Steps covered.
        lease: Steps for which this Advice holds: no need to ask again before `answers + lease`.
        weight: Weight of the learned state in (0, 1]; below 1 the host integrates and mixes.
        phase: Phase of the switch.
        bound: Calibrated bound of the horizon error.
        tolerance: What the bound was held against.
        version: Version of the model.
        step_error: Error found by an audit that this decision closes; NaN otherwise.
        residual: Distance of the state asked about from the trained ones.
        rewind_to: Step of the saved state to restore.
        observables: Forecast observables, one value for each covered step.
        blocks: Table of the array frames: this rank's part of the state to adopt.
    """

    action: Action
    reason: str = ""
    decision: int = 0
    ack: Ack | None = None
    answers: int = -1
    step: int = -1
    time: float = math.nan
    dt: float = 0.0
    horizon: int = 0
    lease: int = 1
    weight: float = 1.0
    phase: Phase = "direct"
    bound: float = math.inf
    tolerance: float = math.nan
    version: int = 0
    step_error: float = math.nan
    residual: float = math.nan
    rewind_to: int = -1
    observables: dict[str, list[float]] = {}
    blocks: tuple[BlockEntry, ...] = ()


class Sample(_Message, frozen=True, tag=9):
    """A directly integrated global state for a trainer, held in a slot of the buffer file that both sides map.

    Attributes:
        slot: Index of the slot; the trainer returns it through `Trained.released`.
        generation: Number of the write into this slot, to find a stale one.
        step: Coupling step.
        time: Simulated time.
        dt: Simulated time of one coupling step.
        controls_until: Simulated time of the next known change of a control.
    """

    slot: int
    generation: int
    step: int
    time: float
    dt: float
    controls_until: float


class Begin(_Message, frozen=True, tag=13):
    """The server tells a trainer what it will learn from; nothing is sampled before.

    Attributes:
        fields: Fields of a sample, invariants appended.
        slots: Path of the buffer file that both map.
        count: Number of its slots.
    """

    fields: tuple[FieldSpec, ...]
    slots: str
    count: int


class Ready(_Message, frozen=True, tag=10):
    """A trainer is up, or has met a server anew, and wants the samples of one task, or one rank's share of them.

    Attributes:
        version: Version of the wire layout.
        run: Name of the run.
        task: Name of the task.
        rank: Which rank of the task.
        begun: Whether it has had a Begin; a server that sent it one needs not send it again.
    """

    version: int
    run: str
    task: str
    rank: int = 0
    begun: bool = False


class Trained(_Message, frozen=True, tag=11):
    """What a trainer did since its last message.

    Attributes:
        task: Name of the task.
        released: Slots that may be written again.
        version: Version of its best model.
        path: File (safetensors) with the state to serve, relative to the run folder; empty when nothing changed.
        kind: Kind of the model.
        trained_on: Snapshots used.
        last_step: Watermark: highest step trained on.
        superseded: Snapshots dropped from the training set because the run rewound.
        calibrated: Whether `backtests` holds news: they replace all earlier ones, also when there are none.
        backtests: (horizon, estimated, observed) for each back-test of the model.
        cpu_s: CPU time used since the last message, seconds.
        failure: Why the task's plug-in cannot go on; empty while it can.
        rank: Which rank of the task.
    """

    task: str
    released: tuple[int, ...] = ()
    version: int = 0
    path: str = ""
    kind: str = ""
    trained_on: int = 0
    last_step: int = -1
    superseded: int = 0
    calibrated: bool = False
    backtests: tuple[tuple[int, float, float], ...] = ()
    cpu_s: float = 0.0
    failure: str = ""
    rank: int = 0


class Pace(_Message, frozen=True, tag=14):
    """The server tells a trainer how much of a core it may use from now on.

    Attributes:
        share: Share of one core in (0, 1], on average; 1 within the budget and while the ranks are idle.
    """

    share: float


class Halt(_Message, frozen=True, tag=12):
    """The server asks a trainer to end."""


Message = Hello | Welcome | Refusal | Ask | Push | Bye | Ack | Advice | Sample | Ready | Trained | Halt | Begin | Pace
