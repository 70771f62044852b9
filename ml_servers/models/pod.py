"""Reduced coordinates of large states: proper orthogonal decomposition by the method of snapshots, kept up online.

The inner products of all stored states (their Gram matrix) are all that a decomposition of any part of the window
needs (L. Sirovich, Q. Appl. Math. 45, 561, 1987). So each new state costs one product with the stored ones, and trying
windows and ranks costs nothing that grows with the size of the state. Only the modes of the model that is chosen are
built in full. Inner products of very large states are sums over a stratified sample of their values (`probes`), so that
a state costs the same however large it is; the modes are orthonormal in that product, which makes coordinates and
rebuilt states consistent, and norms agree with those over all values to a few per cent. All loops over large arrays go
chunk by chunk: products in float32, sums over chunks in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from schemas.fields import Array

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Indices = NDArray[np.int64]

_CHUNK = 8192
_PROBED = 65536
"""Values of a field that inner products are summed over."""
_PIECE = 1024
_TRUSTED = 1e-7
"""Smallest share of the largest eigenvalue of a Gram matrix of float32 products that still has correct digits."""
_STILL = 1e-14
"""A field whose mean square fluctuation is below this share of its mean square counts as constant."""


def field_slices(sizes: tuple[int, ...]) -> tuple[slice, ...]:
    """The columns of each field in a flat state."""
    edges = np.cumsum((0, *sizes)).tolist()
    return tuple(slice(a, b) for a, b in pairwise(edges))


def chunks(columns: slice) -> Iterator[slice]:
    """Pieces of a range of columns, small enough that a few rows of them stay in cache."""
    for start in range(columns.start, columns.stop, _CHUNK):
        yield slice(start, min(start + _CHUNK, columns.stop))


def probes(columns: slice) -> tuple[tuple[slice, ...], float]:
    """The pieces of a field that inner products are summed over, and what one of their values stands for.

    A field of at most `_PROBED` values is taken whole. Of a larger one, equal parts give one contiguous piece each, at
    a place that a fixed seed draws (stratified sampling), so that no regular pattern of the state is missed.
    """
    width = columns.stop - columns.start
    if width <= _PROBED:
        return tuple(chunks(columns)), 1.0
    count = _PROBED // _PIECE
    edges = np.linspace(columns.start, columns.stop, count + 1).astype(int)
    places = np.random.default_rng(width).random(count)
    starts = (edges[:-1] + places * (np.diff(edges) - _PIECE)).astype(int).tolist()
    return tuple(slice(start, start + _PIECE) for start in starts), width / (count * _PIECE)


class Gram:
    """Inner products of stored states, one matrix per field."""

    def __init__(self, sizes: tuple[int, ...], capacity: int) -> None:
        """Args: sizes: Values per field. capacity: Stored states at most."""
        self._fields = field_slices(sizes)
        self._products = np.zeros((len(sizes), capacity, capacity))

    def update(self, rows: Floats32, new: Indices) -> None:
        """Computes the products of some rows with all rows.

        Args:
            rows: All rows in use, shape (n, width); rows that hold nothing yet may hold anything.
            new: Numbers of the rows that changed.
        """
        for products, columns in zip(self._products, self._fields, strict=True):
            total = np.zeros((len(rows), len(new)))
            parts, weight = probes(columns)
            for part in parts:
                total += rows[:, part] @ rows[new, part].T
            total *= weight
            products[: len(rows), new] = total
            products[new, : len(rows)] = total.T

    def of(self, rows: Indices) -> Floats:
        """The products among some rows, shape (fields, n, n)."""
        return self._products[:, rows[:, None], rows[None, :]]


@dataclass(frozen=True, slots=True)
class Decomposition:
    """The modes of a training set, in terms of its states.

    A state is taken relative to the mean of the training set, each field in units of its rms fluctuation there, over
    the root of the number of values. So the norm of a difference of states is `coupler.norms.relative_error`, and the
    mean squared norm of the training states is 1.

    Attributes:
        weights: Mode j is the sum over training states t of weights[j, t] times the state, shape (r, n_train).
        scales: Root of the mean squared norm of each field's fluctuation, shape (fields,).
        latents: Coordinates of all states, training or not, shape (n, r).
        outside: Squared norm of what the modes leave out of each, shape (n,).
    """

    weights: Floats
    scales: Floats
    latents: Floats
    outside: Floats

    def truncated(self, rank: int) -> Decomposition:
        """The same with at most `rank` modes."""
        left_out = (self.latents[:, rank:] ** 2).sum(axis=1)
        return Decomposition(self.weights[:rank], self.scales, self.latents[:, :rank], self.outside + left_out)


def field_scales(fluctuation: Floats, size: Floats) -> Floats:
    """Roots of mean squared norms. A constant field gets 1, lest its first change be infinitely large.

    Args:
        fluctuation: Mean squared norm of each field about its mean, shape (fields,).
        size: Mean squared norm of each field, shape (fields,).
    """
    return np.sqrt(np.where(fluctuation <= _STILL * size, 1.0, fluctuation))


def scale_factors(sizes: tuple[int, ...], scales: Floats) -> Floats:
    """What one unit of a scaled state is in each field: rms fluctuation times root of the number of all values."""
    factors: Floats = scales * np.sqrt(sum(sizes) / np.array(sizes))
    return factors


def decompose(sizes: tuple[int, ...], products: Floats, train: slice, rank: int) -> Decomposition:
    """Decomposes the training states and gives the coordinates of all of them.

    Args:
        sizes: Values per field.
        products: Inner products of n states by field, shape (fields, n, n).
        train: The states that define mean, scales and modes.
        rank: Modes at most; fewer where float32 products cannot tell a mode from rounding.
    """
    to_mean = products[:, :, train].mean(axis=2)
    mean_mean = to_mean[:, train].mean(axis=1)[:, None, None]
    centred = products - to_mean[:, :, None] - to_mean[:, None, :] + mean_mean
    fluctuation = np.diagonal(centred[:, train, train], axis1=1, axis2=2).mean(axis=1)
    size = np.diagonal(products[:, train, train], axis1=1, axis2=2).mean(axis=1)
    scales = field_scales(fluctuation, size)
    gram = np.einsum("fij,f->ij", centred, scale_factors(sizes, scales) ** -2)
    values, vectors = np.linalg.eigh(gram[train, train])
    values, vectors = values[::-1], vectors[:, ::-1]
    rank = max(1, min(rank, int(np.count_nonzero(values > _TRUSTED * values[0]))))
    weights = (vectors[:, :rank] / np.sqrt(np.maximum(values[:rank], 1e-30))).T
    latents = gram[:, train] @ weights.T
    outside = np.maximum(np.diagonal(gram) - (latents**2).sum(axis=1), 0.0)
    return Decomposition(weights, scales, latents, outside)


@dataclass(frozen=True, slots=True)
class Reduction:
    """The map between a flat state and its latent coordinates.

    Attributes:
        sizes: Values per field.
        mean: Mean state, shape (width,), float64, in the units of the fields.
        scales: See `Decomposition`, shape (fields,).
        modes: Orthonormal modes of scaled states, shape (r, width), float32; None when the scaled states themselves
            are the coordinates (small states).
    """

    sizes: tuple[int, ...]
    mean: Floats
    scales: Floats
    modes: Floats32 | None

    @property
    def rank(self) -> int:
        """Number of coordinates."""
        return len(self.mean) if self.modes is None else len(self.modes)

    @property
    def factors(self) -> Floats:
        """What one unit of a scaled state is in each field, shape (fields,)."""
        return scale_factors(self.sizes, self.scales)

    def encode(self, fields: Sequence[Array]) -> tuple[Floats, float]:
        """Coordinates of one state.

        Args:
            fields: One array for each field, shape (size,), of any real type; read chunk by chunk, never copied whole.

        Returns:
            Latent, shape (rank,), and the squared norm of what it leaves out.
        """
        latent, norm = np.zeros(self.rank), 0.0
        for values, columns, factor in zip(fields, field_slices(self.sizes), self.factors, strict=True):
            if self.modes is None:
                latent[columns] = np.subtract(values, self.mean[columns]) / factor
                continue
            parts, weight = probes(columns)
            for part in parts:
                here = slice(part.start - columns.start, part.stop - columns.start)
                scaled = (np.subtract(values[here], self.mean[part]) / factor).astype(np.float32)
                latent += weight * (self.modes[:, part] @ scaled)
                norm += weight * float(scaled @ scaled)
        return latent, max(norm - float(latent @ latent), 0.0) if self.modes is not None else 0.0

    def encode_rows(self, rows: Floats32, index: Indices, origin: Floats) -> tuple[Floats, Floats]:
        """Coordinates of stored states.

        Args:
            rows: All rows, shape (capacity, width), relative to `origin`.
            index: The rows wanted, shape (n,).
            origin: Shape (width,).

        Returns:
            Latents, shape (n, rank), and the squared norms of what they leave out, shape (n,).
        """
        latents, norms = np.zeros((len(index), self.rank)), np.zeros(len(index))
        for columns, factor in zip(field_slices(self.sizes), self.factors, strict=True):
            if self.modes is None:
                latents[:, columns] = (rows[index, columns] - (self.mean[columns] - origin[columns])) / factor
                continue
            parts, weight = probes(columns)
            for part in parts:
                scaled = rows[index, part]
                scaled -= (self.mean[part] - origin[part]).astype(np.float32)
                scaled *= np.float32(1 / factor)
                latents += weight * (scaled @ self.modes[:, part].T)
                norms += weight * np.einsum("ij,ij->i", scaled, scaled)
        outside = norms - (latents**2).sum(axis=1) if self.modes is not None else norms
        return latents, np.maximum(outside, 0.0)

    def decode(self, latent: Floats) -> Floats:
        """The state at one point of the latent space, shape (rank,) to shape (width,), float64."""
        if self.modes is None:
            return self.mean + latent * np.repeat(self.factors, self.sizes)
        state = np.empty_like(self.mean)
        for columns, factor in zip(field_slices(self.sizes), self.factors, strict=True):
            coordinates = (latent * factor).astype(np.float32)
            for part in chunks(columns):
                np.add(self.mean[part], coordinates @ self.modes[:, part], out=state[part])
        return state


def whole(sizes: tuple[int, ...], rows: Floats32, origin: Floats) -> Reduction:
    """The reduction of small states: coordinates are the scaled values themselves.

    Args:
        sizes: Values per field.
        rows: Training states, shape (n, width), relative to `origin`.
        origin: Shape (width,).
    """
    states = rows.astype(np.float64)
    mean = states.mean(axis=0)
    fluctuation = ((states - mean) ** 2).mean(axis=0)
    size = ((states + origin) ** 2).mean(axis=0)
    fields = field_slices(sizes)
    scales = field_scales(np.array([fluctuation[f].sum() for f in fields]), np.array([size[f].sum() for f in fields]))
    return Reduction(sizes, mean + origin, scales, None)


def principal(full: Reduction, rows: Floats32, origin: Floats) -> tuple[Floats, Floats32]:
    """The modes of states that are small enough for a covariance of their values.

    Args:
        full: Their coordinates in full, as `whole` gives them.
        rows: Training states, shape (n, width), relative to `origin`.
        origin: Shape (width,).

    Returns:
        What the first 0, 1, ... modes leave out, as a share of the rms fluctuation, shape (width + 1,), and the modes,
        shape (width, width).
    """
    states = (rows + (origin - full.mean)) / np.repeat(full.factors, full.sizes)
    values, vectors = np.linalg.eigh(states.T @ states / len(states))
    left_out = np.sqrt(np.append(np.cumsum(np.maximum(values, 0.0))[::-1], 0.0))
    return left_out, np.ascontiguousarray(vectors[:, ::-1].T, np.float32)


def build(sizes: tuple[int, ...], rows: Floats32, train: Indices, found: Decomposition, origin: Floats) -> Reduction:
    """The reduction of large states: builds the modes of a decomposition in full, orthonormal to float32 accuracy.

    Args:
        sizes: Values per field.
        rows: All rows, shape (n, width), relative to `origin`.
        train: The rows that were decomposed, in the same order.
        found: The decomposition.
        origin: Shape (width,).
    """
    rank, width = len(found.weights), rows.shape[1]
    modes, mean, overlap = np.empty((rank, width), np.float32), np.empty(width), np.zeros((rank, rank))
    factors = scale_factors(sizes, found.scales)
    for columns, factor in zip(field_slices(sizes), factors, strict=True):
        weights = (found.weights / factor).astype(np.float32)
        for part in chunks(columns):
            states = rows[train, part]
            centre = states.mean(axis=0, dtype=np.float64)
            mean[part] = centre + origin[part]
            modes[:, part] = weights @ (states - centre).astype(np.float32)
        parts, weight = probes(columns)
        for part in parts:
            overlap += weight * (modes[:, part] @ modes[:, part].T)
    # Weak modes carry the rounding of the Gram matrix. The nearest orthonormal ones take their place.
    values, vectors = np.linalg.eigh(overlap)
    nearest = ((vectors / np.sqrt(np.maximum(values, 0.01))) @ vectors.T).astype(np.float32)
    for part in chunks(slice(0, width)):
        modes[:, part] = nearest @ modes[:, part]
    return Reduction(sizes, mean, found.scales, modes)
