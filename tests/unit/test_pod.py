"""Reduced coordinates: against a plain singular value decomposition, whole and in parts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from coupler.norms import relative_error
from ml_servers.models.pod import Gram, Reduction, build, decompose, whole
from schemas.fields import FieldSpec

SIZES = (300, 20_000, 100_000)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def states() -> NDArray[np.float64]:
    """60 states in a space of 5 directions plus 0.1 % noise; three fields of very different size; the first is huge."""
    width = sum(SIZES)
    states = np.cos(np.linspace(0, 40, 60))[:, None] * RNG.standard_normal(width) + RNG.standard_normal(width)
    for k in range(4):
        states += np.sin((k + 1) * np.linspace(0, 20, 60) + k)[:, None] * RNG.standard_normal(width) / (k + 1)
    states += 0.001 * RNG.standard_normal(states.shape)
    states[:, :300] *= 1e6
    return states


@pytest.fixture(scope="module")
def reduction(states: NDArray[np.float64]) -> Reduction:
    rows = (states - states[0]).astype(np.float32)
    gram = Gram(SIZES, 64)
    gram.update(rows, np.arange(0, 25))
    gram.update(rows, np.arange(25, 60))
    found = decompose(SIZES, gram.of(np.arange(60)), slice(0, 50), 5)
    return build(SIZES, rows, np.arange(50), found, states[0])


def parts(state: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    return np.split(state, np.cumsum(SIZES)[:-1])


def test_states_of_the_training_space_come_back(states: NDArray[np.float64], reduction: Reduction) -> None:
    fields = [FieldSpec(str(i), "<f8", (n,), "1") for i, n in enumerate(SIZES)]
    rms = reduction.scales / np.sqrt(SIZES)
    scales = {spec.name: float(s) for spec, s in zip(fields, rms, strict=True)}
    for state in states[[3, 30, 55]]:
        latent, outside = reduction.encode(parts(state))
        back = dict(zip(scales, parts(reduction.decode(latent)), strict=True))
        error = relative_error(fields, back, dict(zip(scales, parts(state), strict=True)), scales)
        assert error < 2e-3
        assert error == pytest.approx(np.sqrt(outside), rel=0.25)


def test_the_norm_of_a_difference_is_the_relative_error(states: NDArray[np.float64], reduction: Reduction) -> None:
    fields = [FieldSpec(str(i), "<f8", (n,), "1") for i, n in enumerate(SIZES)]
    scales = {s.name: float(np.sqrt(states[:50, c].var(axis=0).mean())) for s, c in zip(fields, columns(), strict=True)}
    a, b = (reduction.encode(parts(states[i]))[0] for i in (10, 17))
    true = relative_error(fields, *(dict(zip(scales, parts(states[i]), strict=True)) for i in (10, 17)), scales)
    assert np.linalg.norm(a - b) == pytest.approx(true, rel=0.1)


def columns() -> list[slice]:
    edges = np.cumsum((0, *SIZES)).tolist()
    return [slice(a, b) for a, b in pairwise(edges)]


def test_coordinates_found_from_products_are_those_of_the_modes(
    states: NDArray[np.float64], reduction: Reduction
) -> None:
    rows = (states - states[0]).astype(np.float32)
    gram = Gram(SIZES, 60)
    gram.update(rows, np.arange(60))
    found = decompose(SIZES, gram.of(np.arange(60)), slice(0, 50), 5)
    latents, _ = reduction.encode_rows(rows, np.arange(60), states[0])
    assert np.allclose(found.latents, latents, atol=2e-3)
    single = np.stack([reduction.encode(parts(state))[0] for state in states])
    assert np.allclose(single, latents, atol=1e-4)
    assert np.mean((found.latents[:50] ** 2).sum(axis=1) + found.outside[:50]) == pytest.approx(1.0, abs=1e-9)


def test_modes_span_what_a_singular_value_decomposition_finds() -> None:
    states = RNG.standard_normal((40, 7)) * [9, 5, 3, 1, 0.5, 0.2, 0.1] @ RNG.standard_normal((7, 900))
    rows = (states - states[0]).astype(np.float32)
    gram = Gram((900,), 40)
    gram.update(rows, np.arange(40))
    reduction = build(
        (900,), rows, np.arange(40), decompose((900,), gram.of(np.arange(40)), slice(0, 40), 4), states[0]
    )
    truth = np.linalg.svd(states - states.mean(axis=0), full_matrices=False)[2][:4]
    assert reduction.modes is not None
    assert np.linalg.svd(reduction.modes @ truth.T)[1] == pytest.approx(np.ones(4), abs=1e-4)
    assert reduction.modes @ reduction.modes.T == pytest.approx(np.eye(4), abs=1e-5)


def test_small_states_are_only_scaled_and_a_constant_field_does_no_harm() -> None:
    states = np.column_stack([RNG.standard_normal(50), np.full(50, 7.0)])
    reduction = whole((1, 1), (states - states[0]).astype(np.float32), states[0])
    latent, outside = reduction.encode([states[5, :1], states[5, 1:]])
    assert reduction.decode(latent) == pytest.approx(states[5]) and outside == 0
    assert reduction.scales == pytest.approx([states[:, 0].std(), 1.0])
