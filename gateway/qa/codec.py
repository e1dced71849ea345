"""Text to windows, logits to an answer: the same code for serving, training and evaluation.

Texts to classify become a window here, too; labels.py makes a label of their logits.
Never talks to a model and never reads a clock.
Legend: W windows of one question, S tokens of a window, K candidate spans.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from gateway.catalog.schema import Decoding
from gateway.domain import Answer, Bools, Floats, Ints, Logits, Question, Span, Texts, Windows
from gateway.errors import EmptyText, MalformedText, RepositoryError, TextTooLong
from gateway.qa.boundaries import has_visible, long_clusters
from gateway.qa.token_cache import ContextCache, ContextTokens, Tokens, WordMemory

MAX_TOKENS = 384
TYPICAL_TOKENS = 192  # assumed for a request without a size; one of the buckets
OVERLAP_TOKENS = 128
MAX_QUESTION_TOKENS = 128
MAX_ANSWER_TOKENS = 30
LENGTH_BUCKETS = (64, 96, 128, 192, 256, 320, 384)
N_BEST = 20
MOST_LOOKED_AT = 64 * N_BEST  # pairs of tokens, in the search for so many distinct places
NOWHERE = np.float32(-1e9)
SCORE_CLIP = 20.0
PREFIX_CHARS = 8  # of a text to classify, tokenized first for each token of a window
WHITE_SPACE = re.compile(r"\s")


class SpanEncoder:
    """Turns a question and its context into overlapping windows of token ids."""

    def __init__(
        self, tokenizer: Tokenizer, *, max_tokens: int = MAX_TOKENS, overlap: int = OVERLAP_TOKENS
    ) -> None:
        self.tokenizer = tokenizer
        self._words = WordMemory(tokenizer)
        # Not a method of this object: with a cycle its caches would outlive it until the garbage collector
        # looks at old objects, and always where they were frozen.
        self._contexts = ContextCache(partial(_tokenize_context, self._words))
        self._frame = _Frame.of(tokenizer)
        self._single = _SingleFrame.of(tokenizer)
        self._max_tokens = max_tokens
        self._overlap = min(overlap, max_tokens // 3)
        # A window holds more of the context than the overlap; else the windows would not advance.
        room = max_tokens - self._overlap - self._frame.n_tokens - 1
        self._max_question_tokens = min(MAX_QUESTION_TOKENS, room)

    @classmethod
    def from_file(cls, path: Path) -> SpanEncoder:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return cls(tokenizer)

    def resized(self, max_tokens: int) -> SpanEncoder:
        """Return the same encoder with windows of another length."""
        return SpanEncoder(self.tokenizer, max_tokens=max_tokens)

    @property
    def cached_chars(self) -> tuple[int, int]:
        """Characters of the words, and of the contexts, whose tokens are kept."""
        return self._words.n_chars, self._contexts.n_chars

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of some tokens, in the spelling of the vocabulary."""
        return self.tokenizer.decode([int(i) for i in ids])

    def encode(self, question: Question) -> Windows:
        """Return the windows of one question, padded to the bucket of the longest of them.

        No window reaches over the end of a passage. Offsets lie between the characters that a reader sees
        (grapheme clusters): so does every answer.
        Raises: EmptyText (nothing to read), TextTooLong (question over MAX_QUESTION_TOKENS), MalformedText (lone
        surrogates).
        """
        _check_text("question", question.question)
        question_tokens = self._words.tokens_of(question.question)
        if (
            question_tokens.begins == question_tokens.ends
        ):  # none, or white space alone: the rest was dropped
            raise EmptyText("question")
        if len(question_tokens.ids) > self._max_question_tokens:
            raise TextTooLong(
                "question", len(question_tokens.ids), self._max_question_tokens, "tokens"
            )
        room = self._max_tokens - len(question_tokens.ids) - self._frame.n_tokens
        contexts = [
            (passage.start, self._context_tokens(name, passage.text))
            for name, passage in question.named_passages()
        ]
        return _to_windows(self._frame, question_tokens, contexts, room, room - self._overlap)

    def encode_texts(self, texts: Texts) -> Windows:
        """Return texts to classify as one window, padded to its bucket.

        The longer text is cut, at its end, where both do not fit; `is_cut` says so.
        Raises: EmptyText (nothing to read), MalformedText (lone surrogates).
        """
        ids = [self._text_ids("text", texts.text)]
        if texts.text_pair is not None:
            ids.append(self._text_ids("text_pair", texts.text_pair))
        frame: _Frame | _SingleFrame = self._frame if len(ids) == 2 else self._single
        n_all = [len(part) for part in ids]
        n_kept = _longest_first(n_all, self._max_tokens - frame.n_tokens)
        kept = [part[:n] for part, n in zip(ids, n_kept, strict=True)]
        return replace(_to_window(*frame.around(*kept)), is_cut=n_kept != n_all)

    def _text_ids(self, name: str, text: str) -> list[int]:
        """Return the tokens of a text to classify. Raises: EmptyText, MalformedText."""
        _check_text(name, text)
        n_chars = PREFIX_CHARS * self._max_tokens
        while True:
            prefix = _whole_words(text, n_chars)
            tokens = self._words.tokens_of(prefix)
            if len(prefix) == len(text) or len(tokens.ids) > self._max_tokens:
                break  # more tokens than a window has: the rest is cut, whatever it is
            n_chars *= 2
        if tokens.begins == tokens.ends:
            raise EmptyText(name)
        return tokens.ids

    def _context_tokens(self, name: str, text: str) -> ContextTokens:
        """Return the tokens of a context. Raises: EmptyText, MalformedText."""
        _check_text(name, text)
        tokens = self._contexts.tokens_of(text)
        if (tokens.begins == tokens.ends).all():
            raise EmptyText(name)
        return tokens


def _whole_words(text: str, n_chars: int) -> str:
    """Return the text up to the first white space from `n_chars` on."""
    space = WHITE_SPACE.search(text, n_chars)
    return text if space is None else text[: space.start()]


def _tokenize_context(words: WordMemory, text: str) -> ContextTokens:
    return _between_clusters(words.tokens_of(text), long_clusters(text))


@dataclass(frozen=True, slots=True)
class _Frame:
    """The special tokens around and between question and context, and the type of every part."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: Ints  # of a pair of one token each

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> _Frame:
        """Raises: RepositoryError when a window would not begin with a special token."""
        pair = tokenizer.encode("a", "a")  # some tokenizers make two tokens of it
        first, second = (pair.sequence_ids.index(part) for part in (0, 1))
        specials = [i for i, part in enumerate(pair.sequence_ids) if part is None]
        before = tuple(pair.ids[i] for i in specials if i < first)
        between = tuple(pair.ids[i] for i in specials if first < i < second)
        after = tuple(pair.ids[i] for i in specials if second < i)
        if not before:
            raise RepositoryError(
                "tokenizer.json: puts no class token before the question, where no answer is"
                " scored; its post_processor must frame a pair as [CLS] question [SEP] context"
            )
        places = sorted([*specials, first, second])
        return cls(before, between, after, np.array([pair.type_ids[i] for i in places]))

    @property
    def n_tokens(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def types_around(self, n_question_tokens: int, n_context: int) -> Ints:  # (S,)
        """Return the token types of a window."""
        counts = [1] * len(self.types)
        first = len(self.before)
        counts[first], counts[first + 1 + len(self.between)] = n_question_tokens, n_context
        return self.types.repeat(counts)

    def around(self, text: list[int], text_pair: list[int]) -> tuple[list[int], Ints]:  # (S,), (S,)
        """Return the ids and types of a pair of texts."""
        ids = [*self.before, *text, *self.between, *text_pair, *self.after]
        return ids, self.types_around(len(text), len(text_pair))


@dataclass(frozen=True, slots=True)
class _SingleFrame:
    """The special tokens around one text, and the type of every part."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    types: Ints  # of a text of one token

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> _SingleFrame:
        single = tokenizer.encode("a")  # some tokenizers make two tokens of it
        first = single.sequence_ids.index(0)
        specials = [i for i, part in enumerate(single.sequence_ids) if part is None]
        before = tuple(single.ids[i] for i in specials if i < first)
        after = tuple(single.ids[i] for i in specials if first < i)
        places = sorted([*specials, first])
        return cls(before, after, np.array([single.type_ids[i] for i in places]))

    @property
    def n_tokens(self) -> int:
        return len(self.before) + len(self.after)

    def around(self, text: list[int]) -> tuple[list[int], Ints]:  # (S,), (S,)
        """Return the ids and types of one text."""
        counts = [1] * len(self.types)
        counts[len(self.before)] = len(text)
        return [*self.before, *text, *self.after], self.types.repeat(counts)


def _longest_first(lengths: Sequence[int], room: int) -> list[int]:
    """Return how many tokens of one text, or of two, fit: the longer is cut to the other's length at most."""
    if sum(lengths) <= room:
        return list(lengths)
    if len(lengths) == 1:
        return [room]
    second = min(lengths[1], max(room // 2, room - lengths[0]))
    return [room - second, second]


def _check_text(name: str, text: str) -> None:
    if not has_visible(text):
        raise EmptyText(name)
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise MalformedText(name, exc.start) from exc


def _between_clusters(tokens: Tokens, clusters: Sequence[tuple[int, int]]) -> ContextTokens:
    """Return the tokens with offsets that cut no cluster; `clusters`: (begin, end), in order."""
    ids, begins, ends = (
        np.array(column, np.int64) for column in (tokens.ids, tokens.begins, tokens.ends)
    )
    if not clusters:
        return ContextTokens(ids, begins, ends)
    first, last = np.array(clusters).T  # (C,), (C,)
    # The last cluster that begins before, and the first that ends behind.
    before = np.maximum(np.searchsorted(first, begins) - 1, 0)
    behind = np.minimum(np.searchsorted(last, ends), len(last) - 1)
    some = begins < ends
    cut_begin = some & (first[before] < begins) & (begins < last[before])
    cut_end = some & (first[behind] < ends) & (ends < last[behind])
    return ContextTokens(
        ids, np.where(cut_begin, first[before], begins), np.where(cut_end, last[behind], ends)
    )


def _to_windows(
    frame: _Frame,
    question_tokens: Tokens,
    contexts: Sequence[tuple[int, ContextTokens]],
    room: int,
    step: int,
) -> Windows:
    """Return windows of up to `room` tokens of one context, each beginning `step` after the last.

    `contexts`: where each begins in the text that offsets count in, and its tokens.
    """
    n_question_tokens = len(question_tokens.ids)
    pieces = [
        (start, context, slice(at, min(at + room, len(context.ids))))
        for start, context in contexts
        for at in range(0, max(1, len(context.ids) - room + step), step)
    ]
    n_tokens = (
        n_question_tokens + max(part.stop - part.start for _, _, part in pieces) + frame.n_tokens
    )
    shape = (len(pieces), bucket_of(n_tokens))
    ids, mask, types = (np.zeros(shape, np.int64) for _ in range(3))
    offsets = np.zeros((*shape, 2), np.int64)
    is_context = np.zeros(shape, np.bool_)
    head = [*frame.before, *question_tokens.ids, *frame.between]
    first = len(head)
    for row, (start, context, part) in enumerate(pieces):
        last = first + part.stop - part.start
        n = last + len(frame.after)
        ids[row, :first], ids[row, first:last], ids[row, last:n] = (
            head,
            context.ids[part],
            frame.after,
        )
        mask[row, :n] = 1
        types[row, :n] = frame.types_around(n_question_tokens, last - first)
        begins, ends = context.begins[part], context.ends[part]
        np.add(begins, start, out=offsets[row, first:last, 0])
        np.add(ends, start, out=offsets[row, first:last, 1])
        np.less(begins, ends, out=is_context[row, first:last])
    return Windows(ids, mask, types, offsets, is_context, n_tokens)


def _to_window(own_ids: list[int], own_types: Ints) -> Windows:  # (S,), (S,)
    """Return one window of these tokens."""
    n_tokens = len(own_ids)
    shape = (1, bucket_of(n_tokens))
    ids, mask, types = (np.zeros(shape, np.int64) for _ in range(3))
    ids[0, :n_tokens], mask[0, :n_tokens], types[0, :n_tokens] = own_ids, 1, own_types
    nowhere = np.zeros((*shape, 2), np.int64)
    return Windows(ids, mask, types, nowhere, np.zeros(shape, np.bool_), n_tokens)


def bucket_of(n_tokens: int) -> int:
    """Return the shortest length bucket that holds `n_tokens`."""
    return next(b for b in LENGTH_BUCKETS if n_tokens <= b)


@dataclass(frozen=True, slots=True)
class Reading:
    """The answer spans before any threshold, best first, and the no-answer score against the best."""

    spans: tuple[Span, ...]
    difference: float  # no-answer score less the best span's


def decode(windows: Windows, logits: Logits, question: Question, how: Decoding) -> Answer:
    """Return the answer from the logits of all windows."""
    return answer_of(read(windows, logits, question), how, question.top_k)


def read(windows: Windows, logits: Logits, question: Question) -> Reading:
    """Return the best spans of all windows, normalized against each other and against no answer.

    Source: Devlin et al. 2019, section 4.3 (span score against the no-answer score at [CLS]).
    """
    width = min(MAX_ANSWER_TOKENS, question.max_answer_tokens or MAX_ANSWER_TOKENS)
    places, score = _distinct_spans(windows, logits, width)
    null = null_score(logits)
    if not places:
        return Reading((), float("inf"))
    most = max(score[0], null)
    mass = np.exp(score - most)
    probabilities = (mass / (mass.sum() + np.exp(null - most))).tolist()
    text = question.context
    spans = [
        Span(text[begin:end], begin, end, p, logit)
        for (begin, end), p, logit in zip(places, probabilities, score.tolist(), strict=True)
    ]
    return Reading(tuple(spans), float(null - score[0]))


def answer_of(reading: Reading, how: Decoding, top_k: int = 1) -> Answer:
    """Return the answer under a variant's threshold, with calibrated probabilities."""
    spans, difference = reading.spans, reading.difference
    unanswerable = not spans or difference > how.null_threshold
    no_answer = sigmoid(how.null_scale * difference + how.null_bias) if spans else 1.0
    score, other = _scores(reading, how, unanswerable)
    alternatives = spans[:top_k] if top_k > 1 else ()
    best = spans[0] if spans else None
    if unanswerable or best is None:
        return Answer("", None, None, score, no_answer, alternatives, best, other)
    return Answer(best.text, best.start, best.end, score, no_answer, alternatives, best, other)


def decide_anew(answer: Answer, question: Question) -> Answer:
    """Return the answer as the caller's own thresholds have it, those of the question.

    Certificates, cascades and shadow answers go by the variant's threshold; this decides last, for the reply alone.
    `max_no_answer_probability` takes the place of the variant's threshold: the best span answers where the
    probability of no answer is at most this. `min_score` then withholds an answer with a lower score. The score of
    a decision that the variant did not make is extrapolated.
    """
    if question.max_no_answer_probability is not None:
        answered = answer.no_answer_probability <= question.max_no_answer_probability
        answer = _decided(answer, answered=answered)
    if question.min_score is not None and answer.score < question.min_score:
        answer = _decided(answer, answered=False)
    return answer


def _decided(answer: Answer, *, answered: bool) -> Answer:
    """Return the answer, decided this way."""
    answered = answered and answer.best is not None
    if answered == (answer.start is not None):
        return answer
    other = replace(answer, score=answer.other_score, other_score=answer.score)
    if not answered or other.best is None:
        return replace(other, text="", start=None, end=None)
    best = other.best
    return replace(other, text=best.text, start=best.start, end=best.end)


def score_features(reading: Reading, null_threshold: float) -> tuple[float, float]:
    """Return the features of an answer's score: margin to the threshold, log share of the best span."""
    if not reading.spans:
        return SCORE_CLIP, 0.0
    margin = min(abs(reading.difference - null_threshold), SCORE_CLIP)
    spans_mass = sum([span.probability for span in reading.spans])
    return margin, math.log(max(reading.spans[0].probability / max(spans_mass, 1e-9), 1e-6))


def _scores(reading: Reading, how: Decoding, unanswerable: bool) -> tuple[float, float]:
    """Return the score of the decision and that of the opposite decision."""
    margin, log_share = score_features(reading, how.null_threshold)
    logits = []
    for decision, sign in ((unanswerable, 1), (not unanswerable, -1)):
        bias, margin_weight, span_weight = how.score_weights[int(decision)]
        logits.append(bias + margin_weight * sign * margin + span_weight * log_share)
    return sigmoid(logits[0]), sigmoid(logits[1])


def best_spans(
    start_logits: Floats,  # (W, S)
    end_logits: Floats,  # (W, S)
    is_context: Bools,  # (W, S)
    k: int = N_BEST,
    max_tokens: int = MAX_ANSWER_TOKENS,
) -> tuple[Ints, Ints, Ints, Floats]:
    """Return (window, start, end, logit sum), each (K,), of the `k` best start <= end pairs, best first.

    No pair spans more than `max_tokens`. Equal pairs in the order of their windows and tokens.

    The K best pairs start in the K best starts, a start being as good as its best pair.
    Source: Devlin et al. 2019, section 4.2.
    """
    n_windows, n_tokens = start_logits.shape
    width = min(max_tokens, n_tokens)
    starts = np.where(is_context, start_logits, NOWHERE)
    ends = np.full((n_windows, n_tokens + width), NOWHERE, np.float32)
    np.copyto(ends[:, :n_tokens], end_logits, where=is_context)
    row, token = ends.strides
    # (length, W, S), a view: of each start, the ends that it reaches.
    reach = np.ndarray((width, n_windows, n_tokens), np.float32, ends, 0, (token, row, token))
    window, start = _largest(starts + reach.max(axis=0), k)
    sums = starts[window, start][:, None] + reach[:, window, start].T
    pair, length = _largest(sums, k)
    scores = sums[pair, length]
    order = (-scores).argsort(kind="stable")[:k]
    if not order.size or scores[order[-1]] <= NOWHERE / 2:
        order = order[scores[order] > NOWHERE / 2]
    best = pair[order]
    return window[best], start[best], start[best] + length[order], scores[order]


def _largest(values: Floats, k: int) -> tuple[Ints, Ints]:  # (N, M)
    """Return the indices of the k largest values, in order of index; of equal ones the first, of NaN none."""
    n_less = max(0, values.size - k)
    least = np.partition(values, n_less, axis=None)[n_less] if values.size else 0.0
    rows, columns = (values >= least).nonzero()
    if len(rows) > k:
        kept = np.ones(len(rows), bool)
        kept[(values[rows, columns] == least).nonzero()[0][k - len(rows) :]] = False
        return rows[kept], columns[kept]
    return rows, columns


def null_score(logits: Logits) -> np.float32:
    """Return the no-answer score: the smallest over the windows of the logit sum at [CLS]."""
    return np.float32((logits.start[:, 0] + logits.end[:, 0]).min())


def _distinct_spans(
    windows: Windows, logits: Logits, max_tokens: int
) -> tuple[list[tuple[int, int]], Floats]:
    """Return (begin, end) and the logit sum, each (K,), of the best distinct pieces of the context.

    Overlapping windows, and the tokens of one character, name the same piece more than once: its
    larger logit counts, before any softmax. Looks further until K is N_BEST, or nothing is left, or
    at MOST_LOOKED_AT: all tokens of a context that is one long character name the same place.
    """
    looked_at = N_BEST
    while True:
        window, start, end, score = best_spans(
            logits.start, logits.end, windows.is_context, looked_at, max_tokens
        )
        begins, ends = windows.offsets[window, start, 0], windows.offsets[window, end, 1]
        places = list(zip(begins.tolist(), ends.tolist(), strict=True))
        if len(set(places)) == len(places) <= N_BEST:
            return places, score
        first: dict[tuple[int, int], int] = {}  # place in the context -> its best row
        for row, place in enumerate(places):
            first.setdefault(place, row)
        if len(first) >= N_BEST or len(score) < looked_at or looked_at >= MOST_LOOKED_AT:
            rows = list(first.values())[:N_BEST]
            return [places[row] for row in rows], score[rows]
        looked_at *= 2


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-min(max(x, -60.0), 60.0)))
