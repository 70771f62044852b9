"""VortexStreet as a Simulation: the contract, bitwise continuation, the gust, the mass balance, wrong settings."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupler.contracts import Viewable
from coupler.errors import SchemaMismatch, SimulationFailed
from coupler.ranks import Ranks
from coupler.registry import construct
from coupler.testing.simulation_check import check_simulation, difference
from schemas.fields import Block, Snapshot, copied
from sim_clients.vortex_street import VortexStreet, geometry
from sim_clients.vortex_street.settings import Flow

SMALL = {
    "nx": 67,
    "ny": 33,
    "diameter": 6,
    "center": (17.3, 16.2),
    "reynolds": 40.0,
    "inflow_speed": 0.1,
    "substeps": 10,
    "lateral": "periodic",
    "sponge_length": 16,
}


def make(seed=1, **changes):
    return VortexStreet(ranks=Ranks(), seed=seed, **{**SMALL, **changes})


@pytest.mark.parametrize("changes", [{}, {"precision": "single", "lateral": "free_slip"}, {"announce": False}])
def test_keeps_the_contract(changes):
    report = check_simulation(lambda: make(gust_time=35.0, **changes), other_dt=7.0)
    assert report.defect == 0.0
    assert report.unmoved == ()


def test_is_made_from_a_run_file():
    simulation = construct(VortexStreet, {**SMALL, "center": [17.3, 16.2]}, ranks=Ranks(), seed=1)
    assert difference(simulation.snapshot(), make().snapshot()) is None
    assert isinstance(simulation, Viewable)


def test_block_is_one_contiguous_view():
    simulation = make()
    for _ in range(2):
        array = simulation.snapshot()["populations"]
        assert array.flags.c_contiguous
        assert np.shares_memory(array, simulation.snapshot()["populations"])
        simulation.integrate(3.0, 1)  # an odd number of lattice steps ends in the other buffer


def test_seeds_differ_and_lift_grows_from_the_start():
    one, two = make(seed=1), make(seed=2)
    assert difference(one.snapshot(), make(seed=1).snapshot()) is None
    assert not np.array_equal(one.snapshot()["populations"], two.snapshot()["populations"])
    one.integrate(10.0, 30)
    assert abs(one.snapshot()["lift"]) > 1e-3
    assert 1 < one.snapshot()["drag"] < 4


def test_lift_and_drag_follow_from_an_adopted_state():
    simulation, other = make(), make(seed=5)
    simulation.integrate(10.0, 7)
    other.adopt(simulation.snapshot())
    assert difference(other.snapshot(), simulation.snapshot()) is None


def test_restore_across_the_gust_repeats_bitwise():
    simulation = make(gust_time=45.0)
    simulation.integrate(10.0, 3)
    token = simulation.save()
    simulation.integrate(10.0, 4)
    first = copied(simulation.snapshot())
    simulation.restore(token)
    simulation.integrate(10.0, 4)
    assert difference(first, simulation.snapshot()) is None


def test_gust_begins_at_the_first_lattice_step_at_or_after_its_time():
    reference, late, early = make(), make(gust_time=14.0), make(gust_time=13.5)
    for simulation in (reference, late, early):
        simulation.integrate(14.0, 1)
    states = [s.snapshot()["populations"].copy() for s in (reference, late, early)]
    np.testing.assert_array_equal(states[0], states[1])
    np.testing.assert_array_equal(states[1], states[2])
    reference.integrate(1.0, 1)
    late.integrate(1.0, 1)
    early.integrate(1.0, 1)
    assert not np.array_equal(reference.snapshot()["populations"], late.snapshot()["populations"])
    np.testing.assert_array_equal(late.snapshot()["populations"], early.snapshot()["populations"])


def test_gust_may_begin_within_a_coupling_step():
    whole, parts = make(gust_time=14.0), make(gust_time=14.0)
    whole.integrate(20.0, 1)
    parts.integrate(14.0, 1)
    parts.integrate(6.0, 1)
    np.testing.assert_array_equal(whole.snapshot()["populations"], parts.snapshot()["populations"])


def test_announced_gust_is_a_control_with_the_time_of_its_change():
    simulation = make(gust_time=20.0, gust_factor=1.2)
    assert [(f.name, f.role, f.kind) for f in simulation.fields()][-1] == ("inflow_speed", "control", "scalar")
    seen = []
    for _ in range(3):
        snapshot = simulation.snapshot()
        seen.append((snapshot.time, float(snapshot["inflow_speed"]), snapshot.controls_until))
        simulation.integrate(10.0, 1)
    assert seen == [(0.0, 0.1, 20.0), (10.0, 0.1, 20.0), (20.0, 0.12, math.inf)]


def test_hidden_gust_changes_nothing_but_what_is_declared():
    told, hidden = make(gust_time=20.0), make(gust_time=20.0, announce=False)
    assert [f.name for f in hidden.fields()] == ["populations", "lift", "drag"]
    told.integrate(10.0, 4)
    hidden.integrate(10.0, 4)
    assert hidden.snapshot().controls_until == math.inf
    assert "inflow_speed" not in hidden.snapshot().blocks
    np.testing.assert_array_equal(told.snapshot()["populations"], hidden.snapshot()["populations"])


@given(gust=st.floats(0, 1e6), time=st.floats(0, 1e6))
def test_the_next_change_lies_ahead_and_changes_the_speed(gust, time):
    flow = Flow(400, 150, 16, (100, 75), 100, 0.1, gust, 1.15, True)
    change = flow.next_change(time)
    assert change > time
    assert flow.speed(time) == (flow.speed(change) if change == math.inf else 0.1)


@pytest.mark.parametrize("lateral", ["free_slip", "periodic"])
def test_mass_balance(lateral):
    simulation = make(lateral=lateral, gust_time=100.0)
    before = simulation.invariants()["mass"].value
    simulation.integrate(10.0, 30)
    change = simulation.invariants()["mass"].value - before
    gained = simulation.mass_gained()
    through = 300 * SMALL["ny"] * SMALL["inflow_speed"]
    assert change == pytest.approx(sum(gained.values()), abs=1e-9)
    assert gained["inlet"] == pytest.approx(through, rel=0.25)
    assert abs(gained["wall"]) < 0.002 * through


def test_view_is_the_velocity():
    simulation = make()
    simulation.integrate(10.0, 10)
    block = simulation.view().blocks["velocity"]
    assert (block.array.dtype, block.array.shape, block.offset) == (np.float32, (2, 33, 67), (0, 0, 0))
    assert (block.array[:, 16, 17] == 0).all()
    np.testing.assert_allclose(block.array[0, :, 0], 0.1, rtol=0.05)
    np.testing.assert_allclose(block.array[:, :, -1].mean(axis=1), [0.1, 0.0], atol=0.005)


def test_single_precision_follows_double():
    one, two = make(), make(precision="single")
    one.integrate(10.0, 20)
    two.integrate(10.0, 20)
    assert two.fields()[0].dtype == "<f4"
    assert two.snapshot()["lift"] == pytest.approx(float(one.snapshot()["lift"]), abs=1e-4)


def test_a_flow_that_is_not_finite_fails_with_its_step():
    simulation = make()
    bad = copied(simulation.snapshot())
    bad["populations"][30, 4, 5] = np.nan
    simulation.adopt(dataclasses.replace(bad, step=12))
    with pytest.raises(SimulationFailed, match=r"coupling step 13 .*raise diameter"):
        simulation.integrate(10.0, 1)


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ({}, "no field 'populations'"),
        ({"populations": Block(np.zeros((67, 9, 33), "<f4"), (0, 0, 0))}, "came as <f4"),
        ({"populations": Block(np.zeros((60, 9, 33)), (7, 0, 0))}, "rank 0 holds columns 0 to 66"),
    ],
)
def test_adopt_refuses_what_is_not_its_block(blocks, words):
    simulation = make()
    with pytest.raises(SchemaMismatch, match=words):
        simulation.adopt(Snapshot(1, 10.0, 10.0, blocks))
    assert simulation.step == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inflow_speed": 0.16, "gust_time": 5.0}, "reaches 0.184 cells per lattice step, but at most 0.17"),
        ({"reynolds": 400.0}, r"relaxation time of 0.5045.*raise diameter"),
        ({"gust_time": -1.0}, "gust_time = -1 lies before the start"),
        ({"center": (46.5, 16.0)}, r"comes within 1.5 cells .*its sponge \(the last 16 columns\)"),
        ({"center": (17.0, 5.0)}, "comes within 2 cells of the boundary of the 67 x 33 domain"),
        ({"ny": 70, "lateral": "free_slip", "inflow_speed": 0.12, "center": (17.0, 35.0)}, "in tune with sound"),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(changes, words):
    with pytest.raises(ValueError, match=words):
        make(**changes)


@pytest.mark.parametrize("dt", [0.0, 0.5, -10.0, 10.25])
def test_dt_is_a_whole_number_of_lattice_steps(dt):
    with pytest.raises(ValueError, match="whole number of lattice steps"):
        make().integrate(dt, 1)


def test_restore_takes_only_its_own_tokens():
    with pytest.raises(TypeError, match="what save returned, not a dict"):
        make().restore({})


def test_too_many_ranks_are_refused():
    ranks = Ranks()
    ranks.size = 17
    with pytest.raises(ValueError, match=r"17 ranks would share 67 columns.*at most 16 ranks"):
        VortexStreet(ranks=ranks, seed=1, **SMALL)


@given(nx=st.integers(4, 500), size=st.integers(1, 40))
def test_slabs_cover_all_columns_in_order(nx, size):
    if nx // size < geometry.MIN_COLUMNS:
        return
    slabs = [geometry.slab(nx, rank, size) for rank in range(size)]
    columns = [column for first, count in slabs for column in range(first, first + count)]
    assert columns == list(range(nx))
    assert max(count for _, count in slabs) - min(count for _, count in slabs) <= 1
