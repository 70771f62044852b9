"""The run file: what one coupled run is, as frozen Structs read from TOML. Units stand in the key names.

Nothing physical has a default. Plug-in keys stand beside the known ones in `[simulation]` and `[[task]]` and are kept
as `settings`; `coupler.registry` turns them into constructor arguments. Rules that span several keys, and messages
with file and line, are in `launch.check`; a process that reads the resolved case needs neither.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from schemas import toml_text
from schemas.fields import FieldSpec

Mode = Literal["off", "shadow", "advise", "act"]
Rung = Literal["inline", "threads", "local", "mpi"]
Transport = Literal["auto", "shared", "inline", "adios"]
Distribution = Literal["steps", "blocks"]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\Z")]
Count = Annotated[int, Meta(gt=0)]
Positive = Annotated[float, Meta(gt=0, le=sys.float_info.max)]


class RunSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[run]`.

    Attributes:
        name: Names the run folder and the report.
        steps: Coupling steps to simulate; with `end_time` the most that may be needed.
        end_time: Simulated time to end at, in the simulation's unit; the last step is cut to hit it.
        mode: `off` runs the simulation alone; `shadow` streams, trains and scores but never acts; `advise` lets the
            model choose dt only; `act` also lets it take over steps.
        rung: `inline` one thread; `threads` one process; `local` one process each; `mpi` ranks under mpiexec.
        seed: Seed of everything random in the run.
        path: Folders searched for plug-ins; `launch.check` puts the case file's folder and the current one in front.
    """

    name: Name
    steps: Count
    mode: Mode
    rung: Rung
    end_time: Positive | None = None
    seed: Annotated[int, Meta(ge=0)] = 0
    path: tuple[str, ...] = ()


class SimulationSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[simulation]`.

    Attributes:
        use: A simulation that `coupler.registry` knows, or `"my.module:Thing"`.
        ranks: MPI ranks; more than one needs rung `mpi`.
        settings: All other keys of the table, for the constructor of the plug-in.
    """

    use: str
    ranks: Count = 1
    settings: dict[str, Any] = {}


class TaskSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[[task]]`, once for each task.

    Attributes:
        use: A task that `coupler.registry` knows, or `"my.module:Thing"`.
        name: Unique in the case; `use`, or what follows its colon, unless given.
        ranks: Server ranks that learn it, each from its share of the states and with a model of its own; they answer
            as one.
        distribution: How more than one of them share the states: `steps`, whole ones in turn; `blocks`, to each its
            region of every state.
        turn: Successive states in one turn; a learner of dynamics needs many.
        settings: All other keys of the table, for the constructor of the plug-in.
    """

    use: str
    name: Name
    ranks: Count = 1
    distribution: Distribution = "steps"
    turn: Count = 64
    settings: dict[str, Any] = {}


class LinkSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[link]`. The rungs `inline` and `threads` live in one process and always talk through memory.

    Attributes:
        use: `zeromq`, `memory` or a plug-in.
        address: `ipc` (a socket in the run folder), `tcp://127.0.0.1:PORT`, or `tcp://HOST:PORT` with `curve = true`.
        curve: Encrypt and authenticate with keys made for this run.
        deadline_s: How long an Ask of a LEARNED phase may wait for its Advice, in seconds.
        credit: Messages that may be in flight without an answer.
        window_bytes: Bytes that may wait in a send queue; at least two largest messages.
        max_message_bytes: A larger message is refused unread.
        digest: Check a digest of every array that arrives.
    """

    use: str = "zeromq"
    address: str = "ipc"
    curve: bool = False
    deadline_s: Positive = 2.0
    credit: Count = 8
    window_bytes: Count = 2**28
    max_message_bytes: Count = 2**25
    digest: bool = True


class BulkSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[bulk]`: how the arrays travel; `docs/how-to/choose-a-transport.md` says when which is best.

    Attributes:
        use: `auto`; `shared` memory of one node; `inline` in frames of the message; `adios` in ADIOS2 SST streams. What
            does not come up is replaced by `inline`, and the summary says why.
        fields: Exceptions, by field name.
        slots: States that a ring in shared memory holds; `link.credit` and four more unless given, and no fewer.
        adios: Parameters of the SST engine, such as `DataTransport = "WAN"`.
        buffer_bytes: Bytes of shared memory through which states reach the trainers and the recorder; unless given,
            512 MiB, or half of what is free there if that is less.
    """

    use: Transport = "auto"
    fields: dict[str, Transport] = {}
    slots: Annotated[int, Meta(ge=2)] | None = None
    adios: dict[str, str | int] = {}
    buffer_bytes: Annotated[int, Meta(ge=1)] | None = None


class SwitchSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[switch]`.

    Attributes:
        tolerance: Largest horizon error that may be adopted, rms over rms fluctuation. No default; needed when a task
            owns `arrays`.
        confirm: Good live forecasts in a row before the model takes over.
        min_horizon: Shortest horizon worth taking over for, in coupling steps.
        max_horizon: Longest horizon, in coupling steps.
        first_spacing: Learned steps before the first audit of a model; each passed audit doubles it.
        audit_steps: Direct steps of one audit.
        max_residual: Largest residual of a state that may be forecast from, in tolerances.
        coverage: Share of horizon errors that the calibrated bound must cover.
        blend_steps: Steps over which a hand-over mixes fields that allow it; 0 switches hard.
        cooldown: Direct steps after a first failure before the model is tried again; each further one doubles it.
        max_cooldown: Longest cool-down.
        overhead: Share of the planned direct wall time that streaming and training may cost before the model pays; two
            and a half times as much while a model promises to take over soon.
    """

    tolerance: Positive | None = None
    confirm: Count = 3
    min_horizon: Count = 2
    max_horizon: Count = 100
    first_spacing: Count = 10
    audit_steps: Count = 1
    max_residual: Positive = 5.0
    coverage: Annotated[float, Meta(gt=0, lt=1)] = 0.9
    blend_steps: Annotated[int, Meta(ge=0)] = 0
    cooldown: Annotated[int, Meta(ge=0)] = 4
    max_cooldown: Annotated[int, Meta(ge=0)] = 256
    overhead: Positive = 0.035


class GuardSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[guard]`.

    Attributes:
        bounds: Lowest and highest value allowed, by field name, in the field's unit.
        invariants: Largest relative drift allowed, by name of the invariant.
    """

    bounds: dict[str, tuple[float, float]] = {}
    invariants: dict[str, Positive] = {}


class LimitsSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[limits]`, in the simulation's unit of time.

    Attributes:
        dt: Simulated time of one coupling step; None leaves it to `snapshot().dt` of the simulation.
        dt_min: Smallest dt that Advice may set.
        dt_max: Largest dt that Advice may set.
        dt_steps: Coupling steps beyond the state that it answers for which an advised dt holds. Where no newer one
            comes in time, the simulation's own dt takes its place, unless that is larger.
        errors: Largest error of a direct step, by the observable that holds it. Where dt is chosen (modes advise and
            act), a step beyond is rejected: undone, and made again with a smaller dt, but for trials and audits.
    """

    dt: Positive | None = None
    dt_min: Positive | None = None
    dt_max: Positive | None = None
    dt_steps: Count = 8
    errors: dict[str, Positive] = {}


class OutputSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[output]`.

    Attributes:
        every: Steps between states the host must hit; None lets a horizon run to the end of the run.
        views: Views of the fields stored for the report, spread over the run.
        record: `bp5` keeps the states that are streamed to the server in `recording.bp` in the run folder; None keeps
            none.
    """

    every: Count | None = None
    views: Annotated[int, Meta(ge=0)] = 24
    record: Literal["bp5"] | None = None


class RunSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole run file."""

    run: RunSection
    simulation: SimulationSection
    tasks: tuple[TaskSection, ...] = msgspec.field(default=(), name="task")
    link: LinkSection = LinkSection()
    bulk: BulkSection = BulkSection()
    switch: SwitchSection = SwitchSection()
    guard: GuardSection = GuardSection()
    limits: LimitsSection = LimitsSection()
    output: OutputSection = OutputSection()


def parse(text: str) -> RunSpec:
    """Reads a run file.

    Raises:
        ValueError: It is not TOML, or the first thing wrong in it. `launch.check.check` finds all at once.
    """
    return from_table(tomllib.loads(text))


def from_table(table: Mapping[str, Any]) -> RunSpec:
    """The spec from a table as `tomllib` gives it. Raises ValueError as `parse` does."""
    shaped = dict(table)
    if isinstance(simulation := table.get("simulation"), Mapping):
        shaped["simulation"] = split(simulation, SimulationSection)
    if isinstance(tasks := table.get("task"), list):
        shaped["task"] = [split(named(task), TaskSection) if isinstance(task, Mapping) else task for task in tasks]
    return msgspec.convert(shaped, RunSpec)


def split(table: Mapping[str, Any], section: type[SimulationSection] | type[TaskSection]) -> dict[str, Any]:
    """Moves the keys that `section` does not know, which are the plug-in's, under `settings`."""
    known = own_keys(section)
    own: dict[str, Any] = {key: value for key, value in table.items() if key in known}
    return own | {"settings": {key: value for key, value in table.items() if key not in known}}


def own_keys(section: type[Struct]) -> tuple[str, ...]:
    """Keys of a section as a person writes them, without the plug-in's."""
    return tuple(field.encode_name for field in msgspec.structs.fields(section) if field.name != "settings")


def named(task: Mapping[str, Any]) -> dict[str, Any]:
    """A `[[task]]` table with its name filled in from `use`."""
    use = task.get("use")
    return ({"name": use.rpartition(":")[2]} if isinstance(use, str) else {}) | dict(task)


def dump(spec: RunSpec) -> str:
    """The spec as TOML, every default written out. `parse` gives an equal spec back."""
    parts = [toml_text.table("[run]", msgspec.structs.asdict(spec.run)), _plugin("[simulation]", spec.simulation)]
    parts += [_plugin("[[task]]", task) for task in spec.tasks]
    for name in ("link", "bulk", "switch", "guard", "limits", "output"):
        parts.append(toml_text.table(f"[{name}]", msgspec.structs.asdict(getattr(spec, name))))
    return "\n".join(parts)


def _plugin(header: str, section: SimulationSection | TaskSection) -> str:
    own = msgspec.structs.asdict(section)
    return toml_text.table(header, own | own.pop("settings"))


def bulk_mistakes(bulk: BulkSection, fields: Iterable[FieldSpec]) -> list[str]:
    """What `[bulk.fields]` names but the simulation does not have; one full sentence for each."""
    known = [spec.name for spec in fields]
    return [
        f"bulk.fields names {name!r}, but the simulation has {', '.join(map(repr, known))}"
        for name in bulk.fields
        if name not in known
    ]


def limit_mistakes(limits: LimitsSection, fields: Iterable[FieldSpec]) -> list[str]:
    """What `[limits]` names but the simulation does not observe; one full sentence for each."""
    known = [spec.name for spec in fields if spec.role == "observable"]
    has = ", ".join(map(repr, known)) or "none"
    return [
        f"limits.errors names {name!r}, but the simulation's observables are {has}"
        for name in limits.errors
        if name not in known
    ]


def guard_mistakes(guard: GuardSection, fields: Iterable[FieldSpec], invariants: Iterable[str]) -> list[str]:
    """What `[guard]` names but the simulation does not have; asked at the handshake, when both are known.

    Args:
        guard: The section.
        fields: Declared fields.
        invariants: Names of the invariants that the simulation reports.

    Returns:
        One full sentence for each mistake.
    """
    has = {"bounds": [spec.name for spec in fields], "invariants": list(invariants)}
    return [
        f"guard.{key} names {name!r}, but the simulation has {', '.join(map(repr, has[key])) or 'none'}"
        for key in ("bounds", "invariants")
        for name in getattr(guard, key)
        if name not in has[key]
    ]
