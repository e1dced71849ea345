"""The logits of a classification to a label with its probabilities. Pure; codec.py encodes the texts.

Legend: L labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gateway.catalog.schema import Decoding
from gateway.domain import Classification, Floats, LabelScore


def decode(logits: Floats, labels: Sequence[str], how: Decoding) -> Classification:  # (L,)
    """Return the most probable label; of equal ones the first."""
    shares = probabilities(logits, how)
    order = np.argsort(-shares, kind="stable").tolist()
    scores = tuple(LabelScore(labels[i], float(shares[i])) for i in order)
    return Classification(scores[0].label, scores[0].probability, scores)


def probabilities(logits: Floats, how: Decoding) -> npt.NDArray[np.float64]:  # (..., L)
    """Return the calibrated probability of every label.

    Source: Guo et al. 2017, section 4.2 (temperature scaling).
    """
    assert how.temperature is not None, "the catalog's rules hold it"
    scaled = logits.astype(np.float64) / how.temperature
    mass = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    shares: npt.NDArray[np.float64] = mass / mass.sum(axis=-1, keepdims=True)
    return shares
