"""The seam to model servers: one Protocol, met by Triton, by several of them (pool.py), and in-process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from gateway.catalog.schema import Variant
from gateway.domain import Floats, Inference, LabelLogits, Logits, Trust, Windows
from gateway.errors import InvalidLogits

LARGEST_LOGIT = 1e6  # far beyond any model's, far below what decoding takes for "not here"
SPAN_OUTPUTS = ("start_logits", "end_logits")
LABEL_OUTPUTS = ("logits",)

# Looks at one variant on one server. Raises: BackendError, DeadlineExceeded: it cannot be served there.
Check = Callable[["Backend"], Awaitable[Trust]]


class Backend(Protocol):
    """Runs variants; raises only errors of gateway.errors."""

    name: str  # `triton` or `embedded`

    @property
    def engine(self) -> str:
        """The inference engine and its version, as profiles and certificates name it."""
        ...

    async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
        """Return the logits of windows that are padded to a bucket.

        Raises: DeadlineExceeded, BackendUnavailable, BackendError.
        """
        ...

    async def hashes(self) -> Mapping[str, str]:
        """Return the sha256 of every loaded model file, by `name/version`."""
        ...

    async def load(self, variant: Variant) -> None:
        """Make the variant's version ready; nothing to do when it is. Raises: BackendUnavailable."""
        ...

    async def unload(self, variant: Variant, kept: Collection[Variant]) -> bool:
        """Free what the variant's version holds; nothing to do when it is not loaded.

        `kept`: what is routed to; a server that unloads whole models keeps those named there.
        Returns False while others may need it: ask again later.
        Raises: BackendError.
        """
        ...

    async def checked(self, variant: Variant, check: Check) -> Trust:
        """Run the check on each server that would be asked for the variant; return what holds.

        Where there are several, only those where it held best are asked from then on.
        Raises: what the check did, where it failed on all.
        """
        ...

    @property
    def cores(self) -> float:
        """CPU of one model server, in cores; below 1 where a quota leaves a part of one."""
        ...

    def capacity(self, variant: Variant) -> int:
        """Return how many servers share the variant's requests now, at least 1."""
        ...

    async def external_load(self) -> Mapping[str, float]:
        """Return the mean number of requests of other gateways since the last call, by name of variant.

        Returns an empty mapping for an in-process backend. Raises: BackendError, DeadlineExceeded.
        """
        ...

    async def is_ready(self) -> bool:
        """Return whether the backend can answer."""
        ...

    async def close(self) -> None: ...


def outputs_of(variant: Variant) -> tuple[str, ...]:
    """Return the names of the outputs of its model, in the order that `checked_logits` takes them."""
    return LABEL_OUTPUTS if variant.classifies else SPAN_OUTPUTS


def joined(parts: Sequence[Sequence[Floats]]) -> list[Floats]:
    """Return each output of several batches as one array."""
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def checked_logits(
    variant: Variant, windows: Windows, outputs: Sequence[Floats]
) -> Logits | LabelLogits:
    """Return the outputs that a model server sent for these windows. Raises: InvalidLogits."""
    if variant.classifies:
        return label_logits_of(variant.name, windows, outputs[0])
    return logits_of(variant.name, windows, *outputs)


def label_logits_of(model: str, windows: Windows, sent: Floats) -> LabelLogits:  # (W, L)
    """Return the logits of labels that a model server sent. Raises: InvalidLogits."""
    if sent.ndim != 2 or len(sent) != windows.n_windows:
        raise InvalidLogits(model, f"of shape {sent.shape} for {windows.n_windows} texts")
    if not (np.abs(sent) < LARGEST_LOGIT).all():
        raise InvalidLogits(model, "not finite")
    return LabelLogits(sent)


def logits_of(model: str, windows: Windows, start: Floats, end: Floats) -> Logits:  # (W, S) each
    """Return the logits that a model server sent for these windows. Raises: InvalidLogits."""
    shape = windows.input_ids.shape
    for sent in (start, end):
        if sent.shape != shape:
            raise InvalidLogits(model, f"of shape {sent.shape} for windows of shape {shape}")
        if not (np.abs(sent) < LARGEST_LOGIT).all():  # NaN is not, either
            raise InvalidLogits(model, "not finite")
    return Logits(start, end)


def key_of(variant: Variant) -> str:
    """Return the key of the variant in `hashes`: `name/version`."""
    return f"{variant.name}/{variant.version}"
