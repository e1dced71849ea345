"""Text in, answer out, in one process: the part that is the same in every peer."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.backends.embedded import open_session, run
from gateway.catalog import store
from gateway.catalog.schema import Variant
from gateway.domain import Logits, Question, Windows
from gateway.qa import codec
from gateway.qa.codec import SpanEncoder

Infer = Callable[[Windows], Logits]


class Reader:
    """One model on one thread; a process asks it one question at a time."""

    def __init__(self, repository: Path, name: str, engine: str) -> None:
        variant = store.read_questions(repository).variant(name)
        self._decoding = variant.decoding
        self._encoder = SpanEncoder.from_file(repository / store.TOKENIZER)
        self._infer = (_torch if engine == "torch" else _onnx)(repository, variant)
        self._lock = threading.Lock()

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return what the gateway answers from the same model."""
        question = Question(body["question"], body["context"], "")
        windows = self._encoder.encode(question)
        with self._lock:
            logits = self._infer(windows)
        found = codec.decode(windows, logits, question, self._decoding)
        return {"answer": found.text, "start": found.start, "end": found.end, "score": found.score}


def _onnx(repository: Path, variant: Variant) -> Infer:
    session = open_session(store.model_path(repository, variant), precision=variant.precision)
    return lambda windows: run(session, windows)


def _torch(repository: Path, variant: Variant) -> Infer:
    """Return transformers' BertForQuestionAnswering in fp32, with the weights of the INT8 file."""
    import torch

    from optimizer.models import readback

    torch.set_num_threads(1)
    model = readback.load(store.model_path(repository, variant)).train(mode=False)

    def infer(windows: Windows) -> Logits:
        with torch.inference_mode():
            # As AutoModelForQuestionAnswering is called: whole, unpadded beyond its bucket.
            found = model(
                input_ids=torch.from_numpy(windows.input_ids),
                attention_mask=torch.from_numpy(windows.attention_mask),
                token_type_ids=torch.from_numpy(windows.token_type_ids),
            )
        return Logits(found.start_logits.numpy(), found.end_logits.numpy())

    return infer


def flags(about: str) -> argparse.Namespace:
    """Return the command line that every peer has."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True, help="processes")
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--engine", choices=("onnx", "torch"), default="onnx")
    return parser.parse_args()
