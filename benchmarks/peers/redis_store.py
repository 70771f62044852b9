"""Redis: a stock redis-server on a unix socket between two clients, redis-py or SmartRedis.

redis-py is used in two ways. With lists the consumer sleeps until an array comes (BLPOP). With keys it looks again and
again, which is what SmartRedis does as well, for there is no word for "wake me" in its interface. SmartRedis's tensors
are a command of the module RedisAI; a stock server refuses them, and then its row says so.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.exchange import (
    IDLE_S,
    PATIENCE_S,
    POLL_S,
    Array,
    Peer,
    Place,
    await_any,
    modules_missing,
    raw,
    respond,
)
from benchmarks.peers.processes import end, start

MODULE = "REDISAI"
"""Environment variable: path of the RedisAI module to load, for SmartRedis."""
SERVER = "install redis-server: sh scripts/system_packages.sh bench"


def missing(module: str, install: str) -> str | None:
    return modules_missing(module, install=install) if shutil.which("redis-server") else SERVER


@contextmanager
def server(folder: Path) -> Iterator[None]:
    """A redis-server of its own: unix socket, nothing written to disk, ended by its id."""
    options = ["--port", "0", "--unixsocket", str(folder / "redis"), "--dir", str(folder)]
    options += ["--save", "", "--appendonly", "no"]
    if module := os.environ.get(MODULE):
        options += ["--loadmodule", module]
    process = start(["redis-server", *options], folder / "redis.log", stdin=subprocess.DEVNULL)
    try:
        await_any([folder / "redis"], PATIENCE_S)
        yield
    finally:
        end(process, signal.SIGTERM)


class Lists:
    """A client of redis-py that pushes to a list and sleeps at another."""

    def __init__(self, place: Place) -> None:
        self._client = client(place)

    def send(self, key: str, array: Array) -> None:
        """Puts an array into the store."""
        self._client.rpush(key, raw(array))

    def receive(self, key: str, patience_s: float) -> Array:
        """Waits for an array and takes it out of the store."""
        found = self._client.blpop([key], timeout=patience_s)
        if found is None:
            raise TimeoutError(f"list {key!r} stayed empty for {patience_s:g} s")
        return np.frombuffer(found[1])

    def close(self) -> None:
        """Frees everything."""
        self._client.close()


class Keys(Lists):
    """A client of redis-py that sets a key and looks whether another is there."""

    def send(self, key: str, array: Array) -> None:
        """Puts an array into the store."""
        self._client.set(key, raw(array))

    def receive(self, key: str, patience_s: float) -> Array:
        """Waits for an array and takes it out of the store."""
        look_for(lambda: self._client.exists(key), key, patience_s)
        found = np.frombuffer(self._client.get(key))
        self._client.delete(key)
        return found


class Tensors:
    """A client of SmartRedis."""

    def __init__(self, place: Place) -> None:
        os.environ |= {"SSDB": f"unix://{place.folder / 'redis'}", "SR_DB_TYPE": "Standalone", "SR_LOG_LEVEL": "QUIET"}
        from smartredis import Client

        self._client = Client(False)

    def send(self, key: str, array: Array) -> None:
        """Puts an array into the store."""
        self._client.put_tensor(key, array)

    def receive(self, key: str, patience_s: float) -> Array:
        """Waits for an array and takes it out of the store."""
        look_for(lambda: self._client.key_exists(key), key, patience_s)
        found: Array = self._client.get_tensor(key)
        self._client.delete_tensor(key)
        return found

    def close(self) -> None:
        """Frees everything."""
        del self._client


def client(place: Place) -> Any:
    import redis

    return redis.Redis(unix_socket_path=str(place.folder / "redis"), socket_timeout=2 * IDLE_S)


def look_for(there: Callable[[], object], key: str, patience_s: float) -> None:
    """Looks until a key is there."""
    end_s = time.monotonic() + patience_s
    while not there():
        if time.monotonic() > end_s:
            raise TimeoutError(f"key {key!r} did not come within {patience_s:g} s")
        time.sleep(POLL_S)


class Store:
    """Producer, by a client of one of the three kinds."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def put(self, array: Array) -> None:
        """See `Exchange.put`."""
        self._store.send("question", array)

    def get(self) -> Array:
        """See `Exchange.get`."""
        found: Array = self._store.receive("answer", PATIENCE_S)
        return found

    def close(self) -> None:
        """See `Exchange.close`."""
        self._store.close()


def peer(name: str, store: Callable[[Place], Any], why_not: Callable[[], str | None]) -> Peer:
    def produce(place: Place) -> Store:
        return Store(store(place))

    def consume(place: Place) -> None:
        mine, out = store(place), place.empty()
        while True:
            mine.send("answer", respond(mine.receive("question", IDLE_S), out))

    return Peer(name, produce, consume, why_not, server)


def no_client() -> str | None:
    return missing("redis", "pip install 'coupler[bench]'")


def no_smartredis() -> str | None:
    return missing("smartredis", "pip install --no-deps smartredis, which asks for an older NumPy than ours")


PEERS = (
    peer("redis-py, lists", Lists, no_client),
    peer("redis-py, keys", Keys, no_client),
    peer("SmartRedis", Tensors, no_smartredis),
)
