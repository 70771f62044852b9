"""Makes the golden files: the frames of one message of each kind, each behind its length (8 bytes, little-endian).

    python tests/golden/make.py         writes them anew, after a change of the wire layout (and of `VERSION`)

Readers in other languages decode them; tests compare them byte for byte with what `schemas.wire` makes today.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from schemas import messages as m
from schemas import wire
from schemas.fields import Block, FieldSpec

HERE = Path(__file__).parent
FIELDS = (
    FieldSpec("velocity", "<f4", (4, 3, 2), "m/s"),
    FieldSpec("position", "<f8", (5, 2), "1", "particle", blend="linear"),
    FieldSpec("inflow", "<f8", (), "m/s", "scalar", "control"),
)
BLOCKS: dict[str, Block] = {
    "velocity": Block(np.arange(12, dtype="<f4").reshape(2, 3, 2) / 8, (2, 0, 0)),
    "position": Block(np.array([[0.5, -1.25], [3e300, -0.0]]), (), np.array([4, 1])),
    "inflow": Block(np.array(0.1)),
}


def _stamp(table: tuple[m.BlockEntry, ...]) -> m.Stamp:
    return m.Stamp(3, 2, 17, 1_000_000, 12.5, 0.0125, math.inf, table)


def _advice(table: tuple[m.BlockEntry, ...]) -> m.Advice:
    return m.Advice(
        action=m.Action.LEARNED,
        reason="the model keeps the tolerance",
        decision=70_000,
        ack=m.Ack(2, 17, 0, 8),
        answers=1_000_000,
        step=1_000_010,
        time=12.625,
        dt=0.0125,
        horizon=10,
        weight=0.5,
        phase="learned",
        bound=0.02,
        tolerance=0.05,
        version=4,
        residual=0.0,
        observables={"drag": [1.0, 2.5], "lift": [-0.5, 0.0]},
        blocks=table,
    )


def examples() -> dict[str, tuple[m.Message, Mapping[str, Block]]]:
    """One message of each kind, and its Blocks."""
    table = wire.block_table(BLOCKS)[0]
    energy = {"energy": -3.5}
    return {
        "hello": (m.Hello(m.VERSION, "cylinder", 3, 4, FIELDS, {"energy": "sum"}, 0, 2_000_000, True), {}),
        "welcome": (m.Welcome(2, 8, ("flow", "dt")), {}),
        "refusal": (m.Refusal("The client belongs to run 'a', this server to 'b'."), {}),
        "ask": (m.Ask(_stamp(table), 1_000_050, saved=(999_990,), invariants=energy, executed=69_999), BLOCKS),
        "ask_known": (m.Ask(_stamp(table[2:]), 1_000_050, 70_000, refused="too late", adopted=70_000), {}),
        "push": (m.Push(_stamp(table), energy), BLOCKS),
        "bye": (m.Bye(3, 2, 2_000_000, "finished"), {}),
        "ack": (m.Ack(2, 17, 0, 8), {}),
        "advice": (_advice(table), BLOCKS),
        "advice_direct": (m.Advice(action=m.Action.DIRECT, reason="cooling down after a failure"), {}),
        "sample": (m.Sample(5, 9, 1_000_000, 12.5, 0.0125, 13.0), {}),
        "begin": (m.Begin(FIELDS, "/dev/shm/run/slots", 64), {}),
        "ready": (m.Ready(m.VERSION, "cylinder", "flow"), {}),
        "trained": (
            m.Trained("flow", (5, 6), 4, "checkpoint/flow-0", "affine", 48, 999_999, backtests=((10, 0.01, 0.02),)),
            {},
        ),
        "halt": (m.Halt(), {}),
        "pace": (m.Pace(0.25), {}),
    }


def frames(message: m.Message, blocks: Mapping[str, Block]) -> list[bytes]:
    """The frames of an example."""
    if isinstance(message, m.Ask) and message.known:
        blocks = {"inflow": BLOCKS["inflow"]}
    return [bytes(frame) for frame in wire.encode(message, wire.block_table(blocks)[1])]


def packed(parts: list[bytes]) -> bytes:
    """Frames as one file."""
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def unpacked(data: bytes) -> list[bytes]:
    """The frames in a file."""
    parts = []
    while data:
        size = int.from_bytes(data[:8], "little")
        parts.append(data[8 : 8 + size])
        data = data[8 + size :]
    return parts


def main() -> None:
    """Writes every golden file."""
    for name, (message, blocks) in examples().items():
        (HERE / f"{name}.bin").write_bytes(packed(frames(message, blocks)))


if __name__ == "__main__":
    main()
