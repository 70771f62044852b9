"""Which way each field goes, and why. Pure.

`auto`, for a Block of n bytes:

    the other side sees this node's shared memory and n >= 4096     shared
    another node, the `[adios]` extra is installed and n >= 2^20    adios
    else                                                            inline
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

SMALL_BYTES = 4096
"""A smaller Block is sooner in a frame than in a slot."""
TOO_SMALL = f"less than {SMALL_BYTES} bytes"
ADIOS_BYTES = 1 << 20
"""Between nodes a smaller Block is sooner in a frame than in a stream."""


class BulkRules(msgspec.Struct, frozen=True, kw_only=True):
    """What the run file says.

    Attributes:
        use: `auto`, `shared`, `inline` or `adios`.
        fields: Exceptions, by field name.
        slots: Slots of a ring; None for the credit and four more.
        adios: Parameters of the ADIOS2 engine.
    """

    use: str = "auto"
    fields: dict[str, str] = {}
    slots: int | None = None
    adios: dict[str, str] = {}


class Route(NamedTuple):
    """The way of one field.

    Attributes:
        use: `shared`, `inline` or `adios`.
        why: In a few words.
    """

    use: str
    why: str


def outlook(rules: BulkRules, adios: str, no_shared: str = "") -> list[str]:
    """What `choose` will do, in words, before the sizes are known.

    Args:
        rules: What the run file says.
        adios: Why ADIOS2 cannot be used; empty when it can.
        no_shared: Why shared memory is not used; empty when it may be.
    """
    streams = "in frames" if adios else f"from {ADIOS_BYTES} bytes in ADIOS2 SST streams, smaller ones in frames"
    ways = {
        "inline": "in frames of the message",
        "shared": "in slots of shared memory, or in frames where the server does not see this node's",
        "adios": f"in frames, because {adios}" if adios else "in ADIOS2 SST streams",
        "auto": f"from {SMALL_BYTES} bytes in slots of shared memory where the server sees this node's, else {streams}",
    }
    if no_shared:
        ways["shared"] = ways["auto"] = f"in frames: {no_shared}"
    others = [f"{field}: {ways[use]}" for field, use in rules.fields.items()]
    return [f"arrays: {ways[rules.use]}", *others]


FAR = "the other side does not see this node's shared memory"


def choose(rules: BulkRules, field: str, nbytes: int, near: str, adios: Callable[[], str]) -> Route:
    """The way of one field.

    Args:
        rules: What the run file says.
        field: Its name.
        nbytes: Bytes of this rank's Block.
        near: Empty where the other side sees this node's shared memory, else why not.
        adios: Tells why ADIOS2 cannot be used, or nothing where it can; asked only when it matters.
    """
    wanted = rules.fields.get(field, rules.use)
    if wanted == "inline":
        return Route("inline", "as the run file says")
    if wanted == "shared":
        return Route("inline", f"not shared: {near}") if near else Route("shared", "as the run file says")
    if wanted == "adios":
        reason = adios()
        return Route("inline", f"not adios: {reason}") if reason else Route("adios", "as the run file says")
    if nbytes < SMALL_BYTES:
        return Route("inline", TOO_SMALL)
    if not near:
        return Route("shared", "both sides are on one node")
    if near == FAR and nbytes >= ADIOS_BYTES and not adios():
        return Route("adios", "the other side is on another node")
    return Route("inline", near)
