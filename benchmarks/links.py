"""Round trips over our ZeroMQ Link and over bare pyzmq, interleaved in one run: `python -m benchmarks.links`.

Both run the same pattern: a DEALER here, a ROUTER in a child process that sends every message back, over ipc. Bare
pyzmq is used as its guide shows it: `send_multipart`, blocking `recv_multipart`, copies. The two take turns trip by
trip, served by one thread of one child: otherwise the kernel's placement of the threads of two children decides, by a
factor of three. The rows `send ...` are the reason why `send` copies: what one send of a large frame costs the
solver's thread until its array may be changed again.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import zmq

from coupler.links.zeromq import LinkLimits, connect, listen

SIZES = {"64 B": 64, "8 kB": 8_000, "800 kB": 800_000, "4.3 MB": 4_300_000}
LIMITS = LinkLimits(max_message_bytes=8_000_000, queue_bytes=160_000_000)
TURNS, WARM_UP = 200, 20


def echo_bare(address: str) -> None:
    """Child: a ROUTER of bare pyzmq sends everything back until an empty message comes."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as sock:
        sock.bind(address)
        while (message := sock.recv_multipart())[1]:
            sock.send_multipart(message)
        sock.linger = 0


def echo_both(bare_address: str, our_address: str) -> None:
    """Child: bare pyzmq and our listener do the same in turn."""
    with (
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as sock,
        closing(listen(our_address, limits=LIMITS)) as link,
    ):
        sock.bind(bare_address)
        while (message := sock.recv_multipart())[1]:
            sock.send_multipart(message)
            answer = link.receive(60)
            if answer is None or not link.send(list(answer[1]), answer[0]):
                raise RuntimeError("the Link lost a message while nothing failed")
        sock.linger = 0


@contextmanager
def child(work: Callable[..., None], *arguments: Any) -> Iterator[int]:
    """Runs a function in a process of its own, whose id it gives; it ends by itself."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    assert process.pid is not None  # it was started
    try:
        yield process.pid
        process.join(20)
    finally:
        process.kill()
        process.join()


def timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def figures(case: str, size: int, seconds: list[float], against: list[float], name: str) -> dict[str, Any]:
    """One row; the ratio is that of the medians."""
    p50, p99 = (1e6 * float(np.percentile(seconds, p)) for p in (50, 99))
    ratio = p50 / (1e6 * float(np.median(against)))
    return {"case": case, "bytes": size, "p50_us": p50, "p99_us": p99, "ratio": ratio, "against": name}


def round_trips(directory: str) -> list[dict[str, Any]]:
    """Our Link against bare pyzmq, for each size."""
    bare_address, our_address = f"ipc://{directory}/bare", f"ipc://{directory}/ours"
    out = []
    with (
        zmq.Context() as context,
        context.socket(zmq.DEALER) as bare,
        closing(connect(our_address, identity=b"bench", limits=LIMITS)) as ours,
        child(echo_both, bare_address, our_address),
    ):
        bare.connect(bare_address)
        bare.send(b"hello")
        bare.recv()
        while not ours.send([b"hello"]):
            ours.receive(0.01)
        ours.receive(60)
        for name, size in SIZES.items():
            payload = np.zeros(size, np.uint8).data

            def bare_trip(payload: memoryview = payload) -> None:
                bare.send_multipart([payload])
                bare.recv_multipart()

            def our_trip(payload: memoryview = payload) -> None:
                if not ours.send([payload]) or ours.receive(60) is None:
                    raise RuntimeError("the Link lost a message while nothing failed")

            seconds: dict[str, list[float]] = {"bare": [], "ours": []}
            for turn in range(TURNS * (10 if size < 100_000 else 1)):
                for which, trip in (("bare", bare_trip), ("ours", our_trip)):
                    taken = timed(trip)
                    if turn >= WARM_UP:
                        seconds[which].append(taken)
            out.append(figures(f"pyzmq round trip {name}", size, seconds["bare"], seconds["bare"], ""))
            out.append(figures(f"Link round trip {name}", size, seconds["ours"], seconds["bare"], "pyzmq round trip"))
        bare.send_multipart([b""])
    return out


def sends(directory: str) -> list[dict[str, Any]]:
    """Ways to get a large frame off the solver's hands: copy, staging buffer, waiting for libzmq to let go."""
    address = f"ipc://{directory}/sends"
    out = []
    with zmq.Context() as context, context.socket(zmq.DEALER) as sock, child(echo_bare, address):
        sock.connect(address)
        for name, size in (("800 kB", 800_000), ("4.3 MB", 4_300_000)):
            payload, stage = np.ones(size, np.uint8).data, np.ones(size, np.uint8).data

            def copied(payload: memoryview = payload) -> None:
                sock.send(payload)

            def staged(payload: memoryview = payload, stage: memoryview = stage) -> None:
                stage[:] = payload
                sock.send(stage, copy=False)

            def waited(payload: memoryview = payload) -> None:
                tracker = sock.send(payload, copy=False, track=True)
                if tracker is not None:
                    tracker.wait()

            ways = {"copy": copied, "staging buffer": staged, "zero copy, wait": waited}
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(TURNS):
                for way, send in ways.items():
                    taken = timed(send)
                    sock.recv_multipart()
                    if turn >= WARM_UP:
                        seconds[way].append(taken)
            out += [figures(f"send {way} {name}", size, seconds[way], seconds["copy"], "copy") for way in ways]
        sock.send_multipart([b""])
    return out


def rows() -> list[dict[str, Any]]:
    """Every figure as a row with case, bytes, p50_us, p99_us, ratio (of the medians) and against (what)."""
    with tempfile.TemporaryDirectory() as directory:
        return round_trips(directory) + sends(directory)


def main() -> None:
    print(f"{'case':28} {'bytes':>9} {'p50 us':>9} {'p99 us':>9} {'ratio':>6}  against")
    for row in rows():
        print("{case:28} {bytes:>9} {p50_us:>9.1f} {p99_us:>9.1f} {ratio:>6.2f}  {against}".format(**row))


if __name__ == "__main__":
    main()
