"""The tokenizer of a checkpoint, as the one file that the gateway reads."""

from __future__ import annotations

import shutil
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer
from transformers.utils.hub import cached_file

from gateway.errors import RepositoryError
from gateway.qa.codec import SpanEncoder
from optimizer.models import readback
from optimizer.models.student import ModelError, resolve

FILE = "tokenizer.json"


def save(name: str, folder: Path) -> None:
    """Write the fast tokenizer of a checkpoint as `folder/tokenizer.json`. Raises: ModelError."""
    source = resolve(name)
    if readback.model_of(source):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(readback.tokenizer_of(source), folder / FILE)
        return
    tokenizer = fast(name)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _check(name, tokenizer, AutoConfig.from_pretrained(source).vocab_size)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / FILE))


def fast(name: str) -> Tokenizer:
    """Return the fast tokenizer of a checkpoint. Raises: ModelError."""
    source = resolve(name)
    if readback.model_of(source):
        return Tokenizer.from_file(str(readback.tokenizer_of(source)))
    return _read(source) or _make(name, source)


def _read(source: str) -> Tokenizer | None:
    """Return the tokenizer as its file has it.

    transformers 5 builds those of some families anew, without the file's normalizer.
    """
    try:
        path = cached_file(source, FILE)
    except OSError:
        return None
    return Tokenizer.from_file(path) if path else None


def _make(name: str, source: str) -> Tokenizer:
    try:
        made = AutoTokenizer.from_pretrained(source, use_fast=True)
        if not made.get_vocab().keys() - set(made.all_special_tokens):
            raise ValueError("no vocabulary")  # transformers 5 makes a tokenizer of nothing
        return Tokenizer.from_str(made.backend_tokenizer.to_str())
    except (OSError, ValueError, ImportError, AttributeError) as exc:
        raise ModelError(
            f"{name}: has no {FILE}, and none can be made of its files: {exc}"
        ) from exc


def _check(name: str, tokenizer: Tokenizer, vocabulary: int) -> None:
    try:
        SpanEncoder(tokenizer)
    except RepositoryError as exc:
        raise ModelError(f"{name}: {exc}") from exc
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocabulary:
        raise ModelError(
            f"{name}: its tokenizer has ids up to {largest}, the model only {vocabulary} rows; give"
            " the tokenizer that it was trained with"
        )
