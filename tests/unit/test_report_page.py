"""The whole report of a synthetic vortex run, finished and failed: summary, pictures, page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgpack
import pytest
import synthetic_run

from launch.report import page, pictures, tables, words
from launch.report.curves import where_time_went
from launch.report.rundir import read_folder
from launch.report.summary import SAMPLES, TIMES, summarise

KEYS = {
    *("status", "case", "seed", "steps", "learned_fraction", "switches", "fallbacks", "rewinds", "audits", "tolerance"),
    *("error", "horizon_error", "step_error", "net_speedup", "effective_speedup", "time", "samples", "models"),
    "observables",
}
PICTURES = ["switching", "fields", "timeline", "error", "observables", "dt", "time"]


@pytest.fixture(scope="module")
def gust(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run with a hidden gust and its summary."""
    folder = tmp_path_factory.mktemp("runs") / "gust"
    facts = synthetic_run.make(folder)
    return folder, summarise(folder, facts)


def test_the_summary_has_every_key_and_is_plain_json(gust: tuple[Path, dict[str, Any]]) -> None:
    _, summary = gust
    assert set(summary) >= KEYS and set(TIMES) <= set(summary["time"]) and set(SAMPLES) <= set(summary["samples"])
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_the_summary_tells_the_story_of_the_run(gust: tuple[Path, dict[str, Any]]) -> None:
    _, summary = gust
    assert (summary["steps"], summary["switches"], summary["fallbacks"], summary["rewinds"]) == (1200, 2, 1, 1)
    assert summary["steps_by"]["learned"] == 678 and summary["learned_fraction"] == pytest.approx(678 / 1200)
    assert summary["superseded_steps"] == 46 and summary["first_handover_step"] == 260
    assert summary["step_error"] == {"max": 0.31, "mean": pytest.approx(0.046, abs=2e-3), "n": 7}
    (change,) = summary["changes"]
    assert (change["step"], change["delay_steps"], change["rewound_to"]) == (640, 26, 620)
    assert change["learned_steps_kept"] == 0 and change["relearned_at_step"] == 870
    assert summary["time"]["direct_step_s"] == pytest.approx(synthetic_run.DIRECT_S, rel=0.01)
    assert summary["net_speedup"] == pytest.approx(36.0 / summary["time"]["wall_s"])


def test_a_judgement_is_shown_with_its_table_and_curves(tmp_path: Path) -> None:
    folder = tmp_path / "judged"
    curves = {name: {"time": [0.0, 1.0], "dt": [0.1, 0.2]} for name in ("coupled", "fixed dt")}
    table = [{"run": "coupled", "steps": 1200, "drift": None}, {"run": "fixed dt", "steps": 3400, "drift": 0.25}]
    facts = synthetic_run.make(folder) | {"judgement": {"over_fixed": 1.75, "table": table, "curves": curves}}
    (folder / "summary.json").write_text(json.dumps(summarise(folder, facts)))
    text = page.write(folder).read_text("utf-8")
    assert "over_fixed" in text and "1.75" in text and "fixed dt" in text and "3,400" in text
    assert (folder / "judgement.png").exists()


def test_observables_are_given_for_each_regime(gust: tuple[Path, dict[str, Any]]) -> None:
    _, summary = gust
    before, after = (part["observables"]["lift"] for part in summary["regimes"])
    cycles_per_time = 1.0 / (synthetic_run.PERIOD * synthetic_run.DT)
    assert before["reference"]["frequency"] == pytest.approx(cycles_per_time, rel=1e-6)
    assert after["reference"]["frequency"] == pytest.approx(synthetic_run.GUST_FACTOR * cycles_per_time, rel=1e-6)
    for part in (before, after):
        assert part["difference_learned_only"]["frequency"] == pytest.approx(9.6e-5, rel=0.3)  # the model's drift
    # Over both regimes together there is no one frequency, and none is invented.
    assert summary["observables"]["lift"]["coupled"]["frequency"] is None


def test_errors_over_the_first_periods_and_beyond(tmp_path: Path) -> None:
    facts = synthetic_run.make(tmp_path, shape=(12, 32), gust=False, scale=5, views_every=600)
    error = summarise(tmp_path, facts)["error"]
    periods = error["periods"]
    assert periods["period_steps"] == pytest.approx(24.0, rel=1e-6)
    assert periods["max_first_40"] < error["max"] == error["final"]
    assert periods["max_aligned_beyond"] == pytest.approx(0.0043, rel=0.02)
    assert periods["max_shift_periods"] == pytest.approx(4e-6 * 1800, rel=0.06)


def test_what_nobody_knows_is_null(tmp_path: Path) -> None:
    summary = summarise(tmp_path, {})
    for key in ("status", "learned_fraction", "tolerance", "error", "net_speedup"):
        assert summary[key] is None
    assert summary["effective_speedup"]["S"] is None and summary["samples"]["produced"] is None
    assert summary["horizon_error"] == {"bound": None, "measured": None, "coverage": None, "n": None}


def test_facts_go_before_the_trace_and_unknown_ones_pass_through(gust: tuple[Path, dict[str, Any]]) -> None:
    folder, derived = gust
    summary = summarise(folder, {"switches": 9, "time": {"direct_step_s": 1.5}, "colour": "blue"})
    assert (summary["switches"], summary["time"]["direct_step_s"], summary["colour"]) == (9, 1.5, "blue")
    assert summary["rewinds"] == derived["rewinds"]
    assert summary["horizon_error"]["bound"] == pytest.approx(0.012, abs=1e-4)  # the largest bound adopted


class Seen(HTMLParser):
    """Collects tags, images and links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(folder: Path) -> Seen:
    seen = Seen()
    seen.feed(page.write(folder).read_text("utf-8"))
    return seen


def test_the_page_of_a_finished_run_is_whole_and_self_contained(gust: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = gust
    (folder / "summary.json").write_text(json.dumps(summary))
    seen = read_page(folder)
    assert "Missing here" not in seen.text
    assert seen.tags.count("img") == len(PICTURES) and "script" not in seen.tags
    for name in PICTURES:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    outside = [s for s in seen.sources if not s.startswith("data:image/png;base64,")]
    assert outside == ["logs/server.log", "logs/simulation.log"]
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]*", "", (folder / "report.html").read_text("utf-8"))
    assert '"vortex_street" # <resolved>' in seen.text  # escaped on the page, or the parser would take it for a tag
    for words_of in ("1.99 ×", "56.5 %", "1.99 times as fast", "by a rewind to step 620", "The books balance"):
        assert words_of in seen.text


def test_the_page_of_a_failed_run_shows_the_cause_first(tmp_path: Path) -> None:
    synthetic_run.make(tmp_path, reference=False, shape=(12, 32))
    trace = (tmp_path / "trace.msgpack").read_bytes()
    (tmp_path / "trace.msgpack").write_bytes(trace[: len(trace) // 5])
    (tmp_path / "observables.msgpack").write_bytes(b"\xc1")
    (tmp_path / "fields.json").unlink()
    for path in (tmp_path / "views").glob("*"):
        path.write_bytes(b"torn")
    summary = summarise(tmp_path, {"status": "failed", "cause": "Rank 1 died of <SIGKILL> & more."})
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    seen = read_page(tmp_path)
    assert seen.text.index("Rank 1 died of <SIGKILL> & more.") < seen.text.index("Net speedup")
    assert "promoted version 3" in seen.text  # the tail of a log
    for said in ("fields.json is missing.", "observables.msgpack is damaged", "No picture “fields”", "is torn"):
        assert said in seen.text
    assert seen.tags.count("img") == 3  # timeline, dt and time can still be drawn


def test_an_empty_folder_has_a_page_too(tmp_path: Path) -> None:
    seen = read_page(tmp_path)
    assert "The run left no summary" in seen.text and seen.tags.count("img") == 0
    assert "trace.msgpack is missing." in seen.text


def test_a_picture_that_fails_costs_only_itself(
    gust: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr(pictures.curves, "timeline", fails)
    gallery = pictures.draw(read_folder(gust[0]))
    assert gallery.lacking == {"timeline": "timeline.png could not be drawn: no ink"}
    assert list(gallery.pictures) == [name for name in PICTURES if name != "timeline"]
    assert not (gust[0] / "timeline.png").exists()


def test_time_by_part_adds_up_to_the_wall_time(gust: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = gust
    wall = summary["time"]["wall_s"]
    spent = where_time_went(read_folder(folder).records, wall)
    assert sum(spent.values()) == pytest.approx(wall, rel=1e-9)
    assert spent["trial"] == pytest.approx(140 * synthetic_run.DIRECT_S, rel=0.02)


def test_books_that_do_not_balance_are_called_out() -> None:
    books = {"produced": 10, "admitted": 7, "dropped": 1, "in_flight": 1, "retained": 0}
    assert "do NOT balance: produced is 10, the next four sum to 9" in tables.samples({"samples": books}).caption
    assert "balance: produced is the sum" in tables.samples({"samples": books | {"retained": 1}}).caption
    assert "cannot be checked" in tables.samples({}).caption
    by_reason = tables.samples({"samples": books | {"dropped": {"no server yet": 2}}})
    assert "balance: produced is the sum" in by_reason.caption and ("dropped: no server yet", "2") in by_reason.rows


def test_a_slow_run_is_called_slow() -> None:
    told = words.findings({"net_speedup": 0.8, "time": {"wall_s": 10.0, "reference_wall_s": 8.0}})
    assert any("slower by a factor of 1.25" in line for line in told)


def test_errors_that_are_not_finite_are_never_hidden(tmp_path: Path) -> None:
    facts = synthetic_run.make(tmp_path, shape=(12, 32), views_every=400)
    with (tmp_path / "reference" / "errors.msgpack").open("ab") as file:
        file.write(msgpack.packb({"step": 1200, "time": 600.0, "origin": 5, "error": float("nan")}))
    summary = summarise(tmp_path, facts)
    assert summary["error"]["max"] is None and summary["error"]["not_finite"] == 1
    assert any("are not finite" in line for line in read_folder(tmp_path).missing)
