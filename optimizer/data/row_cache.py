"""Training rows kept on disk: every stage and every process trains on the same, tokenized once.

Legend: R rows, T tokens of all rows, G gold spans of all rows. The label of a question's row is NONE.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gateway.qa.codec import SpanEncoder
from optimizer.data import question_sets
from optimizer.data.items import Feature, Item

log = logging.getLogger(__name__)

NONE = -1


def features(
    examples: Sequence[Item], tokenizer: Path, max_tokens: int, seed: int, folder: Path
) -> list[Feature]:
    """Return one training window an example, from the folder if it was made before.

    A damaged file is made again.
    """
    path = folder / f"{_key(examples, tokenizer, max_tokens, seed)}.npz"
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as exc:
        log.warning("%s: not readable (%s), made again", path, exc)
    encoder = SpanEncoder.from_file(tokenizer).resized(max_tokens)
    found = question_sets.features(examples, encoder, seed)
    _write(path, found)
    return found


def _key(examples: Sequence[Item], tokenizer: Path, max_tokens: int, seed: int) -> str:
    digest = hashlib.sha256(json.dumps([max_tokens, seed]).encode())
    digest.update(tokenizer.read_bytes())
    for e in examples:
        digest.update(json.dumps(e.row_key()).encode())
    return digest.hexdigest()[:16]


def _write(path: Path, rows: Sequence[Feature]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez_compressed(
            file,
            lengths=np.array([len(f.input_ids) for f in rows], np.int32),  # (R,)
            input_ids=np.concatenate([f.input_ids for f in rows]),  # (T,)
            token_type_ids=np.concatenate([f.token_type_ids for f in rows]),  # (T,)
            n_spans=np.array([len(f.spans) for f in rows], np.int32),  # (R,)
            spans=np.array([span for f in rows for span in f.spans], np.int32),  # (G, 2)
            labels=np.array([NONE if f.label is None else f.label for f in rows], np.int32),  # (R,)
        )
    os.replace(part, path)


def _read(path: Path) -> list[Feature]:
    with path.open("rb") as file, np.load(file) as stored:  # numpy leaves a damaged file open
        ids, types, spans = stored["input_ids"], stored["token_type_ids"], stored["spans"].tolist()
        stops, span_stops = stored["lengths"].cumsum().tolist(), stored["n_spans"].cumsum().tolist()
        labels = stored["labels"].tolist()
    found, first, first_span = [], 0, 0
    for stop, span_stop, label in zip(stops, span_stops, labels, strict=True):
        gold = tuple((a, b) for a, b in spans[first_span:span_stop])
        row = ids[first:stop], types[first:stop], gold
        found.append(Feature(*row, label=None if label == NONE else label))
        first, first_span = stop, span_stop
    return found
