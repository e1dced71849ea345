"""What can go wrong before a checkpoint is there."""

from __future__ import annotations

from gateway.errors import BertierError


class BackboneError(BertierError):
    """A named encoder that cannot be had, or a folder that is not there; says what to do."""
