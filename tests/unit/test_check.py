from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coupler.errors import CaseError
from launch.check import check
from launch.toml_lines import key_lines, line_of
from schemas import run, toml_text

PLUGINS = """
from typing import Annotated, ClassVar, Literal
from msgspec import Meta


class Sim:
    def __init__(self, *, ranks, seed: int, length: Annotated[float, Meta(gt=0)], cells: int = 8,
                 wall: Literal["slip", "stick"] = "slip", box: tuple[float, float] | None = None) -> None: ...
    def fields(self): ...
    def snapshot(self): ...
    def integrate(self, dt, n): ...
    def adopt(self, snapshot): ...
    def save(self): ...
    def restore(self, token): ...
    def invariants(self): ...


class Serial(Sim):
    def __init__(self, *, length: float) -> None: ...


class Open(Sim):
    def __init__(self, *, ranks, **rest: float) -> None: ...


class Half:
    def fields(self): ...
    def integrate(self, dt, n): ...


class Arrays:
    owns: ClassVar[frozenset[str]] = frozenset({"arrays"})
    def __init__(self, *, fields, seed: int, rank: Annotated[int, Meta(ge=1, le=64)] = 4) -> None: ...
    def observe(self, snapshot): ...
    def forecast(self, snapshot, horizon): ...
    def learn(self, steps): ...
    def state(self): ...
    def restore(self, state): ...


class Dt(Arrays):
    owns: ClassVar[frozenset[str]] = frozenset({"dt"})


class Odd(Arrays):
    owns: ClassVar[frozenset[str]] = frozenset({"time"})
"""

CASE = """\
[run]
name = "case"
steps = 100
mode = "act"
rung = "mpi"
[simulation]
use = "check_plugins:Sim"
ranks = 2
length = 2.0
[[task]]
use = "check_plugins:Arrays"
[[task]]
use = "check_plugins:Dt"
name = "dt"
[switch]
tolerance = 0.01
[guard.bounds]
u = [-1, 1]
[limits]
dt = 0.1
dt_min = 0.01
dt_max = 1.0
[link]
address = "ipc"
"""

NAME = r"it must be text that matches ^[A-Za-z0-9][A-Za-z0-9_.-]*\Z"
SIM = '[simulation] with use = "check_plugins:Sim"'

# What to replace in CASE, by what, and all mistakes that `check` must then report.
BROKEN = [
    ("steps = 100", "steps = ", ["3: this is not TOML: Invalid value (at line 3, column 9)"]),
    ("steps = 100", "steps = 1\nsteps = 2", ["4: this is not TOML: Cannot overwrite a value (at line 4, column 10)"]),
    ("steps = 100\n", "", ['1: [run] lacks "steps", an integer greater than 0']),
    ("steps = 100", "steps = 0", ["3: run.steps is 0; it must be an integer greater than 0"]),
    ("steps = 100", "steps = 10.5", ["3: run.steps is 10.5; it must be an integer greater than 0"]),
    ("steps = 100", 'steps = "100"', ['3: run.steps is "100"; it must be an integer greater than 0']),
    ("steps = 100", "steps = true", ["3: run.steps is true; it must be an integer greater than 0"]),
    (
        "steps = 100",
        "stepz = 100",
        [
            '1: [run] lacks "steps", an integer greater than 0',
            '3: [run] has no key "stepz"; it has name, steps, mode, rung, end_time, seed, path; did you mean "steps"?',
        ],
    ),
    ('name = "case"', 'name = "a/b"', [f'2: run.name is "a/b"; {NAME}']),
    ('name = "case"', 'name = "a\\n"', [f'2: run.name is "a\\n"; {NAME}']),
    (
        'mode = "act"',
        'mode = "acts"',
        ['4: run.mode is "acts"; it must be one of "act", "advise", "off", "shadow"; did you mean "act"?'],
    ),
    (
        'rung = "mpi"',
        'rung = "slurm"',
        ['5: run.rung is "slurm"; it must be one of "inline", "local", "mpi", "threads"'],
    ),
    ('rung = "mpi"', 'rung = "mpi"\nseed = -1', ["6: run.seed is -1; it must be an integer of at least 0"]),
    ('rung = "mpi"', 'rung = "mpi"\npath = "a"', ['6: run.path is "a"; it must be a list, each text']),
    (
        'rung = "mpi"',
        'rung = "local"',
        ['8: simulation.ranks is 2, but rung "local" runs one; use run.rung = "mpi", or simulation.ranks = 1'],
    ),
    (
        'rung = "mpi"',
        'rung = "inline"',
        ['8: simulation.ranks is 2, but rung "inline" runs one; use run.rung = "mpi", or simulation.ranks = 1'],
    ),
    ("ranks = 2", "ranks = 0", ["8: simulation.ranks is 0; it must be an integer greater than 0"]),
    ("length = 2.0\n", "", [f'6: {SIM} lacks "length", a number greater than 0']),
    ("length = 2.0", "length = -2", ["9: simulation.length is -2; it must be a number greater than 0"]),
    ("length = 2.0", 'length = "2 m"', ['9: simulation.length is "2 m"; it must be a number greater than 0']),
    (
        "length = 2.0",
        "length_m = 2.0",
        [
            f'6: {SIM} lacks "length", a number greater than 0',
            f'9: {SIM} has no key "length_m"; it has use, ranks, length, cells, wall, box; did you mean "length"?',
        ],
    ),
    (
        "length = 2.0",
        'length = 2.0\nwall = "stic"',
        ['10: simulation.wall is "stic"; it must be one of "slip", "stick"; did you mean "stick"?'],
    ),
    (
        "length = 2.0",
        "length = 2.0\nbox = [1, 2, 3]",
        ["10: simulation.box is [1, 2, 3]; it must be a list of 2: a number, a number"],
    ),
    (
        "length = 2.0",
        'length = 2.0\nbox = [1, "b"]',
        [
            '10: simulation.box is [1, "b"]; it must be a list of 2: a number, a number '
            "(Expected `float`, got `str` - at `$[1]`)"
        ],
    ),
    (
        "length = 2.0",
        "length = 2.0\nseed = 3",
        [f'10: {SIM} has no key "seed"; the coupler gives the constructor run.seed'],
    ),
    (
        'use = "check_plugins:Sim"',
        'use = "vortex_stret"',
        [
            '7: no simulation is called "vortex_stret"; known are double_well, lammps, oscillator, recording, '
            "relaxation, vortex_street; "
            'did you mean "vortex_street"?; a class of your own is named as "my.module:Thing"'
        ],
    ),
    (
        'use = "check_plugins:Sim"',
        'use = "check_plugins:Simm"',
        ['7: the simulation "check_plugins:Simm" is no class of module check_plugins; did you mean "Sim"?'],
    ),
    (
        'use = "check_plugins:Sim"',
        'use = "broken_plugins:Sim"',
        ["7: the simulation \"broken_plugins:Sim\" cannot be imported (NameError: name 'nonsense' is not defined)"],
    ),
    (
        'use = "check_plugins:Sim"',
        'use = "check_plugins:Open"',
        [
            '7: Open.__init__ takes "**rest: float"; a plug-in names each of its settings as an annotated keyword '
            "parameter, so that the run file can be checked: replace rest by what it stands for"
        ],
    ),
    (
        'use = "check_plugins:Sim"',
        'use = "check_plugins:Serial"',
        ['8: simulation.ranks is 2, but "check_plugins:Serial" is serial: its __init__ takes no ranks'],
    ),
    (
        'use = "check_plugins:Sim"\nranks = 2\nlength = 2.0',
        'use = "check_plugins:Half"',
        ['7: "check_plugins:Half" is no Simulation: it lacks snapshot, adopt, save, restore, invariants'],
    ),
    ('use = "check_plugins:Sim"', "use = 3", ["7: simulation.use is 3; it must be text"]),
    ('use = "check_plugins:Sim"\n', "", ['6: [simulation] lacks "use", text']),
    (
        'use = "check_plugins:Arrays"',
        'use = "propagater"',
        [
            '11: no task is called "propagater"; known are propagator, timestep; did you mean "propagator"?; '
            'a class of your own is named as "my.module:Thing"'
        ],
    ),
    (
        'use = "check_plugins:Arrays"',
        'use = "check_plugins:Arrays"\nrank = 65',
        ["12: task.rank is 65; it must be an integer of at least 1 and of at most 64"],
    ),
    (
        'use = "check_plugins:Arrays"',
        'use = "check_plugins:Arrays"\nranks = 0\ndistribution = "halves"\nturn = 0',
        [
            "12: task.ranks is 0; it must be an integer greater than 0",
            '13: task.distribution is "halves"; it must be one of "blocks", "steps"',
            "14: task.turn is 0; it must be an integer greater than 0",
        ],
    ),
    (
        'use = "check_plugins:Arrays"',
        'use = "check_plugins:Sim"\nlength = 1',
        ['11: "check_plugins:Sim" is no Task: it lacks observe, forecast, learn, state, owns'],
    ),
    (
        'use = "check_plugins:Arrays"',
        'use = "check_plugins:Odd"',
        ["11: \"check_plugins:Odd\" owns frozenset({'time'}); a Task has owns, a set of some of arrays, dt"],
    ),
    (
        'use = "check_plugins:Arrays"',
        'use = "check_plugins:Dt"',
        ['13: tasks "Dt" and "dt" both own dt; a part has one owner'],
    ),
    ('name = "dt"', 'name = "Arrays"', ['12: two tasks are named "Arrays"; give each a name of its own']),
    ('name = "dt"', 'name = "d t"', [f'14: task.name is "d t"; {NAME}']),
    (
        "tolerance = 0.01",
        "",
        [
            '15: task "Arrays" owns arrays, so [switch] needs tolerance, the largest horizon error to accept, '
            "rms over rms fluctuation"
        ],
    ),
    ("tolerance = 0.01", "tolerance = 0", ["16: switch.tolerance is 0; it must be a finite number greater than 0"]),
    ("tolerance = 0.01", "tolerance = inf", ["16: switch.tolerance is inf; it must be a finite number greater than 0"]),
    ("tolerance = 0.01", "tolerance = nan", ["16: switch.tolerance is nan; it must be a finite number greater than 0"]),
    (
        "tolerance = 0.01",
        "tolerance = 0.01\ncoverage = 1",
        ["17: switch.coverage is 1; it must be a number greater than 0 and less than 1"],
    ),
    (
        "tolerance = 0.01",
        "tolerance = 0.01\nmin_horizon = 200",
        ["17: switch.min_horizon is 200, above switch.max_horizon = 100"],
    ),
    ("u = [-1, 1]", "u = [1, -1]", ["18: guard.bounds.u is [1.0, -1.0]; the first must be below the second"]),
    ("u = [-1, 1]", "u = [nan, 1]", ["18: guard.bounds.u is [nan, 1.0]; the first must be below the second"]),
    (
        "u = [-1, 1]",
        "v = 1\nu = 2",
        [
            "18: guard.bounds.v is 1; it must be a list of 2: a number, a number",
            "19: guard.bounds.u is 2; it must be a list of 2: a number, a number",
        ],
    ),
    (
        "[guard.bounds]",
        "[guard]\ninvariants = { mass = -1 }\n[guard.bounds]",
        ["18: guard.invariants.mass is -1; it must be a finite number greater than 0"],
    ),
    (
        "[guard.bounds]",
        "[guard.bound]",
        ['17: [guard] has no key "bound"; it has bounds, invariants; did you mean "bounds"?'],
    ),
    ("dt = 0.1", "dt = 2.0", ["20: limits.dt is 2.0, outside dt_min = 0.01 to dt_max = 1.0"]),
    ("dt = 0.1", "dt = 1e-3", ["20: limits.dt is 0.001, outside dt_min = 0.01 to dt_max = 1.0"]),
    ("dt_max = 1.0", "dt_max = 1e-3", ["21: limits.dt_min is 0.01, above limits.dt_max = 0.001"]),
    ("dt_max = 1.0", "", ['19: task "dt" owns dt, so [limits] needs dt_max']),
    (
        "dt_min = 0.01",
        "errors = { drift = 0.1 }",
        [
            '19: task "dt" owns dt, so [limits] needs dt_min',
            "21: limits.errors has steps made again with a smaller dt, where dt is chosen: give limits.dt_min",
        ],
    ),
    (
        "dt_min = 0.01",
        "dt_min = 0.01\nerrors = { drift = 0 }",
        ["22: limits.errors.drift is 0; it must be a finite number greater than 0"],
    ),
    ("dt_min = 0.01", 'dt_min = "0.01"', ['21: limits.dt_min is "0.01"; it must be a finite number greater than 0']),
    (
        'address = "ipc"',
        'address = "tcp://node7:5555"',
        [
            '24: link.address is "tcp://node7:5555"; it leaves this machine, which needs link.curve = true; '
            'or use "ipc" or "tcp://127.0.0.1:PORT"'
        ],
    ),
    (
        'address = "ipc"',
        'address = "tcp://*:5555"\ncurve = true',
        ['24: link.address is "tcp://*:5555"; it would listen on every network; name one address'],
    ),
    (
        'address = "ipc"',
        'address = "tcp://127.0.0.1"',
        [
            '24: link.address is "tcp://127.0.0.1"; it must be "ipc" or "tcp://HOST:PORT", such as "tcp://127.0.0.1:5555"'
        ],
    ),
    (
        'address = "ipc"',
        'address = "tcp://127.0.0.1:70000"',
        ['24: link.address is "tcp://127.0.0.1:70000"; port 70000 is not in 1 to 65535'],
    ),
    (
        'address = "ipc"',
        'use = "memory"',
        ['24: link.use is "memory", but rung "mpi" starts several processes; use link.use = "zeromq"'],
    ),
    (
        'address = "ipc"',
        'use = "zeromk"',
        [
            '24: no link is called "zeromk"; known are memory, zeromq; did you mean "zeromq"?; '
            'a class of your own is named as "my.module:Thing"'
        ],
    ),
    (
        'address = "ipc"',
        "deadline_ms = 200",
        [
            '24: [link] has no key "deadline_ms"; it has use, address, curve, deadline_s, credit, window_bytes, '
            'max_message_bytes, digest; did you mean "deadline_s"?'
        ],
    ),
    (
        'address = "ipc"',
        "window_bytes = 1000",
        ["24: link.window_bytes is 1000; it must hold two messages of max_message_bytes = 33554432"],
    ),
    (
        "[limits]",
        "[limit]",
        [
            '1: task "dt" owns dt, so [limits] needs dt_min',
            '1: task "dt" owns dt, so [limits] needs dt_max',
            "19: there is no section [limit]; there are run, simulation, task, link, bulk, switch, guard, limits, "
            'output; did you mean "limits"?',
        ],
    ),
    ("[run]", "steps = 3\n[run]", ['1: there is no section [steps]; did you mean "run.steps"?']),
    ("[link]\n", "[output]\nevery = 0\n[link]\n", ["24: output.every is 0; it must be an integer greater than 0"]),
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("case")
    (made / "check_plugins.py").write_text(PLUGINS)
    (made / "broken_plugins.py").write_text("nonsense\n")
    return made


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])


def mistakes(text: str, *overrides: str) -> list[str]:
    Path("case.toml").write_text(text)
    with pytest.raises(CaseError) as caught:
        check("case.toml", overrides)
    return [sentence.removeprefix("case.toml:") for sentence in caught.value.mistakes]


@pytest.mark.parametrize(("old", "new", "expected"), BROKEN, ids=[f"{n}-{c[1]!r:.40}" for n, c in enumerate(BROKEN)])
def test_each_mistake_is_told_with_its_place(old: str, new: str, expected: list[str]) -> None:
    assert CASE.count(old) == 1
    assert mistakes(CASE.replace(old, new)) == expected


def test_all_mistakes_come_at_once_in_the_order_of_the_file() -> None:
    text = CASE.replace("steps = 100", "steps = 0").replace("ranks = 2", "ranks = 0").replace("dt = 0.1", "dt = 5")
    assert mistakes(text, "link.credit=0", "output.views=-1", "task.nobody.rank=1") == [
        "3: run.steps is 0; it must be an integer greater than 0",
        "8: simulation.ranks is 0; it must be an integer greater than 0",
        "20: limits.dt is 5.0, outside dt_min = 0.01 to dt_max = 1.0",
        "--set link.credit=0: link.credit is 0; it must be an integer greater than 0",
        "--set output.views=-1: output.views is -1; it must be an integer of at least 0",
        '--set task.nobody.rank=1: no task is named "nobody"; the case has Arrays, dt',
    ]


def test_missing_sections_and_wrong_brackets() -> None:
    assert mistakes("") == ["1: the section [run] is missing", "1: the section [simulation] is missing"]
    single = "[task]\nuse = 'check_plugins:Dt'\n"
    head = CASE[: CASE.index("[[task]]")]
    assert mistakes(head + single) == ['10: task is {use = "check_plugins:Dt"}; write it as a section, [[task]]']
    assert mistakes("run = 3\n" + head[head.index("[simulation]") :]) == ["1: run is 3; write it as a section, [run]"]
    assert mistakes("task = [3]\n" + head) == ["1: task is 3; write it as a section, [[task]]"]


def test_modes_need_tasks() -> None:
    head, tasks = CASE[: CASE.index("[[task]]")], CASE[CASE.index("[[task]]") :]
    assert mistakes(head) == ['4: run.mode is "act", but the case has no [[task]]; add one or use "off"']
    first = tasks[: tasks.index("[[task]]", 1)]
    assert mistakes(head.replace('"act"', '"advise"') + first + "[switch]\ntolerance = 1\n") == [
        '4: run.mode is "advise", which takes a dt only, but no task owns dt; add one, or use "shadow" or "act"'
    ]
    Path("case.toml").write_text(head.replace('"act"', '"off"'))
    assert check("case.toml").tasks == ()


def test_a_training_buffer_larger_than_shared_memory_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.check.folder.free_bytes", lambda: 64 << 20)
    text = CASE + "\n[bulk]\nbuffer_bytes = 100_000_000\n"
    (sentence,) = mistakes(text)
    assert re.search(
        r"bulk.buffer_bytes is 100000000, but /\S+ has 67108864 bytes free; lower it, or free some$", sentence
    )


def test_a_file_that_cannot_be_read_is_one_mistake() -> None:
    with pytest.raises(CaseError, match=r"^nowhere.toml: cannot be read \(No such file or directory\)$"):
        check("nowhere.toml")
    Path("latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(CaseError, match=r"^latin.toml: is not UTF-8 text \(byte 2\)$"):
        check("latin.toml")


def test_resolved_spec_has_the_plugins_defaults_and_reads_back_equal(folder: Path) -> None:
    Path("case.toml").write_text(CASE)
    spec = check("case.toml")
    assert spec.simulation.settings == {"length": 2.0, "cells": 8, "wall": "slip"}
    assert spec.tasks[0].settings == {"rank": 4}
    assert spec.run.path == (str(folder.resolve()),)
    assert run.parse(run.dump(spec)) == spec
    Path("resolved.toml").write_text(run.dump(spec))
    assert check("resolved.toml") == spec


def test_search_path_is_the_folder_of_the_file_then_the_current_one_then_what_it_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("case.toml").write_text(CASE.replace("[simulation]", 'path = ["../more"]\n[simulation]'))
    monkeypatch.chdir(tmp_path)
    wanted = (str(folder), str(tmp_path), str(folder.parent / "more"))
    assert check(folder / "case.toml").run.path == wanted
    assert tuple(sys.path[:3]) == wanted


def _without_folders(section: object) -> str:
    """A section as text; the number of a temporary folder may hold any digit."""
    return re.sub(r"path=\([^)]*\)", "", str(section))


@pytest.mark.parametrize(
    ("assignment", "part", "value"),
    [
        ("run.steps=7", "run", 7),
        ("run.mode=off", "run", "off"),
        ("simulation.wall = stick", "simulation", "stick"),
        ("simulation.box=[1, 2]", "simulation", [1.0, 2.0]),
        ("task.Arrays.rank=9", "tasks", 9),
        ("task.dt.rank=9", "tasks", 9),
        ("switch.tolerance=5e-2", "switch", 0.05),
        ("guard.bounds.w=[0, inf]", "guard", {"u": (-1.0, 1.0), "w": (0.0, float("inf"))}),
        ("output.every=5", "output", 5),
    ],
)
def test_overrides_change_one_key(assignment: str, part: str, value: object) -> None:
    Path("case.toml").write_text(CASE)
    before, after = check("case.toml"), check("case.toml", [assignment])
    assert str(value) in _without_folders(getattr(after, part))
    assert str(value) not in _without_folders(getattr(before, part))
    assert before.limits == after.limits


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("run.steps", "write a key and a value as a.b=value"),
        ("run steps=3", "'run steps' is no key; write it as in run.steps"),
        ("=3", "'' is no key; write it as in run.steps"),
        ("run.steps.more=3", "run.steps is 100, and has no keys"),
        ("task.arays.rank=3", 'no task is named "arays"; the case has Arrays, dt; did you mean "Arrays"?'),
        ("task.dt=3", "name a key of the task, as in task.NAME.key=value"),
        (
            "run.stepz=3",
            '[run] has no key "stepz"; it has name, steps, mode, rung, end_time, seed, path; did you mean "steps"?',
        ),
        ("steps=3", 'there is no section [steps]; did you mean "run.steps"?'),
        ("run.name=x\ny=2", f'run.name is "x\\ny=2"; {NAME}'),
    ],
)
def test_wrong_overrides_are_explained(assignment: str, sentence: str) -> None:
    assert mistakes(CASE, assignment) == [f"--set {assignment}: {sentence}"]


lines_of_case = st.sampled_from(CASE.splitlines())
junk = st.sampled_from(
    ["x = 1", "[run]", "[[task]]", "[task]", "use = 3", "[guard]", "bounds = 3", "[link.use]", "a.b = 2"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.lists(st.one_of(lines_of_case, junk), max_size=25))
def test_whatever_the_file_says_a_check_ends_with_a_spec_or_mistakes(chosen: list[str]) -> None:
    Path("fuzz.toml").write_text("\n".join(chosen))
    try:
        spec = check("fuzz.toml")
    except CaseError:
        return
    assert run.parse(run.dump(spec)) == spec


leaves = st.one_of(st.integers(), st.booleans(), st.text("ab\n\"'#=[]{},.\\", max_size=6), st.dates())
tables = st.dictionaries(
    st.text("ab.\"' \n#", max_size=3),
    st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner)),
    max_size=4,
)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(["[a]", "[b.c]", "[[d]]", "[d.e]", "# [x]"]), tables), max_size=4))
def test_every_key_has_the_line_it_stands_on(parts: list[tuple[str, dict[str, object]]]) -> None:
    text = "\n".join(toml_text.table(header, table) for header, table in parts)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # headers that exclude each other
    lines, rows = key_lines(text), text.splitlines()

    def visit(node: object, path: tuple[str | int, ...]) -> None:
        if path and isinstance(path[-1], str):
            assert toml_text.key(path[-1]) in rows[lines[path] - 1] or f"[{path[-1]}" in rows[lines[path] - 1]
        children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, child in children:
            assert (*path, key) in lines
            visit(child, (*path, key))

    visit(document, ())


def test_lines_of_multi_line_values_and_dotted_keys() -> None:
    text = """# first
a.b = '''
c = 1
'''
d = [ # list
  1,
  { e = "]", f.g = 2 },
]
"h i" = \"\"\"x\\\"\"\"\"
j = 1979-05-27 07:32:00 # k = 3
[l."m.n"]
o = 'p'
[[q.r]]
[[q.r]]
s = 1
[q.r.t]
u = 1
"""
    tomllib.loads(text)
    lines = key_lines(text)
    expected: dict[tuple[str | int, ...], int] = {
        ("a",): 2, ("a", "b"): 2, ("d",): 5, ("d", 0): 6, ("d", 1, "e"): 7, ("d", 1, "f", "g"): 7, ("h i",): 9,
        ("j",): 10, ("l", "m.n"): 11, ("l", "m.n", "o"): 12, ("q", "r", 0): 13, ("q", "r", 1): 14,
        ("q", "r", 1, "s"): 15, ("q", "r", 1, "t"): 16, ("q", "r", 1, "t", "u"): 17,
    }  # fmt: skip
    assert {path: lines.get(path) for path in expected} == expected
    assert line_of(lines, ("d", 1, "nothing")) == 7
    assert line_of(lines, ("nothing",)) == 1
