"""A side of a stream in a process of its own: `python adios_peer.py write|read|rank PATH`; led through its input.

The bindings hold the interpreter's lock while they wait, so the two sides of a stream cannot share a process.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from coupler.bulks.adios import AdiosWriter
from coupler.bulks.node_stream import Crowded, NodeStream
from coupler.bulks.streams import PartReader
from coupler.errors import CouplerError
from schemas.fields import Block, FieldSpec
from schemas.messages import Place

FIELDS = (
    FieldSpec("x", "<f8", (6, 4), "m"),
    FieldSpec("p", "<f4", (9, 2), "m", "particle"),
    FieldSpec("m", "|u1", (6, 4), "1"),
)
OTHERS = (FieldSpec("x", "<f8", (6, 5), "m"),)
PATIENCE_S = 20.0


def blocks(step: int) -> dict[str, Block]:
    x = np.asfortranarray(1.0 * step + np.arange(12.0).reshape(3, 4))
    ids = np.arange(step % 4, dtype=np.int64) * 2  # none at all at every fourth step
    p = np.repeat(ids.astype(">f4")[:, None], 2, axis=1) + np.float32(step)
    return {"x": Block(x, (2, 0)), "p": Block(p, (), ids), "m": Block(np.full((3, 4), 255 - step, np.uint8), (2, 0))}


def part(rank: int, step: int) -> dict[str, Block]:
    """What one of three ranks puts: two rows each, and particles that wander."""
    x = 10.0 * step + rank + np.arange(8.0).reshape(2, 4)
    ids = np.array([i for i in range(9) if (i + step) % 3 == rank], np.int64)
    p = np.repeat(ids.astype("<f4")[:, None], 2, axis=1)
    m = np.array([[128 + rank] * 4, [255 - step] * 4], np.uint8)  # no text in any encoding
    return {"x": Block(x, (2 * rank, 0)), "p": Block(p, (), ids), "m": Block(m, (2 * rank, 0))}


def told(step: Any) -> Any:
    return {
        name: [b.array.tolist(), list(b.offset), None if b.ids is None else b.ids.tolist()] for name, b in step.items()
    }


class Peer:
    """One side of a stream, seen from the test."""

    def __init__(self, role: str, folder: Path, name: str = "stream") -> None:
        here = Path(__file__)
        environment = {**os.environ, "PYTHONPATH": str(here.parents[2])}
        command = [sys.executable, str(here), role, str(folder / name)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def ask(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def has_said(self, timeout_s: float = 0.0) -> bool:
        return bool(select.select([self.process.stdout], [], [], timeout_s)[0])

    def hear(self) -> Any:
        assert self.has_said(1.5 * PATIENCE_S), "it hangs"
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline() or "null")

    def do(self, line: str) -> Any:
        self.ask(line)
        return self.hear()

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.communicate()


@contextmanager
def reading(folder: Path, name: str) -> Iterator[Peer]:
    """A reader of a stream, once it has opened it."""
    reader = Peer("read", folder, name)
    try:
        assert reader.hear() == "open"
        yield reader
    finally:
        reader.end()


@contextmanager
def streams(folder: Path, ranks: int = 1) -> Iterator[list[NodeStream]]:
    """The ways of some ranks into the stream of their node. Nothing of them is left."""
    made = [NodeStream(folder, FIELDS, {}, folder, f"rank-{rank}") for rank in range(ranks)]
    try:
        for stream in made:
            opened(stream)
        yield made
    finally:
        for stream in reversed(made):  # the one that started the courier waits for the others
            stream.close()
    assert not list(folder.iterdir())


def opened(stream: NodeStream) -> None:
    """Waits until the courier has a stream."""
    end = time.monotonic() + PATIENCE_S
    while not stream.opened:
        assert time.monotonic() < end, "there is no stream"
        time.sleep(0.005)
        stream._look()


def put(stream: NodeStream, step: int, blocks: Mapping[str, Block]) -> Place:
    """Gives a state as soon as the courier takes it."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return stream.put(step, 0.5 * step, blocks)
        except Crowded:
            assert time.monotonic() < end, "it is always crowded"
            time.sleep(0.005)


def fetch(reader: Peer, place: Place, timeout_s: float = 10.0) -> Any:
    return reader.do(f"fetch {place.generation} {timeout_s} {place.slot}")


def pid_of(stream: NodeStream) -> int:
    assert stream.process is not None
    return stream.process.pid


def main(role: str, path: Path) -> None:
    fields = OTHERS if role == "misread" else FIELDS
    if role == "rank":
        side: Any = NodeStream(path.parent, FIELDS, {}, path.parent, f"rank-{os.getpid()}")
        put(side, 0, blocks(1))
        print(json.dumps(side.process.pid if side.process else 0), flush=True)
    else:
        side = AdiosWriter(path, FIELDS) if role == "write" else PartReader(path, fields, {}, PATIENCE_S)
        print(json.dumps("open"), flush=True)
    number = 0
    for line in sys.stdin:
        word, *rest = line.split()
        answer: Any = None
        try:
            if word == "put":
                number = side.put(int(rest[0]), 0.0, blocks(int(rest[0])))
                answer = number
            elif word == "come_by":
                side.come_by()
            elif word == "fetch":
                number, timeout_s, *member = rest
                answer = told(side.fetch(int(*member or [0]), int(number), float(timeout_s)))
            elif word == "steps":
                answer = side._reader._reads
            elif word == "close":
                side.close()
        except CouplerError as error:
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)
        if word == "close":
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
