"""The benchmarks' own rules: rows, targets, merging, what is read from summaries. Nothing is timed here."""

import json
import math
from multiprocessing import resource_tracker

import numpy as np
import pytest
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks import coverage, fan_in, imports, promises, runs, step, streaming, tcp, useless
from benchmarks.stopwatch import REST, Stopwatch
from benchmarks.table import BenchmarkFailed, judged, merge, row, show, spread, timing
from coupler.ranks import Ranks
from coupler.trace import OBSERVABLES, Observed, Recorder
from schemas.fields import FieldSpec, Snapshot
from sim_clients.views import VIEWS

resource_tracker.ensure_running()  # it outlives the first child that a benchmark starts, on purpose

FIELDS = (FieldSpec("x", "<f8", (2,), "1"), FieldSpec("lift", "<f8", (), "1", "scalar", "observable"))


def test_a_row_of_times_has_percentiles_and_the_ratio_of_the_medians():
    made = timing("trip", 64, [1e-6, 2e-6, 30e-6], [1e-6], "bare")
    assert (made["p50_us"], made["ratio"], made["against"]) == (pytest.approx(2.0), pytest.approx(2.0), "bare")
    assert made["p50_us"] < made["p99_us"] <= 30.0


def test_a_spread_shows_every_seed_and_a_missing_one_leaves_it_open():
    made = spread("speed", {3: 2.0, 1: 4.0, 2: 3.0}, unit="times")
    assert (made["low"], made["median"], made["high"], made["ratio"]) == (2.0, 3.0, 4.0, 3.0)
    assert made["seeds"] == [3, 1, 2] and made["values"] == [2.0, 4.0, 3.0]
    torn = spread("speed", {1: 2.0, 2: None}, unit="times")
    assert (torn["low"], torn["values"]) == (None, [2.0, None])
    assert judged(torn, "low", at_least=1.0)["met"] is False


@pytest.mark.parametrize(
    ("limit", "met", "target"),
    [({"at_most": 2.0}, True, "<= 2"), ({"at_most": 1.9}, False, "<= 1.9"), ({"at_least": 2.0}, True, ">= 2")],
)
def test_a_target_is_met_or_not(limit, met, target):
    made = judged(row("a", ratio=2.0), "ratio", **limit)
    assert (made["met"], made["target"]) == (met, target)


def test_merging_replaces_a_group_and_keeps_the_others(tmp_path):
    file = tmp_path / "bench.json"
    merge(file, "links", [row("old"), row("gone")])
    merge(file, "step", [row("kept")])
    merge(file, "links", [row("new", ratio=1.5)])
    content = json.loads(file.read_text())
    assert [(r["group"], r["case"]) for r in content] == [("step", "kept"), ("links", "new")]
    assert all({"case", "bytes", "p50_us", "p99_us", "ratio", "against", "machine"} <= r.keys() for r in content)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("content", ["{", '{"rows": []}'])
def test_a_file_that_is_no_list_of_rows_is_left_alone(tmp_path, content):
    file = tmp_path / "bench.json"
    file.write_text(content)
    with pytest.raises(BenchmarkFailed, match=r"bench\.json"):
        merge(file, "links", [])
    assert file.read_text() == content


def test_a_table_leaves_out_columns_that_nobody_fills():
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    show("group", [judged(row("fast", ratio=1.0), "ratio", at_most=2.0), row("slow", ratio=250.0)], console)
    text = console.export_text()
    console.file.close()
    assert "250.0" in text and "yes" in text and "p99" not in text


def test_the_quick_groups_run_unless_others_are_named():
    assert "street" not in command.chosen([]) and "links" in command.chosen([])
    assert command.chosen(["all"]) == list(command.GROUPS)
    assert command.chosen(["step", "runs"]) == ["step", *command.RUNS]
    with pytest.raises(BenchmarkFailed, match=r"speed.*links"):
        command.chosen(["speed"])


def test_a_group_that_fails_does_not_stop_the_next_one(tmp_path, monkeypatch):
    def measure(name, seeds, say):
        if name == "links":
            raise BenchmarkFailed("no socket")
        return [judged(row(f"{seeds}", ratio=3.0), "ratio", at_most=2.0)]

    monkeypatch.setattr(command, "measure", measure)
    console = Console(record=True, width=200)
    out = tmp_path / "bench.json"
    assert command.run(["links", "step"], [7], out, console) == 1
    assert [r["case"] for r in json.loads(out.read_text())] == ["[7]"]
    text = console.export_text()
    assert "no socket" in text and "Targets missed: step: [7]" in text


def test_every_group_is_there_or_says_that_its_module_is_not(monkeypatch):
    monkeypatch.setitem(command.GROUPS, "street", command.Group("benchmarks.nowhere:rows", ""))
    with pytest.raises(BenchmarkFailed, match=r"benchmarks\.nowhere is not there"):
        command.measure("street", [1], print)
    monkeypatch.setattr(runs, "over_seeds", lambda name, *_, **__: [row(name)])
    assert command.measure("gust", [1], print)[0]["case"] == "gust"


def test_a_path_into_a_summary_ends_in_none_where_there_is_nothing():
    summary = {"changes": [{"delay_steps": 2}], "error": None}
    assert runs.at(summary, "changes.0.delay_steps") == 2
    assert [runs.at(summary, p) for p in ("changes.1.step", "error.max", "status.x", "changes.x")] == [None] * 4


def test_figures_are_judged_by_the_worst_seed_and_by_magnitude():
    figures = (
        runs.Figure("speedup", "net_speedup", "times", at_least=3.0),
        runs.Figure("drag", "drag", at_most=0.01),
        runs.Figure("again", "again", "step", at_most=math.inf),
    )
    good, bad = {"net_speedup": 4.0, "drag": -0.005, "again": 9}, {"net_speedup": 2.9, "drag": -0.02, "again": None}
    assert [r["met"] for r in runs.tabulate(figures, {1: good})] == [True] * 3
    rows = runs.tabulate(figures, {1: good, 2: bad})
    assert [r["met"] for r in rows] == [False] * 3
    assert rows[1]["high"] == 0.02


def test_a_case_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BenchmarkFailed, match=r"none\.toml is not there"):
        runs.run_case(tmp_path / "none.toml", tmp_path / "out")


def test_a_failed_run_says_why(tmp_path):
    case = tmp_path / "case.toml"
    case.write_text("[run]\n")
    with pytest.raises(BenchmarkFailed, match=r"ended with code 2: .*simulation"):
        runs.run_case(case, tmp_path / "out")


def test_a_finer_grid_keeps_the_flow_and_the_steps_of_a_period():
    settings = {"nx": 400, "ny": 150, "substeps": 50, "diameter": 16, "center": [80.0, 75.0], "sponge_length": 40}
    fine = runs.scaled(settings, 1.5)
    assert fine == {
        "nx": 600,
        "ny": 225,
        "substeps": 75,
        "diameter": 24.0,
        "center": [120.0, 112.5],
        "sponge_length": 60,
    }


def written(folder, values, field):
    (folder / VIEWS).mkdir(parents=True)
    recorder = Recorder(folder / OBSERVABLES)
    for at, value in enumerate(values):
        recorder.write(Observed(step=at, time=float(at), origin=0, values={"lift": value}))
    recorder.close()
    np.savez(folder / VIEWS / "00000002.rank0.npz", u=np.array(field, np.float32), origin=np.array(0))
    return folder


def test_runs_are_compared_bit_for_bit(tmp_path):
    one = written(tmp_path / "one", [0.1, 0.2], [1.0, 0.0])
    assert runs.differences(one, written(tmp_path / "same", [0.1, 0.2], [1.0, 0.0]))[0] == 0
    assert runs.differences(one, written(tmp_path / "lift", [0.1, math.nextafter(0.2, 1)], [1.0, 0.0]))[0] == 1
    assert runs.differences(one, written(tmp_path / "short", [0.1], [1.0, 0.0]))[0] == 1
    assert runs.differences(one, written(tmp_path / "sign", [0.1, 0.2], [1.0, -0.0]))[0] == 1


def learn_from(task, circle):
    for at in range(240):
        angle = 0.3 * at
        state = np.array([math.cos(angle), math.sin(angle)]) if circle else np.array([1.0, 1.0])
        task.observe(Snapshot.of(at, float(at), 1.0, x=state, lift=angle))
    report = task.learn(1)
    while not report.idle and report.version == 0:
        report = task.learn(1)
    return report


def test_nothing_is_learned_from_what_the_useless_task_sees():
    settings = {"fields": FIELDS, "seed": 1, "models": ("affine",)}
    assert learn_from(useless.Propagator(**settings), circle=True).version == 1
    assert learn_from(useless.Useless(**settings), circle=True).version == 0


def test_the_useless_task_leaves_scalars_and_the_first_state_alone():
    first = Snapshot.of(0, 0.0, 1.0, x=np.array([1.0, 2.0]), lift=3.0)
    later = Snapshot.of(1, 1.0, 1.0, x=np.array([2.0, 4.0]), lift=5.0)
    seen = useless.scrambled(later, first, -2.0)
    assert seen["x"].tolist() == [-1.0, -2.0] and float(seen["lift"]) == 5.0 and seen.step == 1


def test_the_client_is_imported_in_an_interpreter_of_its_own():
    seconds, packages = imports.fresh_import(("schemas.fields",))
    assert seconds > 0.0 and {"schemas", "numpy"} <= set(packages) and "torch" not in packages
    with pytest.raises(BenchmarkFailed, match="nowhere"):
        imports.fresh_import(("nowhere",))


def test_a_learned_step_and_a_direct_one_are_timed_against_a_real_server(tmp_path):
    rows = step.round_trip(tmp_path / "a", 0.0, 3)
    assert [r["n"] for r in rows] == [3, 3, 3]
    assert rows[1]["p50_us"] <= rows[2]["p50_us"] and rows[1]["target"] == "<= 2"
    made = step.direct("64 B", 64, 5, 0.002, tmp_path / "b")
    assert made["n"] == 5 and made["bytes"] == 64


def test_many_ranks_and_bare_clients_take_turns_and_nothing_is_lost():
    rows = fan_in.rows(ranks=3, laps=2, steps=12)
    assert [r["case"] for r in rows][:2] == ["fan-in", "bare pyzmq, 3 clients"] and rows[0]["target"] == ">= 0.6"
    assert rows[0]["n"] == rows[1]["n"] == 2 and rows[0]["ratio"] > 0.0
    assert rows[-1] | {"case": "lost", "median": 0.0, "met": True} == rows[-1]


def test_what_any_book_of_a_fan_in_misses_is_lost():
    books = {"produced": 9, "admitted": 9, "in_flight": 0, "dropped": {}}
    facts = {"admitted": 9, "lost": 0, "incomplete": 0}
    assert fan_in.losses([books, books], facts, 9) == 0
    assert fan_in.losses([books, books | {"admitted": 7, "dropped": {"lost on the way": 2}}], facts, 9) == 2
    assert fan_in.losses([books, books], facts | {"admitted": 8}, 9) == 2
    assert fan_in.losses([books, books], facts | {"incomplete": 1}, 9) == 1
    with pytest.raises(BenchmarkFailed, match="balance"):
        fan_in.losses([books | {"admitted": 7}], facts, 9)


@pytest.mark.parametrize("digest", [True, False])
def test_states_across_tcp_take_turns_with_bare_pyzmq(tmp_path, digest):
    sizes = {"there": 64, "in_a_row": 64 * tcp.WINDOW, "back": 64}
    for name, size in sizes.items():
        (tmp_path / name).mkdir()
        made = getattr(tcp, name)(64, 2, digest, tmp_path / name)
        assert all(("no digest" in r["case"]) != digest for r in made)
        assert {(r["bytes"], r["target"], r["unit"]) for r in made} == {(size, ">= 0.9", "GB/s")}
        assert made[0]["ratio"] == pytest.approx(made[0]["bare_p50_us"] / made[0]["p50_us"])


def test_the_stream_is_there_in_its_rounds_only(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "ARRIVED", 0.01)  # the machine may be busy
    on, off, alone = streaming.rounds(800, 100.0, 1, 0.3, tmp_path)
    assert on["target"] == ">= 0.95" and on["arrived a second"] > 0.0
    assert off["ratio"] == 1.0 and "target" not in off and alone["against"] == off["case"]
    assert all(r["median"] > 0.0 and r["n"] > 1 for r in (on, off, alone))


def test_a_stream_that_does_not_arrive_is_no_figure(tmp_path):
    with pytest.raises(BenchmarkFailed, match="no such stream"):
        streaming.rounds(800, 1e6, 1, 0.1, tmp_path)


def test_each_promise_is_measured_against_none(tmp_path):
    made = promises.promises(64, 3, tmp_path)
    assert [r["n"] for r in made] == [3] * 2 * len(promises.WAYS)
    assert [r["case"] for r in made if r["ratio"] == 1.0 and "plain" in r["case"]] == [
        "push in frames over tcp, plain",
        "state to its acknowledgement, plain",
    ]


@pytest.mark.parametrize("what", ["push", "learned step"])
def test_the_parts_of_a_step_are_no_more_than_the_whole(tmp_path, what):
    made = promises.push(64, 5, 0.001, tmp_path) if what == "push" else promises.learned_step(64, 5, tmp_path)
    whole, *parts = [r for r in made if r["p50_us"] is not None]
    assert whole["case"] == what and {r["n"] for r in parts} == {5}
    assert {f"{what}: {part}" for part in (promises.ENCODE, promises.SEND, promises.PUT, REST)} <= {
        r["case"] for r in parts
    }
    assert all(r["p50_us"] <= whole["p99_us"] for r in parts)


def test_a_part_counts_without_the_parts_inside_it_and_is_put_back():
    class Work:
        def outer(self):
            return self.inner() + 1

        def inner(self):
            return 1

    work, now = Work(), iter([0.0, 1.0, 3.0, 7.0, 8.0, 9.0])
    watch = Stopwatch(lambda: next(now))
    watch.time(work, "outer", "out")
    watch.time(work, "inner", "in")
    assert watch.call(work.outer) == 9.0
    assert watch.seconds == {REST: [2.0], "out": [3.0], "in": [4.0]}
    watch.undo()
    assert work.outer() == 2 and not vars(work)


def test_the_true_errors_of_adopted_states_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(coverage, "STEPS", 300)
    errors, bounds = coverage.adopted({"k": 1.0, "beta": 0.0, "amplitude": [0.5, 1.5]}, tmp_path / "run", 1)
    assert len(errors) > 3 and max(errors) < 1e-6 and all(0.0 < bound < coverage.TOLERANCE for bound in bounds)


def test_the_ranks_of_the_step_benchmark_vote(monkeypatch, capsys):
    monkeypatch.setattr(step, "MpiRanks", Ranks)
    monkeypatch.setattr(step, "VOTES", 3)
    step.vote()
    assert len(json.loads(capsys.readouterr().out)) == 3
