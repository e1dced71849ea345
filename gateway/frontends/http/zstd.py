"""Inflates zstd bodies (RFC 8878), piece by piece, as HTTP sends them. The only user of the zstd library."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from gateway.errors import Malformed

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_EMPTY = 100  # frames, one after the other: each costs as much as many kilobytes of text
WINDOW_LOG = 23  # 8 MiB: the largest window that RFC 9659 allows


class ZstdInflater:
    """One body, which may be several frames in a row."""

    def __init__(self, piece_bytes: int) -> None:
        """`piece_bytes`: the longest piece."""
        self._piece_bytes = piece_bytes
        self._frame = _new_frame()
        self._began = False
        self._n_empty = 0

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` inflates to. Raises: Malformed."""
        while data or (self._began and not self._frame.eof and not self._frame.needs_input):
            if self._frame.eof:
                self._frame = _new_frame()
            self._began = True
            try:
                piece = self._frame.decompress(data, self._piece_bytes)
            except zstd.ZstdError as exc:
                raise Malformed(
                    "body: not zstd with a window of up to 8 MiB, as Content-Encoding says"
                ) from exc
            data = self._frame.unused_data if self._frame.eof else b""
            self._n_empty = 0 if piece else self._n_empty + self._frame.eof
            if self._n_empty > MAX_EMPTY:
                raise Malformed(f"body: more than {MAX_EMPTY} empty zstd frames in a row")
            if piece:
                yield piece

    def check_ended(self) -> None:
        """Raise Malformed where the end of a frame is missing."""
        if self._began and not self._frame.eof:
            raise Malformed("body: ends inside its zstd frame; send all of it")


def _new_frame() -> zstd.ZstdDecompressor:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG})
