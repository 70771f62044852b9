from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from coupler.errors import CouplerError
from coupler.ranks import Ranks
from coupler.registry import construct, find
from coupler.testing.simulation_check import check_simulation
from launch import cli, ls
from launch import run as launched
from schemas.run import RunSpec, parse

CASE = """
[run]
name = "spring"
steps = 10
mode = "off"
rung = "mpi"
seed = 3
[simulation]
use = "oscillator"
k = 1.0
beta = 0.1
amplitude = [0.5, 1.0]
dt = 0.1
"""


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "case.toml").write_text(CASE)
    return tmp_path


class Launch:
    """Stands in for `launch.run.run` and keeps what it was called with."""

    def __init__(self) -> None:
        self.code = 0
        self.problem: BaseException | None = None
        self.calls: list[tuple[RunSpec, Path, bool]] = []

    def __call__(self, spec: RunSpec, folder: Path, *, reference: bool = False) -> int:
        self.calls.append((spec, folder, reference))
        if self.problem is not None:
            raise self.problem
        return self.code


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Launch:
    stand_in = Launch()
    monkeypatch.setattr(launched, "run", stand_in)
    return stand_in


def test_check_prints_the_resolved_case_and_the_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "case.toml", "--set", "run.steps=20", "--set", "simulation.n=2"]) == 0
    out = capsys.readouterr().out
    spec = parse(out)
    assert spec.run.steps == 20
    assert spec.simulation.settings["n"] == 2
    assert spec.simulation.settings["substeps"] == 20
    assert "# simulation: mpiexec -n 1 python -m sim_clients RUN_FOLDER" in out


def test_check_says_that_one_process_rungs_start_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "case.toml", "--set", "run.rung=inline"]) == 0
    out = capsys.readouterr().out
    assert '# rung "inline": all in the process of coupler run' in out


def test_check_says_how_the_arrays_travel(capsys: pytest.CaptureFixture[str]) -> None:
    with Path("case.toml").open("a") as case:
        case.write('[[task]]\nuse = "propagator"\n[switch]\ntolerance = 0.1\n')
    assert cli.main(["check", "case.toml", "--set", "run.mode=act", "--set", "run.rung=inline"]) == 0
    assert "# arrays: in frames: one process, whose Link is memory" in capsys.readouterr().out


def test_wrong_case_is_code_2_with_every_mistake_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "case.toml", "--set", "run.steps=0", "--set", "simulation.kk=[1]"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(": ")[0] for line in err.splitlines()] == ["--set run.steps=0", "--set simulation.kk=[1]"]


@pytest.mark.parametrize(
    "arguments", [["fly"], ["run"], ["check", "case.toml", "--fast"], ["run", "case.toml", "--seed", "x"]]
)
def test_wrong_usage_is_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert "Error" in capsys.readouterr().err


def test_run_hands_over_spec_folder_and_reference(launch: Launch) -> None:
    assert cli.main(["run", "case.toml", "--seed", "7", "--reference", "--out", "there"]) == 0
    ((spec, folder, reference),) = launch.calls
    assert (spec.run.seed, folder, reference) == (7, Path("there"), True)


def test_run_numbers_fresh_folders(launch: Launch) -> None:
    for _ in range(2):
        assert cli.main(["run", "case.toml"]) == 0
    folders = [folder for _, folder, _ in launch.calls]
    assert folders == [Path("runs/spring-3-1"), Path("runs/spring-3-2")]
    assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in folders)


def test_run_refuses_a_folder_that_holds_something(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    Path("there").mkdir()
    Path("there/result").touch()
    assert cli.main(["run", "case.toml", "--out", "there"]) == 2
    assert capsys.readouterr().err == "--out there: it is there already and not empty; name a new folder\n"
    assert launch.calls == []


@pytest.mark.parametrize(
    ("problem", "code", "said"),
    [
        (CouplerError("the server went away [bold]"), 1, "coupler: the server went away [bold]\n"),
        (KeyboardInterrupt(), 130, "coupler: stopped by Ctrl-C\n"),
    ],
)
def test_failures_have_codes_and_a_sentence(
    launch: Launch, problem: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    launch.problem = problem
    assert cli.main(["run", "case.toml"]) == code
    assert capsys.readouterr().err == said


def test_code_of_a_failed_run_is_passed_on(launch: Launch) -> None:
    launch.code = 1
    assert cli.main(["run", "case.toml"]) == 1


def test_init_writes_a_case_that_checks_and_a_solver_that_keeps_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["init", "new"]) == 0
    assert "next: coupler run new/case.toml" in capsys.readouterr().out
    assert cli.main(["check", "new/case.toml"]) == 0
    spec = parse(capsys.readouterr().out)
    monkeypatch.delitem(sys.modules, "my_solver", raising=False)
    settings = spec.simulation.settings | {"substeps": 20}
    cls = find("simulations", spec.simulation.use)

    def make() -> Any:
        return construct(cls, settings, ranks=Ranks(), seed=1)

    check_simulation(make)
    sim = make()
    sim.integrate(2.0 / 20, 20)
    assert abs(sim.u - make().u).max() < 1e-3, "a string of unit length and speed returns after time 2"


@pytest.mark.parametrize(
    ("fix", "next_"), [("nve", "coupler run new/case.toml"), ("gravity", "decide in new/case.toml")]
)
def test_init_of_a_deck_says_whether_it_can_be_run_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fix: str, next_: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.x").write_text(f"fix 1 all {fix} 1.0 chute 1\nrun 100\n")
    assert cli.main(["init", "new", "--lammps", "in.x"]) == 0
    assert f"next: {next_}" in capsys.readouterr().out


def test_init_overwrites_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("case.toml").read_text()
    assert cli.main(["init"]) == 1
    assert "case.toml is there already and is not overwritten" in capsys.readouterr().err
    assert Path("case.toml").read_text() == before
    assert not Path("my_solver.py").exists()


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "left"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "server.log").write_text("hello")
    (folder / "case.toml").write_text(CASE)
    (folder / "zoo.bin").write_bytes(bytes(1500))
    (folder / "trace.msgpack").write_bytes(msgspec.msgpack.encode({"step": 1}) * 3)
    summary = {"case": "spring", "seed": 3, "status": "finished", "steps": 10, "learned_fraction": 0.5}
    (folder / "summary.json").write_text(json.dumps(summary | {"net_speedup": None, "cause": None}))
    return folder


def test_ls_lists_sizes_counts_and_status_one_a_line(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ls", str(run_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines[:-1]] == [
        "case.toml", "summary.json", "trace.msgpack", "logs", "zoo.bin",
    ]  # fmt: skip
    assert lines[2] == "trace.msgpack\t21\t3 records\tone record per decision"
    assert lines[3] == "logs\t5\t1 files\twhat each process wrote"
    assert lines[-1] == "spring, seed 3: finished, 10 steps, 50% learned"


def test_ls_says_what_is_torn(run_folder: Path) -> None:
    trace = run_folder / "trace.msgpack"
    trace.write_bytes(trace.read_bytes()[:-1])
    assert next(entry for entry in ls.entries(run_folder) if entry.name == trace.name).holds == "2 records"
    trace.write_bytes(b"\x81\xa1a\x01\xc1")
    assert (
        next(entry for entry in ls.entries(run_folder) if entry.name == trace.name).holds == "1 records, then damaged"
    )
    (run_folder / "summary.json").write_text("{")
    assert ls.status(run_folder).startswith("summary.json cannot be read")
    (run_folder / "summary.json").unlink()
    assert ls.status(run_folder) == "no summary.json: the run goes on, or was cut off"


def test_ls_shows_a_table_on_a_terminal(run_folder: Path) -> None:
    text = io.StringIO()
    ls.show(run_folder, Console(file=text, force_terminal=True, width=100, color_system=None))
    assert "what it is" in text.getvalue()
    assert "1.5 kB" in text.getvalue()


@pytest.mark.parametrize(("folder", "said"), [("nowhere", "is no folder"), (".", "holds no run")])
@pytest.mark.parametrize("command", ["ls", "report"])
def test_what_holds_no_run_is_code_1(command: str, folder: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("case.toml").unlink()
    assert cli.main([command, folder]) == 1
    assert said in capsys.readouterr().err


def test_command_starts_without_heavy_imports_and_knows_its_version() -> None:
    program = (
        "import sys; from launch import cli; cli.main(['--version']);"
        "print(sorted({'torch', 'numba', 'matplotlib', 'scipy', 'mpi4py', 'zmq'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stdout[0].isdigit()
