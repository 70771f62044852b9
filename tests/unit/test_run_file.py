from __future__ import annotations

import datetime
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupler.switch import Switch
from schemas import run, toml_text
from schemas.fields import FieldSpec

CASE = """
[run]
name = "street"
steps = 100
mode = "act"
rung = "mpi"

[simulation]
use = "vortex_street"
ranks = 2
nx = 400
center = [0.5, 1]

[[task]]
use = "propagator"
rank = 16

[[task]]
use = "my.module:Thing"

[switch]
tolerance = 0.02

[guard.bounds]
velocity = [-1, inf]
"""

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]*", fullmatch=True)
text = st.text(st.characters(exclude_categories=["Cs"]))
keys = text.filter(lambda key: key not in ("use", "ranks", "name"))
scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    text,
    st.dates(),
    st.datetimes(timezones=st.just(datetime.UTC)),
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))
settings = st.dictionaries(keys, values, max_size=4)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


@st.composite
def specs(draw: st.DrawFn) -> run.RunSpec:
    return run.RunSpec(
        run=run.RunSection(
            name=draw(names),
            steps=draw(st.integers(1, 10**12)),
            mode=draw(st.sampled_from(["off", "shadow", "advise", "act"])),
            rung=draw(st.sampled_from(["inline", "threads", "local", "mpi"])),
            path=tuple(draw(st.lists(text, max_size=2))),
        ),
        simulation=run.SimulationSection(use=draw(text), ranks=draw(st.integers(1, 9)), settings=draw(settings)),
        tasks=tuple(
            draw(st.lists(st.builds(run.TaskSection, use=text, name=names, settings=settings), max_size=3)),
        ),
        link=run.LinkSection(address=draw(text), deadline_s=draw(positive), curve=draw(st.booleans())),
        switch=run.SwitchSection(tolerance=draw(st.none() | positive)),
        guard=run.GuardSection(
            bounds=draw(st.dictionaries(text, st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)))),
            invariants=draw(st.dictionaries(text, positive)),
        ),
        limits=run.LimitsSection(dt=draw(st.none() | positive)),
        output=run.OutputSection(every=draw(st.none() | st.integers(1, 99))),
    )


@given(specs())
def test_dump_and_parse_are_inverse(spec: run.RunSpec) -> None:
    assert run.parse(run.dump(spec)) == spec


@given(st.dictionaries(text, values, max_size=4))
def test_toml_text_reads_back_equal(table: dict[str, object]) -> None:
    assert tomllib.loads(toml_text.table("[it]", table))["it"] == table


def test_toml_text_refuses_what_toml_lacks() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        toml_text.value([None])


def test_plugin_keys_become_settings() -> None:
    spec = run.parse(CASE)
    assert spec.simulation.settings == {"nx": 400, "center": [0.5, 1]}
    assert spec.simulation.ranks == 2
    assert [(task.name, task.settings) for task in spec.tasks] == [("propagator", {"rank": 16}), ("Thing", {})]
    assert spec.guard.bounds == {"velocity": (-1.0, float("inf"))}


def test_optional_sections_have_defaults() -> None:
    spec = run.parse(CASE)
    assert spec.link.deadline_s == 2.0
    assert spec.output == run.OutputSection(every=None, views=24)


def test_nothing_physical_has_a_default() -> None:
    bare = run.parse('[run]\nname="a"\nsteps=1\nmode="off"\nrung="inline"\n[simulation]\nuse="x"\n')
    assert bare.switch.tolerance is None
    assert (bare.limits.dt, bare.limits.dt_min, bare.limits.dt_max) == (None, None, None)
    assert bare.guard == run.GuardSection(bounds={}, invariants={})


def test_switch_defaults_are_those_of_the_switch() -> None:
    section, switch = run.SwitchSection(tolerance=0.1), Switch(tolerance=0.1)
    for name in Switch.__struct_fields__:
        assert getattr(section, name) == getattr(switch, name), name


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("steps = 100", "steps = 0"),
        ("steps = 100", "steps = true"),
        ('mode = "act"', 'mode = "fly"'),
        ("steps = 100", "steps = 100\nextra = 1"),
        ("[switch]", "[swich]"),
        ("tolerance = 0.02", "tolerance = inf"),
        ("tolerance = 0.02", "tolerance = nan"),
        ("velocity = [-1, inf]", "velocity = [-1]"),
        ('name = "street"', 'name = "../street"'),
        ("[run]", "[run"),
    ],
)
def test_wrong_run_files_are_refused(old: str, new: str) -> None:
    assert old in CASE
    with pytest.raises(ValueError, match=r"\w"):
        run.parse(CASE.replace(old, new))


def test_guard_mistakes_name_what_the_simulation_has() -> None:
    guard = run.GuardSection(bounds={"u": (0, 1), "w": (0, 1)}, invariants={"mass": 0.1})
    fields = [FieldSpec("u", "<f8", (3,), "m/s"), FieldSpec("v", "<f8", (3,), "m/s")]
    assert run.guard_mistakes(guard, fields, []) == [
        "guard.bounds names 'w', but the simulation has 'u', 'v'",
        "guard.invariants names 'mass', but the simulation has none",
    ]
    assert run.guard_mistakes(run.GuardSection(), fields, []) == []


def test_limit_mistakes_name_the_observables() -> None:
    fields = [FieldSpec("u", "<f8", (3,), "m/s"), FieldSpec("drift", "<f8", (), "1", "scalar", "observable")]
    told = [f"limits.errors names {name!r}, but the simulation's observables are 'drift'" for name in ("u", "drfit")]
    assert run.limit_mistakes(run.LimitsSection(errors={"u": 1.0, "drfit": 1.0, "drift": 1.0}), fields) == told
    assert run.limit_mistakes(run.LimitsSection(errors={"x": 1.0}), fields[:1])[0].endswith("are none")
