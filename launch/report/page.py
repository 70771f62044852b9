"""Writes `report.html`: one self-contained page, pictures and style inline, no script, no network."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.report import judgement, pictures, tables
from launch.report.pictures import Gallery
from launch.report.rundir import LOGS, RunFolder, read_folder
from launch.report.stylesheet import CSS
from launch.report.summary import assemble
from launch.report.tables import Table
from launch.report.words import UNKNOWN, findings, number, percent, pick, seconds, times

REPORT = "report.html"
LOG_TAIL = 15
CAPTIONS = {
    "switching": "The run in one picture: the flow at a few moments, who made each step, and the hand-overs close up.",
    "fields": "The coupled run's field against the all-direct run at the same step.",
    "timeline": "Each step in the colour of who made it; ticks are passed audits, a cross is one that failed.",
    "error": "The calibrated bound decides what is adopted, audits measure one interval, the trajectory error needs "
    "the all-direct run; learned stretches are tinted.",
    "observables": "Each observable in the colour of who made the step, on the broad grey line of the all-direct run.",
    "dt": "The dt of every decision that counted, and the controls.",
    "judgement": "dt over simulated time: this run beside the ones that the simulation compared it with.",
    "time": "Wall time by what it was spent on; the trainer works beside the solver.",
}


def write(folder: Path) -> Path:
    """Draws the pictures of a run folder and writes its page.

    Args:
        folder: Run folder, whole or torn: what is missing is said on the page.

    Returns:
        Path of `report.html`, in the folder.
    """
    run = read_folder(folder)
    if not run.summary:
        run = replace(run, summary=assemble(run, {}))
    gallery = pictures.draw(run)
    path = folder / REPORT
    path.write_text(_page(run, gallery), encoding="utf-8")
    return path


def _page(run: RunFolder, gallery: Gallery) -> str:
    title = str(run.summary.get("case") or run.path.resolve().name)
    body = [
        _header(run, title),
        _cause(run),
        _tiles(run.summary),
        _list(findings(run.summary), "found"),
        _missing(run, gallery),
        *(_figure(name, path) for name, path in gallery.pictures.items()),
        _judged(run),
        _numbers(run.summary),
        _sources(run),
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{_e(title)}</title>\n'
        f"<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, body))
        + "\n</main>\n</body>\n</html>\n"
    )


def _e(value: Any) -> str:
    return html.escape(str(value))


def _header(run: RunFolder, title: str) -> str:
    status = str(run.summary.get("status") or "no summary")
    kind = {"finished": "good", "failed": "bad"}.get(status, "warn")
    about = [f"{number(run.summary.get('steps'))} coupling steps"]
    about += [
        f"{key} {run.summary[key]}" for key in ("seed", "mode", "rung", "ranks") if run.summary.get(key) is not None
    ]
    heading = f'<h1>{_e(title)}<span class="pill {kind}">{_e(status)}</span></h1>'
    return f'{heading}\n<p class="about">{_e(" · ".join(about))}</p>'


def _cause(run: RunFolder) -> str:
    """Why a run did not finish, with the last lines of every log; before anything else."""
    status = run.summary.get("status")
    if status == "finished":
        return ""
    cause = run.summary.get("cause") or "The run left no summary: it is still going on, or it was killed."
    tails = "".join(f"<h3>{_e(path.name)}, last lines</h3><pre>{_e(_tail(path))}</pre>" for path in run.logs)
    return f'<div class="note cause"><h3>Why it did not finish</h3><p>{_e(cause)}</p>{tails}</div>'


def _tail(path: Path) -> str:
    lines = path.read_text("utf-8", errors="replace").splitlines()
    return "\n".join(lines[-LOG_TAIL:]) or "(empty)"


def _tiles(summary: Mapping[str, Any]) -> str:
    net = summary.get("net_speedup")
    first_40 = pick(summary, "error", "periods", "max_first_40")
    bound, tolerance = pick(summary, "horizon_error", "bound"), summary.get("tolerance")
    coverage = pick(summary, "horizon_error", "coverage")
    tiles = [
        ("Net speedup", UNKNOWN if net is None else f"{net:.2f} ×", "against the all-direct run, everything counted"),
        ("Learned", percent(summary.get("learned_fraction")), "of the simulated time"),
        (
            "Trajectory error",
            percent(first_40 if first_40 is not None else pick(summary, "error", "max")),
            "at most, over the first 40 periods" if first_40 is not None else "at most, of the rms fluctuation",
        ),
        (
            "Horizon error",
            percent(bound),
            f"bound at most, tolerance {percent(tolerance)}, coverage {percent(coverage)}",
        ),
        ("Audits", number(summary.get("audits")), times(summary.get("rewinds"), "rewind")),
        (
            "Wall time",
            seconds(pick(summary, "time", "wall_s")),
            f"all-direct {seconds(pick(summary, 'time', 'reference_wall_s'))}",
        ),
    ]
    cells = (
        f'<div class="tile"><div class="label">{_e(label)}</div><div class="value">{_e(value)}</div>'
        f'<div class="sub">{_e(sub)}</div></div>'
        for label, value, sub in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _list(lines: Iterable[str], kind: str = "") -> str:
    return f'<ul class="{kind}">{"".join(f"<li>{_e(line)}</li>" for line in lines)}</ul>'


def _missing(run: RunFolder, gallery: Gallery) -> str:
    lines = [*run.missing, *(f"No picture “{name}”: {reason}." for name, reason in gallery.lacking.items())]
    lines = [line.replace("..", ".") for line in lines]
    return f'<div class="note"><h3>Missing here</h3>{_list(lines)}</div>' if lines else ""


def _figure(name: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    caption = _e(CAPTIONS[name])
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def _judged(run: RunFolder) -> str:
    found = judgement.tables(judgement.judgement(run))
    return "\n".join(["<h2>Against the baselines</h2>", *(_table(table) for table in found)]) if found else ""


def _numbers(summary: Mapping[str, Any]) -> str:
    blocks = ["<h2>Errors</h2>", _table(tables.errors(summary))]
    if statistics := tables.observables(summary):
        blocks += ["<h2>Observables</h2>", *(_table(table) for table in statistics)]
    blocks += ["<h2>Models and samples</h2>"]
    if served := tables.models(summary):
        blocks.append(_table(served))
    blocks += [_table(tables.samples(summary)), "<h2>Time</h2>", _table(tables.time(summary))]
    return "\n".join(blocks)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_e(text)}</th>' for text in table.head)
    kind = ' class="wordy"' if table.wordy else ""
    rows = "".join(
        f'<tr><th scope="row">{_e(row[0])}</th>{"".join(f"<td>{_e(text)}</td>" for text in row[1:])}</tr>'
        for row in table.rows
    )
    return f'<div class="scroll"><table{kind}><caption>{_e(table.caption)}</caption><tr>{head}</tr>{rows}</table></div>'


def _sources(run: RunFolder) -> str:
    logs = "".join(f'<li><a href="{LOGS}/{_e(path.name)}">{LOGS}/{_e(path.name)}</a></li>' for path in run.logs)
    case = f"<details><summary>Resolved case</summary><pre>{_e(run.case)}</pre></details>" if run.case else ""
    where = f"<p>Logs, beside this page:</p><ul>{logs}</ul>" if logs else "<p>The run left no logs.</p>"
    return f"<h2>Case and logs</h2>{case}{where}"
