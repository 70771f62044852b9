"""Network ensembles: the NumPy evaluation is the torch one, and training improves on the affine map."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ml_servers.models import affine, networks
from ml_servers.models.networks import Ensemble, Training

Floats = NDArray[np.float64]
RUNS = [(0, 60), (60, 120)]


@pytest.fixture(scope="module")
def data() -> tuple[Floats, Floats]:
    """The map x' = tanh(-2 x) + 0.5 u, y' = x, in two runs."""
    rng = np.random.default_rng(0)
    states, controls = rng.uniform(-1.5, 1.5, (120, 2)), rng.uniform(-1, 1, (120, 1))
    for start, stop in RUNS:
        for k in range(start, stop - 1):
            x = states[k, 0]
            states[k + 1] = (np.tanh(-2 * x) + 0.5 * controls[k, 0], x)
    return states, controls


def start(data: tuple[Floats, Floats]) -> Ensemble:
    base = affine.fit(*data, RUNS)
    return networks.untrained(base, *data, RUNS, members=3, hidden=16, seed=1)


def test_untrained_networks_are_the_affine_map(data: tuple[Floats, Floats]) -> None:
    ensemble = start(data)
    for (both, spread), (alone, _) in zip(
        ensemble.course(data[0][:5], data[1][:5], 4), ensemble.base.course(data[0][:5], data[1][:5], 4), strict=True
    ):
        assert both == pytest.approx(alone)
        assert spread == pytest.approx(np.zeros(5), abs=1e-12)


def test_training_improves_and_numpy_evaluates_what_torch_trained(data: tuple[Floats, Floats]) -> None:
    import torch

    threads = torch.get_num_threads()
    training = Training(start(data), *data, RUNS, updates=300, seed=2, rollout=3, batch=32, rate=1e-2)
    first = training.run(10)
    while not training.finished:
        last = training.run(20)
    assert last < 0.5 * first
    assert torch.get_num_threads() == threads
    ensemble = training.ensemble()
    states = np.random.default_rng(5).standard_normal((3, 7, 2))
    imposed = np.random.default_rng(6).standard_normal((7, 1))
    with torch.no_grad():
        there = training.step(torch.from_numpy(states), torch.from_numpy(np.broadcast_to(imposed, (3, 7, 1)).copy()))
    assert ensemble.step(states, imposed) == pytest.approx(there.numpy(), abs=1e-12)
    assert Ensemble.of(ensemble.arrays()).step(states, imposed) == pytest.approx(there.numpy(), abs=1e-12)
    *_, (_, spread) = ensemble.course(data[0][:5], data[1][:5], 3)
    assert np.all(spread > 0)


def test_the_same_seed_gives_the_same_networks(data: tuple[Floats, Floats]) -> None:
    twice = [Training(start(data), *data, RUNS, updates=5, seed=3) for _ in range(2)]
    for training in twice:
        training.run(5)
    a, b = (training.ensemble().weights for training in twice)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_training_without_any_transition_is_refused(data: tuple[Floats, Floats]) -> None:
    with pytest.raises(ValueError, match="two consecutive states"):
        Training(start(data), *data, [(0, 1), (5, 6)], updates=5, seed=0)
