"""The Duffing oscillator against its exact solution, and what makes it a test case for learned dynamics."""

from __future__ import annotations

import math
import subprocess
import sys
import typing
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ellipj, ellipk

from coupler.errors import SimulationFailed
from coupler.ranks import Ranks
from coupler.testing.simulation_check import check_simulation
from schemas.fields import Snapshot, copied, misfit
from sim_clients.double_well import DoubleWell
from sim_clients.oscillator import Oscillator

DT = 0.1


class Part(Ranks):
    """One of several ranks, alone: its sums are its own share."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def make(**changes):
    settings = {"ranks": Ranks(), "seed": 3, "k": 1.0, "beta": 1.0, "amplitude": (0.5, 1.5), "dt": DT}
    return Oscillator(**{**settings, **changes})


def exact(k, beta, amplitude, t):
    """x = A cn(w t | m) with w^2 = k + beta A^2, m = beta A^2 / (2 w^2) (Kovacic and Brennan 2011, section 2.3)."""
    w = math.sqrt(k + beta * amplitude**2)
    m = beta * amplitude**2 / (2 * w**2)
    sn, cn, dn, _ = ellipj(w * t, m)
    return amplitude * cn, -amplitude * w * sn * dn, 4 * ellipk(m) / w


@pytest.mark.parametrize(
    "changes", [{}, {"n": 4}, {"episode_steps": 4}, {"episode_steps": 3, "n": 2}, {"episode_steps": 1}]
)
def test_keeps_the_contract(changes):
    report = check_simulation(lambda: make(**changes), other_dt=0.5 * DT)
    assert report.defect == 0.0
    # With a restart after each step nothing moves but the amplitude.
    assert report.unmoved == (("velocity",) if changes.get("episode_steps") == 1 else ())


@settings(max_examples=20, deadline=None)
@given(k=st.floats(0.2, 4.0), beta=st.floats(0.0, 4.0), amplitude=st.floats(0.2, 2.0))
def test_follows_the_elliptic_solution_and_its_period(k, beta, amplitude):
    x, v, period = exact(k, beta, amplitude, 12 * DT)
    one = make(k=k, beta=beta, amplitude=(amplitude, amplitude), substeps=100)
    one.integrate(DT, 12)
    assert one.snapshot()["position"][0] == pytest.approx(x, abs=1e-4 * amplitude)
    assert one.snapshot()["velocity"][0] == pytest.approx(v, abs=1e-3 * amplitude)
    whole = make(k=k, beta=beta, amplitude=(amplitude, amplitude), substeps=100)
    whole.integrate(period / 10, 10)
    assert whole.snapshot()["position"][0] == pytest.approx(amplitude, abs=1e-4 * amplitude)
    assert whole.snapshot()["velocity"][0] == pytest.approx(0.0, abs=2e-2 * amplitude)


def test_errors_of_state_and_energy_fall_with_the_square_of_the_step():
    states, energies = [], []
    for substeps in (8, 16, 32):
        one = make(amplitude=(1.2, 1.2), substeps=substeps)
        start = one.snapshot()["energy"].item()
        one.integrate(DT, 50)
        states.append(abs(one.snapshot()["position"][0] - exact(1.0, 1.0, 1.2, 50 * DT)[0]))
        energies.append(abs(one.snapshot()["energy"].item() - start))
    for errors in (states, energies):
        assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)
        assert errors[1] / errors[2] == pytest.approx(4.0, rel=0.05)


def test_energy_swings_but_does_not_drift():
    one = make(n=3)
    energies = []
    for _ in range(2000):  # about 40 periods
        one.integrate(DT, 1)
        energies.append(one.snapshot()["energy"].item())
    early, late = np.array(energies[:500]), np.array(energies[-500:])
    assert np.ptp(energies) < 1e-4 * np.mean(energies)
    assert abs(early.mean() - late.mean()) < 0.05 * np.ptp(energies)


def test_dt_may_change_from_step_to_step():
    one = make(amplitude=(1.2, 1.2), substeps=100)
    for dt in (0.1, 0.3, 0.05):
        one.integrate(dt, 2)
        now = one.snapshot()
        assert now.dt == dt
        assert now["position"][0] == pytest.approx(exact(1.0, 1.0, 1.2, now.time)[0], abs=1e-4)
    assert now.time == pytest.approx(0.9)


def test_motion_is_reversible():
    one = make(n=3)
    start = copied(one.snapshot())
    one.integrate(DT, 100)
    now = one.snapshot()
    one.adopt(Snapshot.of(now.step, now.time, now.dt, position=now["position"], velocity=-now["velocity"]))
    one.integrate(DT, 100)
    np.testing.assert_allclose(one.snapshot()["position"], start["position"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(one.snapshot()["velocity"], start["velocity"], rtol=0, atol=1e-12)


def test_amplitudes_come_from_the_seed_and_stay_in_range():
    drawn = make(n=1000).snapshot()["position"]
    assert (drawn >= 0.5).all() and (drawn <= 1.5).all() and np.ptp(drawn) > 0.9
    np.testing.assert_array_equal(make(n=1000).snapshot()["position"], drawn)
    assert (make(n=1000, seed=4).snapshot()["position"] != drawn).all()


@pytest.mark.parametrize("n", [1, 2, 7])
def test_ranks_share_the_springs_without_changing_them(n):
    alone = make(n=n, episode_steps=5)
    parts = [make(n=n, episode_steps=5, ranks=Part(rank, 3)) for rank in range(3)]
    for one in (alone, *parts):
        one.integrate(DT, 12)
    blocks = [part.snapshot().blocks["position"] for part in parts]
    np.testing.assert_array_equal(np.concatenate([block.array for block in blocks]), alone.snapshot()["position"])
    assert [block.offset[0] for block in blocks] == list(np.cumsum([0, *(block.array.size for block in blocks)])[:-1])
    assert blocks[0].array.size == max(block.array.size for block in blocks)
    for part in parts:
        assert not any(misfit(spec, part.snapshot().blocks[spec.name]) for spec in part.fields())


def test_an_episode_starts_anew_and_is_declared_ahead():
    one = make(episode_steps=4)
    amplitudes = []
    for step in range(13):
        now = one.snapshot()
        episode, done = divmod(step, 4)
        assert now["episode"] == episode % 2
        if done == 0:
            amplitudes.append(now["position"].item())
            assert now["velocity"] == 0
        # A horizon that does not pass controls_until ends before the restart, whatever the rounding.
        assert math.floor((now.controls_until - now.time) / now.dt) == 3 - done
        one.integrate(DT, 1)
    assert len(set(amplitudes)) == 4
    assert make().snapshot().controls_until == math.inf


def test_the_energy_invariant_leaves_out_what_restarts_put_in():
    one = make(episode_steps=4, substeps=100)
    start, energies = one.invariants()["energy"].value, set()
    for _ in range(5):
        one.integrate(DT, 4)
        energies.add(round(one.snapshot()["energy"].item(), 3))
        assert one.invariants()["energy"].value == pytest.approx(start, rel=1e-4)
    assert len(energies) == 5


def test_an_affine_map_cannot_serve_several_amplitudes_but_a_cubic_can():
    many = make(n=20)
    path = []
    for _ in range(200):
        now = many.snapshot()
        path.append(np.stack([now["position"], now["velocity"]]))
        many.integrate(DT, 1)
    data = np.array(path)  # (time, 2, spring)

    def closed_loop_error(features):
        x = np.concatenate([features(state) for state in data[:-1, :, :10]], axis=1)
        y = np.concatenate(list(data[1:, :, :10]), axis=1)
        weights = np.linalg.lstsq(x.T, y.T, rcond=None)[0].T
        state, off = data[0, :, 10:], []  # other springs than those trained on
        for truth in data[1:, :, 10:]:
            state = weights @ features(state)
            off.append(state - truth)
        return np.sqrt(np.mean(np.square(off)) / np.mean(np.square(data)))

    def affine(s):
        return np.stack([np.ones_like(s[0]), s[0], s[1]])

    def cubic(s):
        return np.stack([s[0] ** i * s[1] ** j for i in range(4) for j in range(4 - i)])

    assert closed_loop_error(affine) > 0.5
    assert closed_loop_error(cubic) < 0.1


def test_a_step_too_large_fails_with_a_cause_and_without_warnings():
    with pytest.raises(SimulationFailed, match="finite"):
        make(substeps=1).integrate(20.0, 50)
    with pytest.raises(SimulationFailed, match="finite"):
        make(substeps=50).integrate(1000.0, 1)


@pytest.mark.parametrize(
    "changes", [{"amplitude": (2.0, 1.0)}, {"amplitude": (math.nan, 1.0)}, {"dt": 0.0}, {"dt": math.inf}]
)
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError, match="is "):
        make(**changes)


def test_calls_that_make_no_sense_are_refused():
    one = make()
    with pytest.raises(ValueError, match="dt"):
        one.integrate(-DT, 1)
    with pytest.raises(ValueError, match="position"):
        one.adopt(Snapshot.of(1, DT, DT, position=np.ones(2), velocity=np.ones(1)))
    with pytest.raises(SimulationFailed):
        one.adopt(Snapshot.of(1, DT, DT, position=[math.nan], velocity=np.ones(1)))
    with pytest.raises(TypeError, match="token"):
        one.restore("nothing")


def test_the_case_file_can_name_every_setting():
    hints = typing.get_type_hints(Oscillator.__init__, include_extras=True)
    assert msgspec.convert([0.5, 1], hints["amplitude"]) == (0.5, 1.0)
    for name, wrong in (
        ("k", 0.0),
        ("beta", -1.0),
        ("amplitude", [0.0, 1.0]),
        ("dt", 0),
        ("n", 0),
        ("episode_steps", -1),
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, hints[name])


MPI = """
import numpy as np
from coupler.ranks import MpiRanks
from coupler.testing.simulation_check import check_simulation
from sim_clients.double_well import DoubleWell
from sim_clients.oscillator import Oscillator
ranks = MpiRanks()
duffing = dict(seed=3, k=1.0, beta=1.0, amplitude=(0.5, 1.5), dt=0.1, episode_steps=4)
well = dict(seed=3, start=(-2.0, 2.0), dt=0.1, temperature=0.1, friction=1.0)
for n in (1, 5):
    check_simulation(lambda: Oscillator(ranks=ranks, n=n, **duffing), ranks=ranks)
    check_simulation(lambda: DoubleWell(ranks=ranks, n=n, **well), ranks=ranks)
one = Oscillator(ranks=ranks, n=5, **duffing)
one.integrate(0.1, 6)
two = DoubleWell(ranks=ranks, n=5, **well)
whole = ranks.gather([(s["position"].tolist(), float(s["energy"])) for s in (one.snapshot(), two.snapshot())])
for k in range(2) if ranks.rank == 0 else ():
    print([x.hex() for part in whole for x in part[k][0]], *{f"{part[k][1]:.12g}" for part in whole})
"""


@pytest.mark.mpi
def test_three_mpi_ranks_hold_what_one_does():
    mpiexec = Path(sys.executable).parent / "mpiexec"
    command = [str(mpiexec), "-n", "3", sys.executable, "-m", "mpi4py", "-c", MPI]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    oscillator = make(n=5, episode_steps=4)
    oscillator.integrate(DT, 6)
    well = DoubleWell(ranks=Ranks(), seed=3, start=(-2.0, 2.0), dt=DT, n=5)
    alone = [one.snapshot() for one in (oscillator, well)]
    lines = [f"{[x.hex() for x in one['position'].tolist()]} {one['energy']:.12g}" for one in alone]
    assert done.stdout.splitlines() == lines
