"""What the run file means for the server side: settings of the core, and how a task is made."""

from __future__ import annotations

from collections.abc import Callable

from coupler import registry
from coupler.bulks.folder import free_bytes
from coupler.contracts import Task
from coupler.distribution import Share
from coupler.switch import Switch
from ml_servers.serving import JointTask, MakeTask, ServingTask
from ml_servers.settings import CoreSettings
from schemas.fields import FieldSpec
from schemas.run import RunSpec, TaskSection

BUFFER_BYTES = 512 << 20
"""Largest size of the file through which states reach the trainers, unless the case says."""


def buffer_bytes(spec: RunSpec) -> int:
    """Largest size of that file in this run: the rings of the ranks need room in shared memory too."""
    return spec.bulk.buffer_bytes or min(BUFFER_BYTES, free_bytes() // 2)


def core_settings(spec: RunSpec) -> CoreSettings:
    """Settings of the core."""
    own = spec.switch
    switch = Switch(
        tolerance=own.tolerance or float("inf"),
        confirm=own.confirm,
        min_horizon=own.min_horizon,
        first_spacing=own.first_spacing,
        audit_steps=own.audit_steps,
        max_residual=own.max_residual,
        blend_steps=own.blend_steps,
        cooldown=own.cooldown,
        max_cooldown=own.max_cooldown,
    )
    return CoreSettings(
        run=spec.run.name,
        tasks=tuple(task.name for task in spec.tasks),
        shares=shares(spec),
        switch=switch,
        act=spec.run.mode == "act",
        advise=spec.run.mode in ("advise", "act"),
        coverage=own.coverage,
        max_horizon=own.max_horizon,
        credit=spec.link.credit,
        overhead=own.overhead,
        invariants=dict(spec.guard.invariants),
        records=spec.output.record is not None,
    )


def shares(spec: RunSpec) -> dict[str, tuple[Share, ...]]:
    """What each rank of a task takes of the states, by the task's name."""
    return {
        task.name: tuple(Share(task.distribution, task.ranks, rank, task.turn) for rank in range(task.ranks))
        for task in spec.tasks
    }


def learner_maker(spec: RunSpec, rank: int) -> Callable[[str, tuple[FieldSpec, ...]], Task]:
    """Makes one rank of a task of this case, from the task's name and the fields that this rank sees.

    Serving and learning instances are made alike.
    """

    def make(name: str, fields: tuple[FieldSpec, ...]) -> Task:
        section = _section(spec, name)
        task: Task = registry.construct(
            registry.find("tasks", section.use), section.settings, fields=fields, seed=spec.run.seed + rank
        )
        return task

    return make


def task_maker(spec: RunSpec) -> MakeTask:
    """Makes what answers for a task of this case, whatever the number of its ranks."""

    def make(name: str, fields: tuple[FieldSpec, ...]) -> ServingTask:
        section = _section(spec, name)
        if section.ranks == 1:
            return learner_maker(spec, 0)(name, fields)
        each = shares(spec)[name]
        members = [learner_maker(spec, share.reader)(name, share.fields(fields)) for share in each]
        return JointTask(members, each, fields)

    return make


def _section(spec: RunSpec, name: str) -> TaskSection:
    return next(task for task in spec.tasks if task.name == name)
