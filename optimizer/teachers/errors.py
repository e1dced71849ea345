"""What can be wrong with a teacher."""

from __future__ import annotations

from gateway.errors import BertierError


class TeacherError(BertierError):
    """A checkpoint that cannot teach; the message says why, and what to give instead."""
