"""All peers in the order of the tables, and our own rows."""

from __future__ import annotations

from benchmarks.peers import files, ipi, mdi_driver, mpi, ours, redis_store, rpc, zeromq

PEERS = (
    *zeromq.PEERS,
    *redis_store.PEERS,
    *files.PEERS,
    *rpc.PEERS,
    *ipi.PEERS,
    *mdi_driver.PEERS,
    *mpi.PEERS,
    *ours.PEERS,
)
BASELINE = zeromq.BASELINE
BY_NAME = {peer.name: peer for peer in PEERS}
