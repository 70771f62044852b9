from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import pytest

from coupler import registry
from coupler.errors import PluginError

if TYPE_CHECKING:
    from nowhere import Ranks


class Solver:
    """A plug-in whose `ranks` cannot be resolved at run time, as with imports for type checking only."""

    def __init__(
        self,
        *,
        ranks: Ranks,
        length: Annotated[float, msgspec.Meta(gt=0)],
        scheme: Literal["euler", "verlet"] = "verlet",
        box: tuple[float, float] = (1.0, 2.0),
        marks: list[int] = [1],  # noqa: B006
    ) -> None:
        if length > 100:
            raise ValueError(f"length is {length}; at most 100 is resolved")
        self.ranks, self.length, self.scheme, self.box, self.marks = ranks, length, scheme, box, marks


class Seeded:
    def __init__(self, *, seed: int) -> None:
        self.seed = seed


class Empty:
    pass


class Open:
    def __init__(self, **anything: float) -> None: ...


class Untyped:
    def __init__(self, *, length) -> None: ...  # type: ignore[no-untyped-def]


class Unreadable:
    def __init__(self, *, length: Ranks) -> None: ...


class Clash:
    def __init__(self, *, length: float, mass: float) -> None:
        raise RuntimeError("no license")


@pytest.mark.parametrize("name", registry.BUILT_IN["simulations"])
def test_built_in_simulations_take_checked_settings(name: str) -> None:
    cls = registry.find("simulations", name)
    assert not registry.RESERVED & set(registry.settings_type(cls).__struct_fields__)


@pytest.mark.parametrize("name", registry.BUILT_IN["tasks"])
def test_built_in_tasks_own_a_part_of_the_advice(name: str) -> None:
    cls = registry.find("tasks", name)
    assert cls.owns <= {"arrays", "dt"}
    registry.settings_type(cls)


@pytest.mark.parametrize("name", registry.BUILT_IN["links"])
def test_built_in_links_listen_and_connect(name: str) -> None:
    assert callable(registry.find("links", name).listen)


def test_literal_name_is_found() -> None:
    assert registry.find("simulations", "http.server:HTTPServer").__name__ == "HTTPServer"


def test_entry_points_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = metadata.EntryPoint("server", "http.server:HTTPServer", "coupler.simulations")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry] if group == entry.group else [])
    assert registry.find("simulations", "server").__name__ == "HTTPServer"
    assert "server" not in registry.known("tasks")


@pytest.mark.parametrize(
    ("group", "name", "sentence"),
    [
        (
            "simulations",
            "oscilator",
            'no simulation is called "oscilator"; known are double_well, lammps, oscillator, recording, relaxation, '
            'vortex_street; did you mean "oscillator"?; a class of your own is named as "my.module:Thing"',
        ),
        (
            "tasks",
            "qqq",
            'no task is called "qqq"; known are propagator, timestep; '
            'a class of your own is named as "my.module:Thing"',
        ),
        (
            "tasks",
            "no_such_module:Thing",
            'the task "no_such_module:Thing" cannot be imported '
            "(ModuleNotFoundError: No module named 'no_such_module')",
        ),
        (
            "tasks",
            "http.server:HTTPServr",
            'the task "http.server:HTTPServr" is no class of module http.server; did you mean "HTTPServer"?',
        ),
        ("tasks", "http.server:test", 'the task "http.server:test" is no class of module http.server'),
        (
            "links",
            "http.server",
            'the link "http.server" lacks listen or connect; see coupler.links.zeromq for what they take',
        ),
    ],
)
def test_what_cannot_be_found_is_explained(group: registry.Group, name: str, sentence: str) -> None:
    with pytest.raises(PluginError) as caught:
        registry.find(group, name)
    assert str(caught.value).startswith(sentence)


@pytest.fixture
def broken_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "broken_plugin:Thing"
    sys.modules.pop("broken_plugin", None)


def test_import_failure_keeps_its_cause(broken_module: str) -> None:
    with pytest.raises(PluginError, match="ZeroDivisionError: division by zero") as caught:
        registry.find("simulations", broken_module)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_settings_are_the_annotated_parameters() -> None:
    kind = registry.settings_type(Solver)
    assert kind.__struct_fields__ == ("length", "scheme", "box", "marks")
    assert msgspec.convert({"length": 3}, kind).box == (1.0, 2.0)  # type: ignore[attr-defined]
    assert registry.settings_type(Empty).__struct_fields__ == ()


def test_default_lists_are_not_shared() -> None:
    kind = registry.settings_type(Solver)
    first, second = (msgspec.convert({"length": 3}, kind) for _ in range(2))
    first.marks.append(2)  # type: ignore[attr-defined]
    assert second.marks == [1]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("cls", "sentence"), [(Open, "anything: 'float'"), (Untyped, "annotation of length"), (Unreadable, "Ranks")]
)
def test_constructors_that_cannot_be_checked_are_refused(cls: type, sentence: str) -> None:
    with pytest.raises(PluginError, match=sentence):
        registry.settings_type(cls)


def test_construct_converts_and_passes_what_is_wanted() -> None:
    made = registry.construct(Solver, {"length": 3, "box": [1, 2]}, ranks="all", seed=4, fields=())
    assert (made.ranks, made.length, made.box, made.scheme) == ("all", 3.0, (1.0, 2.0), "verlet")
    assert isinstance(made.length, float)
    assert registry.construct(Seeded, {}, ranks="all", seed=4).seed == 4
    assert isinstance(registry.construct(Empty, {}, seed=4), Empty)


@pytest.mark.parametrize(
    ("cls", "settings", "sentence"),
    [
        (Solver, {"length": 0}, "a setting of Solver is wrong: Expected `float` > 0.0 - at `$.length`"),
        (Solver, {"length": "3"}, "a setting of Solver is wrong: Expected `float`, got `str` - at `$.length`"),
        (Solver, {}, "a setting of Solver is wrong: Object missing required field `length`"),
        (Solver, {"length": 3, "size": 1}, "a setting of Solver is wrong: Object contains unknown field `size`"),
        (Solver, {"length": 200}, "Solver cannot be made: length is 200.0; at most 100 is resolved"),
        (Clash, {"length": 3, "mass": 1}, "Clash cannot be made: RuntimeError: no license"),
    ],
)
def test_construct_explains(cls: type, settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(PluginError) as caught:
        registry.construct(cls, settings, ranks="all")
    assert str(caught.value) == sentence
    assert caught.value.__cause__ is not None
