"""From a run folder to open Links and a Coupling: what every process of a run does first."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from coupler import registry
from coupler.bulks import folder as bulk_folder
from coupler.bulks.adios_engine import RESERVE, available
from coupler.bulks.bulk import Bulk
from coupler.bulks.choice import BulkRules
from coupler.bulks.node_stream import NodeStream
from coupler.bulks.outbox import SPARE_SLOTS, Outbox, Stream
from coupler.bulks.shared import RingReader
from coupler.bulks.streams import Streams
from coupler.contracts import Invariant, Link
from coupler.coupling import Coupling
from coupler.errors import LinkError
from coupler.guard import Guard
from coupler.ranks import Ranks
from coupler.recording import RunRecorder
from coupler.terms import Terms
from schemas import run
from schemas.fields import FieldSpec

if TYPE_CHECKING:
    from coupler.links.zeromq import LinkLimits

CASE = "case.toml"
KEYS = "keys.json"
SOCKET = "link/s"
KEEP_EVERY = 16
"""Direct steps between states kept where dt is chosen: so many are made again at most when one fails."""
MOST_PEERS = 64
"""Peers whose control messages the server's queues have room for; states are bounded by the credit."""


def read_case(folder: Path) -> run.RunSpec:
    """The resolved case of a run folder."""
    return run.parse((folder / CASE).read_text(encoding="utf-8"))


def terms(spec: run.RunSpec, first_step: int = 0) -> Terms:
    """What a client of this case keeps to that continues from a step."""
    return Terms(
        run=spec.run.name,
        first_step=first_step,
        last_step=spec.run.steps,
        end_time=math.inf if spec.run.end_time is None else spec.run.end_time,
        keep_every=KEEP_EVERY if dt_is_chosen(spec) else 0,
        dt=spec.limits.dt or 0.0,
        dt_steps=spec.limits.dt_steps,
        deadline_s=spec.link.deadline_s,
        max_message_bytes=spec.link.max_message_bytes,
        digest=spec.link.digest,
    )


def dt_is_chosen(spec: run.RunSpec) -> bool:
    """Whether the server may choose the dt of the steps."""
    return spec.run.mode in ("advise", "act") and spec.limits.dt_min is not None


def guard(spec: run.RunSpec) -> Guard:
    """The Guard of this case."""
    limits = {"dt_min": spec.limits.dt_min, "dt_max": spec.limits.dt_max}
    given = {name: value for name, value in limits.items() if value is not None}
    errors = spec.limits.errors if dt_is_chosen(spec) else {}
    return Guard(bounds=dict(spec.guard.bounds), drift=dict(spec.guard.invariants), errors=dict(errors), **given)


def listen(spec: run.RunSpec, folder: Path) -> Link:
    """The server's Link.

    Raises:
        LinkError: The address cannot be used.
    """
    from coupler.links import security

    keys = security.load_keys(folder / KEYS).server() if spec.link.curve else None
    transport = registry.find("links", spec.link.use)
    link: Link = transport.listen(_address(spec, folder), limits=_limits(spec, peers=MOST_PEERS), keys=keys)
    return link


def connect(spec: run.RunSpec, folder: Path, identity: str) -> Link:
    """A client's or trainer's Link. The server need not be there yet.

    Raises:
        LinkError: The address cannot be used.
    """
    from coupler.links import security

    keys = security.load_keys(folder / KEYS).client() if spec.link.curve else None
    limits = _limits(spec, peers=1)
    transport = registry.find("links", spec.link.use)
    link: Link = transport.connect(_address(spec, folder), identity=identity.encode(), limits=limits, keys=keys)
    return link


def bulk(
    spec: run.RunSpec, folder: Path, stem: str, slots: int | None = None, fields: Sequence[FieldSpec] | None = None
) -> Bulk:
    """How the Blocks of one process of a run travel.

    Args:
        spec: The case.
        folder: Run folder.
        stem: Who it is: letters, digits and hyphens.
        slots: Slots of a ring unless the case says; room for the credit when None.
        fields: What a rank may send in streams; None on the server's side, which reads them.
    """
    rules = bulk_rules(spec)
    shared, token = bulk_folder.shared_folder(folder), ""
    if not (near := no_shared_memory(spec)):
        try:
            token = bulk_folder.make(shared)
        except LinkError as error:
            near = str(error)
    contacts = (folder / SOCKET).resolve().parent

    def open_stream() -> Stream:
        contacts.mkdir(mode=0o700, exist_ok=True)
        return NodeStream(contacts, fields or (), rules.adios, shared, f"{stem}-courier")

    outbox = Outbox(
        rules,
        folder=shared if token else None,
        no_folder=near,
        stem=stem,
        slots=slots or spec.link.credit + SPARE_SLOTS,
        digest=spec.link.digest,
        unchanging=fields is None,  # a forecast stays what it is
        adios=available if fields is not None else lambda: "learned states come back in frames",
        stream=open_stream,
    )
    streams = Streams(contacts, rules.adios) if fields is None else None
    return Bulk(outbox, RingReader(shared) if token else None, streams, token, shared if token else None)


def bulk_rules(spec: run.RunSpec) -> BulkRules:
    """What the case says about the bulk."""
    own = spec.bulk
    adios = {key: str(value) for key, value in own.adios.items()}
    if not any(key.lower() == "queuelimit" for key in adios):
        adios["QueueLimit"] = str(spec.link.credit + RESERVE + SPARE_SLOTS)
    return BulkRules(use=own.use, fields=dict(own.fields), slots=own.slots, adios=adios)


def no_shared_memory(spec: run.RunSpec) -> str:
    """Why no field of a case goes by shared memory; empty when one may, which the handshake will tell."""
    if {spec.bulk.use, *spec.bulk.fields.values()} <= {"inline"}:
        return "no field goes by shared memory"
    if spec.run.rung in ("inline", "threads") and spec.bulk.use == "auto":
        return "one process, whose Link is memory"
    return ""


def open_coupling(
    folder: Path | str,
    fields: Sequence[FieldSpec],
    *,
    ranks: Ranks | None = None,
    invariants: Mapping[str, Invariant] | None = None,
    can_rewind: bool = True,
    start_step: int = 0,
    link: Link | None = None,
) -> Coupling:
    """Opens the Coupling of one rank of the simulation in a run folder.

    Args:
        folder: Run folder, holding the resolved `case.toml`.
        fields: Declared fields.
        ranks: Ranks of the simulation; serial when None.
        invariants: First contributions to the conserved quantities, if there are any.
        can_rewind: Whether the host keeps saved states.
        start_step: Step to continue from.
        link: A connected Link to use in place of the case's own (one-process rungs).

    Returns:
        The Coupling; with mode `off` it never talks to anyone.

    Raises:
        CaseError: The case names a field or an invariant that the simulation does not have.
        LinkError: The address cannot be used.
    """
    from coupler.errors import CaseError

    folder, ranks = Path(folder), ranks or Ranks()
    spec = read_case(folder)
    mistakes = run.guard_mistakes(spec.guard, fields, invariants or {}) + run.bulk_mistakes(spec.bulk, fields)
    if mistakes := mistakes + run.limit_mistakes(spec.limits, fields):
        raise CaseError(mistakes)
    if link is None and spec.run.mode != "off":
        link = connect(spec, folder, f"rank-{ranks.rank}")
    recorder = RunRecorder(folder if ranks.rank == 0 else None)
    ways = bulk(spec, folder, f"rank-{ranks.rank}", fields=fields) if link is not None else None
    coupling = Coupling(
        link,
        fields,
        terms(spec, start_step),
        ranks=ranks,
        guard=guard(spec),
        recorder=recorder,
        bulk=ways,
        invariants=invariants,
        can_rewind=can_rewind,
    )
    if ways is not None and ranks.rank == 0:
        recorder.keep_books(lambda: (coupling.ledger, coupling.books, ways.outbox.ways))
    return coupling


def socket_path(folder: Path) -> Path:
    """Where the socket of a run lies: in its folder, or, where that path is too long, in the temporary folder."""
    from coupler.links.security import IPC_PATH_BYTES

    path = (folder / SOCKET).resolve()
    if len(os.fsencode(path)) <= IPC_PATH_BYTES:
        return path
    name = f"coupler-{os.geteuid()}-{xxhash.xxh3_64_hexdigest(os.fsencode(path.parent))}"
    return Path(tempfile.gettempdir()).resolve() / name / path.name


def _address(spec: run.RunSpec, folder: Path) -> str:
    return f"ipc://{socket_path(folder)}" if spec.link.address == "ipc" else spec.link.address


def _limits(spec: run.RunSpec, peers: int) -> LinkLimits:
    from coupler.links import zeromq

    # What waits unread is bounded by the credit; libzmq frees queue room in batches of half a queue, hence the two.
    messages = 2 * (spec.link.credit + 4) * peers
    queue = max(spec.link.window_bytes, messages * spec.link.max_message_bytes)
    return zeromq.LinkLimits(max_message_bytes=spec.link.max_message_bytes, queue_bytes=queue)
