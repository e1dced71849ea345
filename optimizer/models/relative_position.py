"""Relative positions in buckets: near distances exactly, far ones by powers of two.

The rule of MPNet, and of T5's encoder. It knows neither PyTorch nor ONNX.
Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 2.1; Song et al.
2020 (MPNet), whose transformers implementation fixes both constants.
"""

from __future__ import annotations

import math

import numpy as np

from gateway.domain import Ints

BUCKETS = 32  # half of them for keys before the query, half for those after it
FARTHEST = 128  # from here on all distances share a bucket


def buckets(distance: Ints) -> Ints:
    """Return the bucket of each distance, which is the key's position less the query's.

    In float32 as transformers computes it, so that distances on a border fall on the same side.
    """
    half, far = BUCKETS // 2, np.abs(distance)
    exact = half // 2
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / exact)
    ratio = ratio / np.float32(math.log(FARTHEST / exact)) * np.float32(half - exact)
    apart = exact + ratio.astype(np.int64)
    bucket = np.where(far < exact, far, np.minimum(apart, half - 1))
    found: Ints = bucket + np.where(distance > 0, half, 0)
    return found


def buckets_to(n_positions: int) -> Ints:  # -> (2 * n_positions - 1,)
    """Return the buckets of all distances in so many positions, the most negative first."""
    return buckets(np.arange(1 - n_positions, n_positions))
