"""Clusters, the units of a certificate: an article if its title is known, else a context. Pure.

Of labelled texts a group is the article, and a text or pair is the context.

Contexts of one article are alike (intra-class correlation of F1 about .10), so a bound that takes them for
independent is too high. Of one article a few contexts count (`Item.most_contexts`), so that a long one asks no more than
another; a cluster's value is the mean over its contexts of their questions' mean.

Legend: n questions, k clusters.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from optimizer.data.items import Item
from optimizer.data.question_sets import article_of


def cluster_of(example: Item) -> str:
    """Return the key of its cluster; keys of articles and contexts never collide."""
    article = article_of(example)
    return f"context {example.context}" if article is None else f"article {article}"


def is_titled(examples: Sequence[Item]) -> np.ndarray:  # (n,) bool
    """Return for each question whether its article is known."""
    return np.array([article_of(e) is not None for e in examples], dtype=bool)


def counted(examples: Sequence[Item]) -> np.ndarray:  # (n,) bool
    """Return which questions count: those on the first few contexts of each cluster, by hash."""
    contexts: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        contexts[cluster_of(example)].add(example.context)
    most = max((e.most_contexts for e in examples), default=0)
    kept = {key: set(shuffled(found)[:most]) for key, found in contexts.items()}
    return np.array([e.context in kept[cluster_of(e)] for e in examples], dtype=bool)


def means(examples: Sequence[Item], scores: Iterable[float]) -> np.ndarray:  # (k,)
    """Return each cluster's mean over its contexts, in an order that does not depend on the scores."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for example, score in zip(examples, scores, strict=True):
        found[cluster_of(example)][example.context].append(score)
    return np.array(
        [np.mean([np.mean(part) for part in found[key].values()]) for key in shuffled(found)]
    )


def numbers(examples: Sequence[Item]) -> np.ndarray:  # (n,) int
    """Return a number from 0 for each question's cluster, in the order of `means`."""
    keys = [cluster_of(e) for e in examples]
    number = {key: i for i, key in enumerate(shuffled(set(keys)))}
    return np.array([number[key] for key in keys], dtype=int)


def weights(examples: Sequence[Item]) -> np.ndarray:  # (n,) sum 1
    """Return the weight of each question in the mean of `means`."""
    questions: dict[str, int] = defaultdict(int)
    contexts: dict[str, set[str]] = defaultdict(set)
    for example in examples:
        questions[_in_cluster(example)] += 1
        contexts[cluster_of(example)].add(example.context)
    each = [1 / questions[_in_cluster(e)] / len(contexts[cluster_of(e)]) for e in examples]
    return np.array(each) / max(1, len(contexts))


def _in_cluster(example: Item) -> str:
    return f"{cluster_of(example)}\n{example.context}"


def shuffled(keys: Iterable[str]) -> list[str]:
    """Return the keys ordered by hash: always the same order, independent of their meaning."""
    return sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest())
