"""The records of the run folder's files, from their Structs."""

from __future__ import annotations

import msgspec

from coupler import trace
from generate import text
from generate.messages import packed
from generate.run_file import default
from launch.report import rundir

RECORDS = {
    "trace_record": (trace.Record, trace.TRACE),
    "observed_record": (trace.Observed, trace.OBSERVABLES),
    "error_record": (rundir.TrajectoryError, f"{rundir.REFERENCE}/{rundir.ERRORS}"),
}


def parts() -> dict[str, str]:
    """One table for each kind of record."""
    return {name: _record(kind, file) for name, (kind, file) in RECORDS.items()}


def _record(kind: type[msgspec.Struct], file: str) -> str:
    doc = text.docstring(kind)
    meanings = doc.items("Attributes")
    rows = [
        (text.code(field.encode_name), packed(field.type), default(field), text.cell(meanings.get(field.name, "")))
        for field in msgspec.structs.fields(kind)
    ]
    table = text.table(("key", "type", "default", "meaning"), rows)
    return f"One record of `{file}`. {text.markdown(doc.text)}\n\n{table}"
