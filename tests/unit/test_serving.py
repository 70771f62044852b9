"""Several ranks of a task answer as one: what they forecast, how wrong it is, and what they report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupler.contracts import Forecast, Report
from coupler.distribution import Share
from coupler.errors import PluginError
from coupler.norms import relative_error
from ml_servers.serving import JointTask, Reports
from schemas.fields import Array, FieldSpec, Snapshot
from schemas.messages import Trained

FIELDS = (
    FieldSpec("u", "<f8", (7, 3), "m/s"),
    FieldSpec("k", "<i4", (5,), "1"),
    FieldSpec("lift", "<f8", (), "1", "scalar", "observable"),
    FieldSpec("inflow", "<f8", (), "m/s", "scalar", "control"),
)


class Shifted:
    """Adds a number to what it sees of the state."""

    owns: ClassVar[frozenset[str]] = frozenset({"arrays"})

    def __init__(self, by: float = 1.0, version: int = 1, **told: object) -> None:
        self.by, self.version, self.told = by, version, told
        self.saw: Snapshot | None = None

    def forecast(self, snapshot: Snapshot, horizon: int) -> Forecast:
        self.saw = snapshot
        arrays = {name: (snapshot[name] + self.by).astype(snapshot[name].dtype) for name in ("u", "k")}
        told = {"error": 0.1, "arrays": arrays, "observables": {"lift": np.full(horizon, self.by)}} | self.told
        return Forecast(horizon, version=self.version, **told)  # type: ignore[arg-type]

    def observe(self, snapshot: Snapshot) -> None: ...

    def learn(self, steps: int) -> Report:
        raise NotImplementedError

    def state(self) -> dict[str, Array]:
        raise NotImplementedError

    def restore(self, state: Mapping[str, Array]) -> None:
        raise NotImplementedError


def state_at(step: int = 4, seed: int = 0) -> Snapshot:
    rng = np.random.default_rng(seed)
    u, k = rng.normal(size=(7, 3)), np.arange(5, dtype="<i4")
    return Snapshot.of(step, 0.4, 0.1, u=u, k=k, lift=0.5, inflow=1.0)


def joint(how: str, members: list[Shifted], fields: tuple[FieldSpec, ...] = FIELDS) -> JointTask:
    shares = [Share(how, len(members), rank) for rank in range(len(members))]  # type: ignore[arg-type]
    return JointTask(members, shares, fields)


def test_regions_are_put_together() -> None:
    members = [Shifted(0.0), Shifted(10.0), Shifted(20.0)]
    state = state_at()
    forecast = joint("blocks", members).forecast(state, 2)
    assert forecast.arrays is not None
    rows = np.array([0.0, 0.0, 0.0, 10.0, 10.0, 20.0, 20.0])
    assert np.array_equal(forecast.arrays["u"], state["u"] + rows[:, None])
    assert np.array_equal(forecast.arrays["k"], state["k"] + [0, 0, 10, 10, 20])
    assert forecast.observables["lift"].tolist() == [10.0, 10.0] and forecast.version == 3
    seen = members[1].saw
    assert seen is not None and seen["u"].shape == (2, 3) and seen["k"].tolist() == [2, 3]
    assert float(seen["inflow"]) == 1.0 and float(seen["lift"]) == 0.5 and (seen.step, seen.dt) == (4, 0.1)


def test_whole_states_are_averaged() -> None:
    state = state_at()
    forecast = joint("steps", [Shifted(1.0), Shifted(3.0), Shifted(6.0)]).forecast(state, 3)
    assert forecast.arrays is not None
    assert np.allclose(forecast.arrays["u"], state["u"] + 10 / 3, rtol=1e-15)
    assert forecast.arrays["k"].tolist() == [3, 4, 5, 6, 7] and forecast.arrays["k"].dtype == np.dtype("<i4")


@given(st.lists(st.floats(0.01, 10.0), min_size=3, max_size=3), st.lists(st.floats(0.0, 5.0), min_size=3, max_size=3))
def test_the_error_of_the_whole_follows_from_those_of_the_regions(scales: list[float], errors: list[float]) -> None:
    spec = (FieldSpec("u", "<f8", (7, 3), "m/s"),)
    state = Snapshot.of(0, 0.0, 0.1, u=np.zeros((7, 3)))

    class Wrong(Shifted):
        def forecast(self, snapshot: Snapshot, horizon: int) -> Forecast:
            arrays = {"u": np.full(snapshot["u"].shape, self.by)}
            return Forecast(horizon, version=1, arrays=arrays, **self.told)  # type: ignore[arg-type]

    members = [Wrong(e * s, error=e, scales={"u": s}) for e, s in zip(errors, scales, strict=True)]
    forecast = joint("blocks", list(members), spec).forecast(state, 1)
    assert forecast.arrays is not None
    found = relative_error(spec, forecast.arrays, {"u": state["u"]}, forecast.scales)
    assert forecast.error == pytest.approx(found, rel=1e-9, abs=1e-12)


def test_the_most_careful_rank_decides() -> None:
    told = [{"dt": 0.2, "in_range": True}, {"dt": 0.1, "in_range": True}, {"dt": 0.3, "in_range": False}]
    forecast = joint("steps", [Shifted(1.0, **one) for one in told]).forecast(state_at(), 1)
    assert forecast.dt == 0.1 and not forecast.in_range


@pytest.mark.parametrize("how", ["steps", "blocks"])
def test_nothing_is_forecast_before_every_rank_has_a_model(how: str) -> None:
    forecast = joint(how, [Shifted(), Shifted(version=0)]).forecast(state_at(), 2)
    assert forecast.version == 0 and forecast.error == math.inf and forecast.arrays is None


@pytest.mark.parametrize("how", ["steps", "blocks"])
@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_an_estimate_that_is_no_number_stays_none(how: str, error: float) -> None:
    forecast = joint(how, [Shifted(), Shifted(error=error)]).forecast(state_at(), 2)
    assert not math.isfinite(forecast.error)


def test_an_answer_of_the_wrong_form_names_its_rank() -> None:
    wrong = Shifted(arrays={"u": np.zeros((1, 3)), "k": np.zeros(2, "<i4")})  # would be spread over its region
    with pytest.raises(PluginError, match=r"rank 1: .*'u' as <f8 of shape \(1, 3\)"):
        joint("blocks", [Shifted(), wrong]).forecast(state_at(), 1)


def test_more_ranks_than_a_field_has_parts() -> None:
    with pytest.raises(ValueError, match=r"6 ranks cannot share field 'k' of shape \(5,\) by blocks.*fewer ranks"):
        joint("blocks", [Shifted() for _ in range(6)])
    assert joint("steps", [Shifted() for _ in range(6)]).owns == {"arrays"}


# ------------------------------------------------------------------------------------------------------------ reports


def told(rank: int, version: int = 1, horizons: tuple[int, ...] = (1, 2), **more: object) -> Trained:
    tests = tuple((h, 0.1, 0.01 * (rank + 1)) for h in horizons)
    news = {"kind": "affine", "trained_on": 10 * (rank + 1), "last_step": 50 + rank, "calibrated": True, **more}
    return Trained("flow", version=version, backtests=tests, rank=rank, **news)  # type: ignore[arg-type]


def reports(how: str, ranks: int = 2) -> Reports:
    return Reports([Share(how, ranks, rank) for rank in range(ranks)])  # type: ignore[arg-type]


def test_one_rank_reports_for_itself() -> None:
    assert reports("steps", 1).joined(told(0, version=0)) == told(0, version=0)


@pytest.mark.parametrize(("how", "trained_on"), [("steps", 30), ("blocks", 10)])
def test_reports_are_joined_when_every_rank_has_a_model(how: str, trained_on: int) -> None:
    both = reports(how)
    assert both.joined(told(0)) is None and both.joined(told(1, version=0)) is None
    found = both.joined(told(1, version=4, horizons=(1, 5), kind="network"))
    assert found is not None
    assert (found.version, found.kind, found.trained_on, found.last_step) == (5, "affine, network", trained_on, 51)
    assert found.backtests == ((1, 0.1, 0.01), (1, 0.1, 0.02))  # only at horizons that both have


def test_a_rank_whose_dynamics_changed_takes_the_calibration_away() -> None:
    both = reports("steps")
    both.joined(told(0))
    both.joined(told(1))
    beat = both.joined(told(0, horizons=(), calibrated=False))
    assert beat is not None and len(beat.backtests) == 4  # no news of back-tests: the old ones hold
    changed = both.joined(told(0, horizons=()))
    assert changed is not None and changed.backtests == () and changed.calibrated
