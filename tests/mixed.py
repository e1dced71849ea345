"""A repository with several tasks: tiny models that are real, and their catalog."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from gateway.catalog import store
from gateway.catalog.schema import GoldenLabelLogits, GoldenLogits, Variant
from gateway.catalog.store import Catalog, Task
from gateway.domain import Question, Texts
from tests import tiny
from tests.fakes import (
    CONTEXT,
    QUESTION,
    TOKENIZER,
    encoder,
    make_cascade,
    make_catalog,
    make_classifier,
    make_task,
    make_variant,
    with_task,
)

WEIGHT = 4.0
KIND = make_task("tiny-kind", ("sport", "city", "river"))
SAYS = make_task("tiny-says", ("yes", "no"), pair=True)
WORDS = {"tiny-kind": KIND.labels, "tiny-doubt": KIND.labels, "tiny-says": SAYS.labels}


def ids_of(words: tuple[str, ...]) -> list[int]:
    vocabulary = encoder().tokenizer.get_vocab()
    return [vocabulary[word] for word in words]


def write(folder: Path) -> Catalog:
    """Write models and catalog: a question-answering model, three classes by a cascade, and pairs.

    `tiny-doubt` knows the words of its labels as `tiny-kind` does, and is never sure.
    """
    hashes = {"tiny-qa": tiny.write_model(folder, "tiny-qa")}
    for name, words in WORDS.items():
        weight = 0.1 if name == "tiny-doubt" else WEIGHT
        hashes[name] = tiny.write_classifier(folder, name, ids_of(words), weight=weight)
    qa = make_variant("tiny-qa", 1, sha256=hashes["tiny-qa"], batch_invariant=True)
    catalog = make_catalog([golden_spans(qa)], [0.5])
    kinds = [classifier(name, hashes[name], KIND) for name in ("tiny-doubt", "tiny-kind")]
    catalog = with_task(catalog, KIND, kinds, [0.6, 0.9])
    cascade = make_cascade(kinds, 0.9, threshold=0.6, reach=[1.0, 1.0])
    catalog = replace(catalog, plans=(*catalog.plans, cascade))
    says = classifier("tiny-says", hashes["tiny-says"], SAYS)
    catalog = with_task(catalog, SAYS, [says], [0.8])
    shutil.copy(TOKENIZER, folder / store.TOKENIZER)
    store.write(folder, catalog)
    return catalog


def golden_spans(variant: Variant) -> Variant:
    windows = encoder().encode(Question(QUESTION, CONTEXT))
    n = windows.n_tokens
    start, end = tiny.expected_logits(
        windows.input_ids, windows.attention_mask, windows.token_type_ids
    )
    golden = GoldenLogits(tuple(start[0, :n].tolist()), tuple(end[0, :n].tolist()))
    return replace(variant, golden=(golden,))


def classifier(name: str, sha256: str, task: Task) -> Variant:
    variant = make_classifier(name, 1, task, sha256=sha256, batch_invariant=True)
    golden = task.golden_inputs[0]
    ids = encoder().encode_texts(Texts(golden.text, golden.text_pair)).input_ids
    weight = 0.1 if name == "tiny-doubt" else WEIGHT
    found = tiny.expected_label_logits(ids, ids_of(task.labels), weight)
    return replace(variant, golden=(GoldenLabelLogits(tuple(found[0].tolist())),))
