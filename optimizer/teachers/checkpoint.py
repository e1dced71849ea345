"""Any checkpoint that transformers loads for question answering, with its own tokenizer and window.

Nothing of it is rewritten: what a family's layers look like does not matter here.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForQuestionAnswering, PreTrainedModel

from optimizer.models import readback, student
from optimizer.models import tokenizer as tokenizers_of
from optimizer.models.student import ModelError
from optimizer.teachers.errors import TeacherError
from optimizer.teachers.windows import SHORTEST, TeacherWindow, WindowEncoder

log = logging.getLogger(__name__)

LONGEST = 512  # tokens of a window, where a model would take more
WEIGHTS = (".safetensors", ".bin", ".onnx", ".json", ".txt", ".model")  # what a model depends on


@dataclass(frozen=True)
class QaCheckpoint:
    """A loaded teacher."""

    name: str
    model: PreTrainedModel
    tokenizer: Tokenizer
    window: int  # tokens
    pad_id: int
    takes_types: bool

    @property
    def encoder(self) -> WindowEncoder:
        return WindowEncoder(self.tokenizer, self.window)

    def padded(self, windows: list[TeacherWindow]) -> dict[str, torch.Tensor]:
        """Return the windows as one batch on the CPU, padded on the right."""
        return padded(windows, self.pad_id, takes_types=self.takes_types)


def load(name: str, window: int | None = None) -> QaCheckpoint:
    """Return a teacher from a folder, a short name, a published variant or a hub id.

    `window`: tokens of its windows; None: as many as it takes, at most LONGEST.
    Raises: TeacherError, BackboneError.
    """
    model, fast = _question_answering(name), tokenizer_of(name)
    found = QaCheckpoint(
        name,
        model,
        fast,
        window_of(name, window, model),
        pad_id=getattr(model.config, "pad_token_id", None) or 0,
        takes_types=takes_types(model),
    )
    check_vocabulary(name, fast, model)
    _check_says_spans(found)
    return found


def identity(name: str) -> str:
    """Return the identity of a teacher: the hash of a folder's files, or a hub id."""
    source = Path(student.resolve(name))
    if not source.is_dir():
        return name
    found = hashlib.sha256()
    files = [p for p in sorted(source.glob("*")) if p.suffix in WEIGHTS and p.is_file()]
    for path in [*files, *sorted(source.glob(f"*/{readback.MODEL}"))]:
        with path.open("rb") as file:
            found.update(f"{path.relative_to(source)}\0".encode())
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


@lru_cache
def identity_once(name: str) -> str:
    """Return the same, read once in this process."""
    return identity(name)


def answers_folder(folder: Path, name: str, what: str) -> Path:
    """Return where a teacher's answers are kept; `what`: everything that they depend on."""
    short = re.sub(r"[^a-z0-9]+", "-", Path(name).name.lower()).strip("-")
    return folder / f"{short}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"


def longest_window(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model has positions for; None: its positions are relative."""
    tables = [
        (m.num_embeddings, m.padding_idx)
        for name, m in model.named_modules()
        if isinstance(m, nn.Embedding) and name.rpartition(".")[2] in ("position_embeddings", "wpe")
    ]
    # Families with a padding position count from the one after it.
    return min((n - (0 if pad is None else pad + 1) for n, pad in tables), default=None)


def padded(
    windows: list[TeacherWindow], pad_id: int, *, takes_types: bool
) -> dict[str, torch.Tensor]:
    """Return windows as one batch. MobileBERT sees a token's neighbours, padding or not."""
    shape = (len(windows), max(len(w.input_ids) for w in windows))
    mask, types = (torch.zeros(shape, dtype=torch.int64) for _ in range(2))
    ids = torch.full(shape, pad_id)
    for i, window in enumerate(windows):
        n = len(window.input_ids)
        ids[i, :n] = torch.from_numpy(window.input_ids)
        types[i, :n] = torch.from_numpy(window.token_type_ids)
        mask[i, :n] = 1
    found = {"input_ids": ids, "attention_mask": mask}
    return found | {"token_type_ids": types} if takes_types else found


def _question_answering(name: str) -> PreTrainedModel:
    try:
        if published := readback.model_of(student.resolve(name)):
            return readback.load(published).eval()  # type: ignore[no-any-return, no-untyped-call]
    except readback.NotReadable as exc:
        raise TeacherError(str(exc)) from exc
    kind, skill = AutoModelForQuestionAnswering, "answer questions"
    return model_of(name, kind, "question-answering", skill, n_labels=2)  # start and end


def model_of(
    name: str, kind: Any, head: str, skill: str, n_labels: int | None = None
) -> PreTrainedModel:
    """Return a finished checkpoint with a head of this kind; `n_labels`: whatever it was made for.

    Raises: TeacherError, BackboneError.
    """
    source = student.resolve(name)
    try:
        config = AutoConfig.from_pretrained(source)
        if n_labels is not None:
            config.num_labels = n_labels
        model, found = kind.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True
        )
    except ImportError as exc:
        raise TeacherError(f"{name}: its family needs a package that is not here: {exc}") from exc
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as exc:
        raise TeacherError(f"{name}: {_why_unreadable(source, exc, head)}") from exc
    _check_complete(name, model, sorted(found["missing_keys"]), head, skill)
    return model.eval()  # type: ignore[no-any-return]


def _why_unreadable(source: str, exc: Exception, head: str) -> str:
    said = " ".join(str(exc).split())
    if "Unrecognized configuration class" in said:
        return f"transformers has no {head} model of its family; give a checkpoint of another"
    if Path(source).is_dir():
        return f"cannot be read as a Hugging Face checkpoint: {said}"
    return f"no such folder here, and not reachable as a Hugging Face id: {said}"


def _check_complete(
    name: str, model: PreTrainedModel, missing: list[str], head: str, skill: str
) -> None:
    """Raises: TeacherError where transformers only warns that it drew weights at random."""
    if not missing:
        return
    prefix = f"{model.base_model_prefix}."  # a pooler is a part of the encoder, but a head's
    inside = [w for w in missing if w.startswith(prefix) and ".pooler." not in w]
    if inside:
        raise TeacherError(f"{name}: incomplete: {inside[0]} is missing, of {len(missing)} weights")
    raise TeacherError(
        f"{name}: not fine-tuned to {skill}, it has no {missing[0]}; give a checkpoint with"
        f" a {head} head, or fine-tune this one: --backbone"
    )


def tokenizer_of(name: str) -> Tokenizer:
    """Return a checkpoint's fast tokenizer, which neither pads nor cuts. Raises: TeacherError, BackboneError."""
    source = student.resolve(name)
    try:
        if readback.model_of(source):
            return Tokenizer.from_file(str(readback.tokenizer_of(source)))
        found = tokenizers_of.fast(name)
    except (ModelError, OSError) as exc:
        raise TeacherError(
            f"{exc}; a teacher needs a fast tokenizer, which knows where in the text a token is:"
            " give its tokenizer.json"
        ) from exc
    found.no_padding()
    found.no_truncation()
    return found


def window_of(name: str, wanted: int | None, model: PreTrainedModel) -> int:
    """Return the length of a teacher's windows, tokens; `wanted` None: the longest. Raises: TeacherError."""
    limit = longest_window(model)
    longest = LONGEST if limit is None else min(limit, LONGEST)
    if wanted is not None and limit is not None and wanted > limit:
        raise TeacherError(
            f"{name}: has positions for {limit} tokens, not for teacher_tokens {wanted}"
        )
    if longest < SHORTEST:
        raise TeacherError(
            f"{name}: has positions for {longest} tokens; a question and its context need {SHORTEST}"
        )
    return wanted or longest


def takes_types(model: PreTrainedModel) -> bool:
    """Return whether a model marks questions and contexts by token types."""
    known = inspect.signature(model.forward).parameters
    return "token_type_ids" in known and getattr(model.config, "type_vocab_size", 2) != 1


def check_vocabulary(name: str, tokenizer: Tokenizer, model: PreTrainedModel) -> None:
    """Raises: TeacherError where the tokenizer has ids that the model lacks."""
    largest = max(tokenizer.get_vocab().values())
    rows = getattr(model.get_input_embeddings(), "num_embeddings", largest + 1)
    if largest >= rows:
        raise TeacherError(
            f"{name}: its tokenizer has ids up to {largest}, the model only {rows} rows; give"
            " the tokenizer that it was trained with"
        )


@torch.inference_mode()
def _check_says_spans(found: QaCheckpoint) -> None:
    """Run one question that fills a window. Raises: TeacherError."""
    windows = found.encoder.windows("What is it?", "It is a bridge. " * found.window)[:1]
    if not windows or not windows[0].is_context.any():
        raise TeacherError(
            f"{found.name}: its tokenizer does not say where in the text a token is, so its answers"
            " cannot be mapped; give a fast tokenizer with offsets"
        )
    try:
        out: Any = found.model(**found.padded(windows))
        shape = out.start_logits.shape
    except (AttributeError, IndexError, RuntimeError, TypeError) as exc:
        raise TeacherError(
            f"{found.name}: cannot be asked with a window of {found.window} tokens: {exc}"
        ) from exc
    wanted = (1, len(windows[0].input_ids))
    if tuple(shape) != wanted:
        raise TeacherError(f"{found.name}: gives scores of shape {tuple(shape)}, not {wanted}")
