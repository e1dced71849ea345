"""Tensors of the Open Inference Protocol v2 and their raw little-endian form. Leaf; no I/O."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gateway.errors import InvalidField, Malformed

NUMPY = {"FP32": "<f4", "INT32": "<i4"}
LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the protocol, one value or one row an item; text is held as str."""

    name: str
    datatype: str  # BYTES, FP32 or INT32
    data: tuple[str, ...] | tuple[float, ...] | tuple[int, ...]  # row by row
    width: int | None = None  # of a row; None: one value an item

    @property
    def shape(self) -> tuple[int, ...]:
        n = len(self.data)
        return (n,) if self.width is None else (n // self.width, self.width)


def texts(name: str, datatype: str, shape: Sequence[int], data: Sequence[object]) -> Tensor:
    """Return a checked tensor of texts. Raises: InvalidField, Malformed."""
    if datatype != "BYTES":
        raise InvalidField(f"{name}: datatype {datatype!r} is not served; send BYTES")
    if list(shape) != [len(data)] or not data:
        raise InvalidField(
            f"{name}: shape {list(shape)} with {len(data)} elements; send shape [n], n >= 1"
        )
    return Tensor(name, datatype, tuple(_text(name, i, item) for i, item in enumerate(data)))


def _text(name: str, index: int, item: object) -> str:
    if isinstance(item, str):
        return item
    if not isinstance(item, bytes):
        raise InvalidField(f"{name}[{index}]: {type(item).__name__}, it must be text")
    try:
        return item.decode()
    except UnicodeDecodeError as exc:
        raise Malformed(f"{name}[{index}]: not UTF-8 at byte {exc.start}") from exc


def unpack_texts(name: str, raw: bytes) -> list[bytes]:
    """Return the elements of a raw BYTES tensor. Raises: Malformed."""
    items, at = [], 0
    while at < len(raw):
        if at + LENGTH.size > len(raw):
            raise Malformed(f"{name}: raw data ends inside a length")
        (size,) = LENGTH.unpack_from(raw, at)
        at += LENGTH.size
        if at + size > len(raw):
            raise Malformed(f"{name}: raw data ends inside an element of {size} bytes")
        items.append(raw[at : at + size])
        at += size
    return items


def pack(tensor: Tensor) -> bytes:
    """Return the tensor's raw form."""
    if tensor.datatype != "BYTES":
        return np.asarray(tensor.data, NUMPY[tensor.datatype]).tobytes()
    items = [str(text).encode() for text in tensor.data]
    return b"".join(LENGTH.pack(len(item)) + item for item in items)
