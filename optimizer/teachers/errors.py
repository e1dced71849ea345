"""The error of unusable teachers."""

from __future__ import annotations

from gateway.errors import BertierError


class TeacherError(BertierError):
    """The checkpoint cannot be a teacher; the message says why, and what to use instead."""
