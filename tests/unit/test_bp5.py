"""Recordings in BP5 files: what goes in comes out, also of one that was cut short."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from recorded import DT, FIELDS, NEEDS_ADIOS, record, state

from coupler.bulks import bp5
from coupler.bulks.bp5 import RecordReader, RecordWriter
from coupler.errors import PluginError, SchemaMismatch
from schemas.fields import FieldSpec, Snapshot

ENDLESS = """
import sys
from pathlib import Path
from recorded import FIELDS, state
from coupler.bulks.bp5 import RecordWriter
writer = RecordWriter(Path(sys.argv[1]), FIELDS, {})
for step in range(10**6):
    writer.write(state(step))
    sys.stdout.write(f"{step}\\n")
    sys.stdout.flush()
"""


def opened_again(path: Path) -> tuple[list[int], list[dict[str, np.ndarray]]]:
    reader = RecordReader(path)
    try:
        return reader.steps.tolist(), [reader.read(k) for k in range(len(reader))]
    finally:
        reader.close()


@NEEDS_ADIOS
def test_gives_back_what_was_written(tmp_path: Path) -> None:
    reader = RecordReader(record(tmp_path / "r.bp", 0, 1, 2, 5))
    assert reader.fields == FIELDS and reader.attributes == {"coupler/run": "test"} and len(reader) == 4
    assert reader.steps.tolist() == [0, 1, 2, 5] and reader.times.tolist() == [0.0, DT, 2 * DT, 5 * DT]
    assert set(reader.dts) == {DT} and set(reader.controls_until) == {100.0} and not reader.superseded.any()
    for k, step in enumerate(reader.steps.tolist()):
        arrays = reader.read(k)
        for name, block in state(step).blocks.items():
            assert arrays[name].dtype == block.array.dtype and arrays[name].tobytes() == block.array.tobytes()
    reader.close()
    reader.close()


@NEEDS_ADIOS
def test_reads_rows_of_some_fields(tmp_path: Path) -> None:
    reader = RecordReader(record(tmp_path / "r.bp", 0, 1, 2))
    part = reader.read(2, {"u": slice(4, 6), "lift": slice(None)})
    assert list(part) == ["u", "lift"]
    assert np.array_equal(part["u"], state(2)["u"][4:6]) and part["lift"] == state(2)["lift"]
    with pytest.raises(ValueError, match="states 0 to 2; there is no state 3"):
        reader.read(3)
    reader.close()


@NEEDS_ADIOS
def test_a_killed_writer_leaves_its_complete_steps(tmp_path: Path) -> None:
    path = tmp_path / "r.bp"
    here = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    command, environment = [sys.executable, "-c", ENDLESS, str(path)], {**os.environ, "PYTHONPATH": here}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as writer:
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(20)][-1]
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait(10)
    steps, states = opened_again(path)
    assert len(steps) > told and steps == list(range(len(steps)))
    assert all(np.array_equal(found["u"], state(k)["u"]) for k, found in enumerate(states))


@NEEDS_ADIOS
@pytest.mark.parametrize(("file", "cut", "left"), [("data.0", 1, 4), ("data.0", 10**4, 2), ("md.idx", 5, 4)])
def test_lost_bytes_cost_the_states_they_belong_to(tmp_path: Path, file: str, cut: int, left: int) -> None:
    path = record(tmp_path / "r.bp", *range(5))
    os.truncate(path / file, max((path / file).stat().st_size - cut - 16, 0))
    assert opened_again(path)[0] == list(range(left))


@NEEDS_ADIOS
def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no")
    for name in ("empty", "file", "nowhere"):
        with pytest.raises(ValueError, match=f"{name} is not a BP5 file"):
            RecordReader(tmp_path / name)
    RecordWriter(tmp_path / "stateless", FIELDS, {}).close()
    with pytest.raises(ValueError, match="holds no complete state"):
        RecordReader(tmp_path / "stateless")
    junk = record(tmp_path / "junk.bp", 0, 1)
    os.truncate(junk / "data.0", 0)
    with pytest.raises(ValueError, match="its data are missing"):
        RecordReader(junk)


@NEEDS_ADIOS
def test_a_bp5_file_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bp5, "FORMAT", 99)
    record(tmp_path / "r.bp", 0, 1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="no recording of layout 1"):
        RecordReader(tmp_path / "r.bp")


@NEEDS_ADIOS
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ((), "there are no fields"),
        ((FieldSpec("time", "<f8", (), "s", "scalar"),), "'time' has a name that a recording gives to the instant"),
        ((FieldSpec("u", "<c8", (3,), "1"),), "'u' has dtype '<c8'"),
    ],
)
def test_fields_that_cannot_be_recorded(tmp_path: Path, fields: tuple[FieldSpec, ...], sentence: str) -> None:
    with pytest.raises(SchemaMismatch, match=sentence):
        RecordWriter(tmp_path / "r.bp", fields, {})


@NEEDS_ADIOS
def test_a_state_that_is_not_as_declared_is_refused_and_the_file_goes_on(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "r.bp", FIELDS[:1], {})
    writer.write(state(0))
    with pytest.raises(SchemaMismatch, match=r"'u' was declared as <f4 of shape \(6, 3\), but came as <f8 of shape"):
        writer.write(Snapshot.of(1, 0.0, 1.0, u=np.zeros((6, 3))))
    with pytest.raises(SchemaMismatch, match="step 1 lacks the field 'u'"):
        writer.write(Snapshot.of(1, 0.0, 1.0))
    writer.write(state(1))
    writer.close()
    assert opened_again(tmp_path / "r.bp")[0] == [0, 1]


@NEEDS_ADIOS
def test_states_of_a_branch_that_was_left_are_marked(tmp_path: Path) -> None:
    reader = RecordReader(record(tmp_path / "r.bp", 0, 1, 2, 3, 2, 3, 4, 1, 7))
    assert reader.superseded.tolist() == [False, True, True, True, True, True, True, False, False]
    reader.close()


@NEEDS_ADIOS
def test_bytes_that_are_no_text_are_kept(tmp_path: Path) -> None:
    fields = (FieldSpec("mask", "|u1", (4,), "1"), FieldSpec("flag", "|u1", (), "1", "scalar", "observable"))
    writer = RecordWriter(tmp_path / "r.bp", fields, {})
    for step in range(3):
        writer.write(Snapshot.of(step, 0.0, 1.0, mask=np.full(4, 255 - step, np.uint8), flag=np.array(128, np.uint8)))
    writer.close()
    _, states = opened_again(tmp_path / "r.bp")
    assert [found["mask"].tolist() for found in states] == [[255 - step] * 4 for step in range(3)]
    assert [found["flag"] for found in states] == [128] * 3


FAKE = SimpleNamespace(__version__="3.0.1", is_built_with_mpi=False)


@pytest.mark.parametrize(
    ("package", "sentence"),
    [(None, r"cannot be imported .*pip install 'coupler\[adios\]'"), (FAKE, r"3\.0\.1, .* pip install 'adios2<3'")],
)
def test_without_an_adios2_that_fits_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: object, sentence: str
) -> None:
    monkeypatch.setitem(sys.modules, "adios2", package)
    assert re.search(sentence, bp5.missing())
    with pytest.raises(PluginError, match=sentence):
        RecordWriter(tmp_path / "r.bp", FIELDS, {})


@NEEDS_ADIOS
def test_adios2_loads_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from recorded import record
record(Path({str(tmp_path / "r.bp")!r}), 0)
assert "adios2" in sys.modules and "torch" not in sys.modules
import importlib.util
assert importlib.util.find_spec("torch") is not None
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
