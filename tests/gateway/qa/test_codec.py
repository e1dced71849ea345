"""Properties of the way from text to windows and from logits to an answer, for any text."""

from __future__ import annotations

import gc
import math
import weakref
from bisect import bisect_left, bisect_right
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from gateway.catalog.schema import Decoding
from gateway.domain import Bools, Ints, Logits, Question, Span, Windows
from gateway.errors import EmptyText, MalformedText, RepositoryError, TextTooLong
from gateway.qa import codec
from gateway.qa.boundaries import has_visible
from gateway.qa.codec import SpanEncoder
from tests.fakes import TOKENIZER
from tests.texts import TEXT, UNREADABLE

SEEDS = st.integers(0, 2**32 - 1)
ALWAYS = Decoding(null_threshold=float("inf"))  # never abstains


@cache
def encoder(max_tokens: int = codec.MAX_TOKENS, overlap: int = codec.OVERLAP_TOKENS) -> SpanEncoder:
    whole = SpanEncoder.from_file(TOKENIZER)
    return SpanEncoder(whole.tokenizer, max_tokens=max_tokens, overlap=overlap)


def test_an_encoder_that_nobody_has_is_gone_with_its_caches() -> None:
    """Without the garbage collector, which rarely looks at what is old: every switch would add some 8 MiB."""
    made = SpanEncoder(encoder().tokenizer)
    made.encode(Question("Who came?", "The Normans came."))
    freed = weakref.ref(made._contexts)
    gc.disable()
    try:
        del made
        assert freed() is None
    finally:
        gc.enable()


def has_token(text: str) -> bool:
    offsets = encoder().tokenizer.encode(text, add_special_tokens=False).offsets
    return any(begin < end for begin, end in offsets)


VISIBLE = TEXT.filter(lambda text: has_visible(text) and has_token(text))


def boundaries(text: str) -> list[int]:
    """Return where a reader's characters begin, and the end of the text."""
    return [*(cluster.start() for cluster in regex.finditer(r"\X", text)), len(text)]


def random_logits(windows: Windows, seed: int) -> Logits:
    random = np.random.default_rng(seed)
    shape = windows.input_ids.shape
    return Logits(
        random.normal(0, 3, shape).astype(np.float32), random.normal(0, 3, shape).astype(np.float32)
    )


@settings(max_examples=150, deadline=None)
@given(context=VISIBLE, seed=SEEDS)
def test_every_answer_is_a_piece_of_the_context(context: str, seed: int) -> None:
    """Offsets are code points of the text as sent, whatever the tokenizer made of it."""
    question = Question("What is it?", context, top_k=20)
    windows = encoder(48, 16).encode(question)
    answer = codec.decode(windows, random_logits(windows, seed), question, ALWAYS)
    if answer.start is not None:
        assert answer.text == context[answer.start : answer.end] != ""
    else:
        assert (answer.text, answer.end) == ("", None)
    ends = boundaries(context)
    for span in answer.alternatives:
        assert span.start < span.end
        assert span.text == context[span.start : span.end]
        assert span.start in ends, "a reader's character is cut in two"
        assert span.end in ends, "a reader's character is cut in two"
    assert 0 <= answer.score <= 1
    assert 0 <= answer.no_answer_probability <= 1


@settings(max_examples=100, deadline=None)
@given(context=VISIBLE)
def test_the_windows_together_hold_every_token_of_the_context(context: str) -> None:
    """What no window holds can never be an answer."""
    whole = encoder().tokenizer.encode(context, add_special_tokens=False)
    windows = encoder(48, 16).encode(Question("What is it?", context))
    held = {(int(a), int(b)) for a, b in windows.offsets[windows.is_context]}
    ends = boundaries(context)
    assert held == {
        (ends[bisect_right(ends, a) - 1], ends[bisect_left(ends, b)])
        for a, b in whole.offsets
        if a < b
    }


@settings(max_examples=60, deadline=None)
@given(context=VISIBLE)
def test_windows_follow_each_other_with_their_overlap(context: str) -> None:
    """An answer at the edge of a window is inside the next one."""
    windows = encoder(48, 16).encode(Question("What is it?", context))
    for row in range(windows.n_windows - 1):
        here = windows.offsets[row][windows.is_context[row]]
        following = windows.offsets[row + 1][windows.is_context[row + 1]]
        assert here[-16:].tolist() == following[:16].tolist()


@settings(max_examples=60, deadline=None)
@given(question=VISIBLE, context=VISIBLE)
def test_any_question_is_encoded_or_refused_for_its_length(question: str, context: str) -> None:
    """Nothing else may come of a text that is valid Unicode."""
    try:
        windows = encoder().encode(Question(question, context))
    except TextTooLong:
        return
    tokens_of_question = (windows.token_type_ids[0] == 0) & (windows.attention_mask[0] == 1)
    assert tokens_of_question.sum() <= codec.MAX_QUESTION_TOKENS + 2
    assert windows.n_tokens <= codec.MAX_TOKENS


@pytest.mark.parametrize(("word", "n"), [("각 ", 60), ("각 ", 43), ("a ", 129)])
def test_a_question_is_measured_in_tokens(word: str, n: int) -> None:
    """A Hangul syllable is up to three tokens: a short question may leave no room for a context."""
    with pytest.raises(TextTooLong, match="question"):
        encoder().encode(Question(word * n, "a b c " * 500))


@given(before=st.text(max_size=5), after=st.text(max_size=5), code=st.integers(0xD800, 0xDFFF))
def test_a_lone_surrogate_is_refused(before: str, after: str, code: int) -> None:
    """JSON can carry one; UTF-8, and so the other frontend, cannot."""
    text = f"{before}a{chr(code)}{after}"
    for question in (Question(text, "a context"), Question("a question", text)):
        with pytest.raises(MalformedText) as caught:
            encoder().encode(question)
        assert str(len(before) + 1) in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(text=UNREADABLE)
def test_text_with_nothing_to_read_is_refused(text: str) -> None:
    """There is nothing to ask, or nothing to answer from: "no answer" would be a lie."""
    for question in (Question(text, "a context"), Question("a question", text)):
        with pytest.raises(EmptyText):
            encoder().encode(question)


@pytest.mark.parametrize("text", ["\u0301", "\u0301 \u0302"])
def test_text_that_leaves_no_token_is_refused(text: str) -> None:
    """Accents alone can be seen, but the tokenizer drops them, and no more is left."""
    for name, asked in (("context", ("What is it?", text)), ("question", (text, "Ada."))):
        with pytest.raises(EmptyText) as refused:
            encoder().encode(Question(*asked))
        assert str(refused.value) == str(EmptyText(name))


@settings(max_examples=150, deadline=None)
@given(question=VISIBLE, context=VISIBLE)
def test_no_text_holds_a_special_token(question: str, context: str) -> None:
    """A context that says [SEP] must not begin another context: text is data."""
    try:
        windows = encoder(64, 16).encode(Question(question, context))
    except TextTooLong:
        return
    special = set(encoder().tokenizer.get_added_tokens_decoder()) - {unknown_id()}
    framing = [101, 102, 102]  # [CLS] question [SEP] context [SEP]
    for row, mask in zip(windows.input_ids, windows.attention_mask, strict=True):
        assert [i for i in row[mask == 1].tolist() if i in special] == framing


def unknown_id() -> int | None:
    return encoder().tokenizer.token_to_id("[UNK]")


@pytest.mark.parametrize(
    ("context", "piece"),
    [
        ("The cafe\u0301 opened", "cafe\u0301"),
        ("I \u2764\ufe0f you", "\u2764\ufe0f"),
        (
            "It was \u1112\u1161\u11ab\u1100\u1173\u11af there",
            "\u1112\u1161\u11ab\u1100\u1173\u11af",
        ),
        ("She, \U0001f469\u200d\U0001f680, flew", "\U0001f469\u200d\U0001f680"),
        ("From \U0001f1e9\U0001f1ea to \U0001f1eb\U0001f1f7", "\U0001f1eb\U0001f1f7"),
    ],
)
def test_an_answer_cuts_no_character_of_a_reader(context: str, piece: str) -> None:
    """What is dropped or split by the tokenizer still belongs to what stands around it."""
    question = Question("What is it?", context)
    windows = encoder().encode(question)
    at = context.index(piece)
    inside = windows.is_context & (windows.offsets[..., 0] >= at)
    inside &= windows.offsets[..., 1] <= at + len(piece)
    logits = np.where(inside, np.float32(9), np.float32(0))
    first, last = logits.copy(), logits.copy()
    first[0, np.flatnonzero(inside)[0]] += 1
    last[0, np.flatnonzero(inside)[-1]] += 1
    answer = codec.decode(windows, Logits(first, last), question, ALWAYS)
    assert (answer.text, answer.start, answer.end) == (piece, at, at + len(piece))


@settings(max_examples=100, deadline=None)
@given(
    n_windows=st.integers(1, 4),
    n_tokens=st.integers(1, 60),
    density=st.floats(0.05, 1),
    seed=SEEDS,
)
def test_the_best_spans_are_those_of_a_full_search(
    n_windows: int, n_tokens: int, density: float, seed: int
) -> None:
    """The vectorised search leaves nothing out, and invents nothing."""
    random = np.random.default_rng(seed)
    shape = (n_windows, n_tokens)
    start, end = (random.normal(size=shape).astype(np.float32) for _ in range(2))
    is_context = random.random(shape) < density

    found = list(zip(*codec.best_spans(start, end, is_context), strict=True))

    expected = sorted(
        (
            (w, s, e, start[w, s] + end[w, e])
            for w in range(n_windows)
            for s in range(n_tokens)
            for e in range(s, min(n_tokens, s + codec.MAX_ANSWER_TOKENS))
            if is_context[w, s] and is_context[w, e]
        ),
        key=lambda span: -span[3],
    )[: codec.N_BEST]
    assert [span[3] for span in found] == pytest.approx([span[3] for span in expected])
    assert {span[:3] for span in found} == {span[:3] for span in expected}


def test_of_equal_spans_the_first_are_found() -> None:
    """A model that always says the same must not make the search list every pair of tokens."""
    equal, everywhere = np.zeros((3, 40), np.float32), np.ones((3, 40), bool)
    window, start, end, score = codec.best_spans(equal, equal, everywhere)
    assert window.tolist() == [0] * codec.N_BEST
    assert start.tolist() == [0] * codec.N_BEST
    assert end.tolist() == list(range(codec.N_BEST))
    assert score.tolist() == [0.0] * codec.N_BEST


def test_logits_that_are_no_numbers_name_no_span() -> None:
    """A search of shapes goes on where one of them has diverged."""
    shape = (2, 30)
    broken = np.full(shape, np.nan, np.float32)
    assert [len(each) for each in codec.best_spans(broken, broken, np.ones(shape, bool))] == [0] * 4


def seen_twice(context: str) -> tuple[Question, Windows, tuple[int, int], tuple[int, int]]:
    """Return a question of two windows, and a token that both hold: its row and column in each."""
    question = Question("What is it?", context, top_k=20)
    windows = encoder(48, 16).encode(question)
    column = int(np.flatnonzero(windows.is_context[0])[-1])
    place = windows.offsets[0, column]
    again = int(np.flatnonzero((windows.offsets[1] == place).all(axis=1))[0])
    return question, windows, (0, column), (1, again)


def test_an_answer_seen_in_two_windows_counts_once() -> None:
    """Both windows speak of the same characters: the larger logit, and no share for the other."""
    question, windows, here, again = seen_twice(" ".join(f"w{i}" for i in range(60)))
    start = np.full(windows.input_ids.shape, -50.0, np.float32)
    start[:, 0] = 0.0
    end = start.copy()
    start[here] = start[again] = end[again] = 0.0
    end[here] = -1.0  # the first window is less sure of it

    answer = codec.decode(windows, Logits(start, end), question, ALWAYS)

    assert (answer.start, answer.end) == tuple(windows.offsets[here])
    places = [(s.start, s.end) for s in answer.alternatives]
    assert len(set(places)) == len(places)
    assert answer.alternatives[0].logit == pytest.approx(0.0)
    assert answer.alternatives[0].probability == pytest.approx(0.5)  # against no answer, as likely


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS)
def test_as_many_alternatives_come_back_as_were_asked_for(seed: int) -> None:
    """Duplicates of overlapping windows must not take their places."""
    question, windows, _, _ = seen_twice(" ".join(f"w{i}" for i in range(60)))
    logits = random_logits(windows, seed)
    overlap = np.isin(windows.offsets[0, :, 0], windows.offsets[1, :, 0][windows.is_context[1]])
    for row in (0, 1):  # the best spans are all where two windows overlap
        shared = np.isin(windows.offsets[row, :, 0], windows.offsets[0, overlap, 0])
        logits.start[row, shared & windows.is_context[row]] += 40.0
        logits.end[row, shared & windows.is_context[row]] += 40.0
    answer = codec.decode(windows, logits, question, ALWAYS)
    assert len({(s.start, s.end) for s in answer.alternatives}) == 20
    assert [s.logit for s in answer.alternatives] == sorted(
        (s.logit for s in answer.alternatives), reverse=True
    )


def test_every_span_of_a_short_context_is_an_alternative() -> None:
    """Spans that begin or end together are different answers."""
    question = Question("Which?", "one two", top_k=20)
    windows = encoder().encode(question)
    answer = codec.decode(windows, random_logits(windows, 3), question, ALWAYS)
    places = sorted((s.start, s.end) for s in answer.alternatives)
    assert places == [(0, 3), (0, 7), (4, 7)]


def test_few_distinct_spans_end_the_search() -> None:
    """One syllable, three tokens of the same place: there is one span, and the search ends."""
    question = Question("What is it?", "각", top_k=20)
    windows = encoder().encode(question)
    answer = codec.decode(windows, random_logits(windows, 3), question, ALWAYS)
    assert [(s.start, s.end) for s in answer.alternatives] == [(0, 1)]


@settings(max_examples=20, deadline=None)
@given(at=st.integers(0, 2_999), seed=SEEDS)
def test_an_answer_anywhere_in_a_long_context_is_found(at: int, seed: int) -> None:
    """Many windows are scored together; the place of the answer does not matter."""
    words = [f"{i:04d}" for i in range(3_000)]
    context = " ".join(words)
    question = Question("Which number?", context)
    windows = encoder().encode(question)
    logits = random_logits(windows, seed)
    inside = (windows.offsets[:, :, 0] >= 5 * at) & (windows.offsets[:, :, 1] <= 5 * at + 4)
    logits.start[inside & windows.is_context & (windows.offsets[:, :, 0] == 5 * at)] += 60
    logits.end[inside & windows.is_context & (windows.offsets[:, :, 1] == 5 * at + 4)] += 60

    answer = codec.decode(windows, logits, question, ALWAYS)

    assert windows.n_windows > 10
    assert (answer.text, answer.start) == (words[at], 5 * at)


@given(n_tokens=st.integers(1, codec.MAX_TOKENS))
def test_every_length_has_a_bucket(n_tokens: int) -> None:
    """Every model is asked in one of a few shapes."""
    bucket = codec.bucket_of(n_tokens)
    assert n_tokens <= bucket in codec.LENGTH_BUCKETS


def test_padding_changes_no_answer() -> None:
    """Tokens of padding are no part of the context, whatever a model says of them."""
    question = Question("What is it?", "The Normans gave their name to Normandy.", top_k=5)
    windows = encoder().encode(question)
    logits = random_logits(windows, 7)
    padding = windows.attention_mask == 0
    loud = Logits(
        np.where(padding, np.float32(1e6), logits.start),
        np.where(padding, np.float32(1e6), logits.end),
    )
    assert padding.any()
    assert codec.decode(windows, loud, question, ALWAYS) == codec.decode(
        windows, logits, question, ALWAYS
    )


def test_the_threshold_decides_whether_there_is_an_answer() -> None:
    """The logit difference between no answer and the best span, against the fitted threshold."""
    question = Question("What is it?", "Normandy")
    windows = encoder().encode(question)
    logits = np.zeros(windows.input_ids.shape, np.float32)
    logits[0, 0] = 1.0  # no answer: 2; the best span: 0
    both = Logits(logits, logits)
    assert codec.decode(windows, both, question, Decoding(null_threshold=1.9)).text == ""
    assert codec.decode(windows, both, question, Decoding(null_threshold=2.1)).text == "Normandy"
    how = replace(Decoding(), null_scale=0.5, null_bias=-1.0)
    assert codec.decode(windows, both, question, how).no_answer_probability == pytest.approx(0.5)


def test_a_passage_of_128_tokens_is_whole_in_some_window() -> None:
    """Wherever a long context is cut: what a passage says must be read together."""
    words = [f"{i:04d}" for i in range(900)]
    windows = encoder().encode(Question("Which number?", " ".join(words)))
    begins = [offsets[inside, 0] for offsets, inside in zip(*_rows(windows), strict=True)]
    whole = {int(b[i]) for b in begins for i in range(len(b) - 127)}
    tokens = np.unique(np.concatenate(begins))
    assert whole == set(tokens[: len(tokens) - 127].tolist())
    assert windows.n_windows > 3


def _rows(windows: Windows) -> tuple[Ints, Bools]:
    return windows.offsets, windows.is_context


def test_an_answer_has_up_to_30_tokens() -> None:
    """The longest that a model may give; a request may ask for shorter ones."""
    words = [f"w{i}" for i in range(10, 60)]  # two tokens each
    question = Question("What is it?", " ".join(words))
    windows = encoder().encode(question)
    first = int(np.flatnonzero(windows.is_context[0])[0])
    for n_tokens, n_words, asked in ((30, 15, None), (31, 0, None), (6, 3, 6), (8, 0, 6)):
        start = np.zeros(windows.input_ids.shape, np.float32)
        end = start.copy()
        start[0, first] = end[0, first + n_tokens - 1] = 20.0
        only = replace(question, max_answer_tokens=asked)
        answer = codec.decode(windows, Logits(start, end), only, Decoding(null_threshold=-30.0))
        assert answer.text == " ".join(words[:n_words])


def test_a_window_is_the_question_and_a_part_of_the_context() -> None:
    """[CLS] question [SEP] context [SEP], padded to its bucket, in the ids of the vocabulary."""
    windows = encoder().encode(Question("Who is it?", "It is Ada."))
    ids = [101, 2040, 2003, 2009, 1029, 102, 2009, 2003, 15262, 1012, 102]
    padding = [0] * (64 - len(ids))
    assert windows.input_ids.tolist() == [ids + padding]
    assert windows.attention_mask.tolist() == [[1] * len(ids) + padding]
    assert windows.token_type_ids.tolist() == [[0] * 6 + [1] * 5 + padding]
    assert windows.n_tokens == len(ids)
    context = [(0, 2), (3, 5), (6, 9), (9, 10)]
    assert [tuple(o) for o in windows.offsets[windows.is_context].tolist()] == context
    assert np.flatnonzero(windows.is_context[0]).tolist() == [6, 7, 8, 9]
    assert not windows.offsets[~windows.is_context].any()
    inputs = (windows.input_ids, windows.attention_mask, windows.token_type_ids)
    assert {part.dtype for part in inputs} == {np.dtype(np.int64)}, "what the graphs take"


def test_an_answer_is_scored_by_its_margin_and_its_share_of_the_spans() -> None:
    """Worked out by hand: two spans of logits log 6 and log 3, no answer at log 1."""
    spans = (Span("a", 0, 1, 0.6, math.log(6)), Span("b", 2, 3, 0.3, math.log(3)))
    reading = codec.Reading(spans, -math.log(6))
    how = Decoding(-1.0, 2.0, 0.5, ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    margin, log_share = math.log(6) - 1, math.log(0.6 / 0.9)
    assert codec.score_features(reading, -1.0) == pytest.approx((margin, log_share))
    answer = codec.answer_of(reading, how, top_k=2)
    assert (answer.text, answer.start, answer.end) == ("a", 0, 1)
    assert answer.alternatives == spans
    assert answer.no_answer_probability == pytest.approx(1 / (1 + math.exp(2 * math.log(6) - 0.5)))
    assert answer.score == pytest.approx(
        1 / (1 + math.exp(-(0.1 + 0.2 * margin + 0.3 * log_share)))
    )
    silent = codec.answer_of(reading, replace(how, null_threshold=-3.0))
    margin = 3 - math.log(6)
    assert (silent.text, silent.start, silent.end, silent.alternatives) == ("", None, None, ())
    assert silent.score == pytest.approx(
        1 / (1 + math.exp(-(0.4 + 0.5 * margin + 0.6 * log_share)))
    )
    at_threshold = codec.answer_of(reading, replace(how, null_threshold=reading.difference))
    assert at_threshold.text == "a"
    assert at_threshold.alternatives == ()


def test_nothing_to_answer_with_is_no_answer_for_sure() -> None:
    """The margin is the largest there is."""
    reading = codec.Reading((), float("inf"))
    assert codec.score_features(reading, 0.0) == (codec.SCORE_CLIP, 0.0)
    how = Decoding(score_weights=((0.0, 0.0, 0.0), (-1.0, 0.1, 9.0)))
    answer = codec.answer_of(reading, how, top_k=3)
    assert (answer.text, answer.no_answer_probability, answer.alternatives) == ("", 1.0, ())
    assert answer.score == pytest.approx(1 / (1 + math.exp(-1)))
    far = codec.Reading((Span("a", 0, 1, 0.0, 0.0),), 1e9)
    assert codec.score_features(far, 0.0) == pytest.approx((codec.SCORE_CLIP, math.log(1e-6)))


def test_no_answer_is_as_likely_as_the_least_sure_window_says() -> None:
    """One window that holds the answer is enough; spans and no answer share all probability."""
    question, windows, here, again = seen_twice(" ".join(f"w{i}" for i in range(60)))
    start = np.full(windows.input_ids.shape, -50.0, np.float32)
    end = start.copy()
    start[:, 0] = end[:, 0] = 4.0
    start[1, 0], end[1, 0] = 0.5, 0.5  # the lower sum of the two
    start[here] = end[here] = start[again] = end[again] = 0.5 + math.log(2) / 2
    reading = codec.read(windows, Logits(start, end), question)
    assert reading.difference == pytest.approx(-math.log(2), rel=1e-5)
    assert reading.spans[0].probability == pytest.approx(2 / 3, rel=1e-5)
    assert reading.spans[0].logit == pytest.approx(1 + math.log(2), rel=1e-5)


@pytest.mark.parametrize(
    ("max_tokens", "overlap", "longest"),
    [(384, 128, 128), (48, 16, 28), (48, 40, 28), (250, 99, 128)],
)
def test_a_question_leaves_room_for_more_context_than_windows_share(
    max_tokens: int, overlap: int, longest: int
) -> None:
    """Of three special tokens, the overlap (a third of a window at most) and one token more."""
    context = "a " * 400
    windows = encoder(max_tokens, overlap).encode(Question("b " * longest, context))
    held = windows.is_context.sum(axis=1)
    shared = min(overlap, max_tokens // 3)
    assert held[0] == max_tokens - longest - 3 > shared
    assert windows.offsets[1][windows.is_context[1]][0, 0] == 2 * (held[0] - shared)
    with pytest.raises(TextTooLong) as refused:
        encoder(max_tokens, overlap).encode(Question("b " * (longest + 1), context))
    assert str(refused.value) == str(TextTooLong("question", longest + 1, longest, "tokens"))


def test_an_encoder_of_another_length_has_the_same_words() -> None:
    """Training reads shorter windows than serving."""
    question = Question("Who is it?", "It is Ada. " * 60)
    short = encoder().resized(96).encode(question)
    assert (short.n_tokens, short.input_ids.shape[1]) == (96, 96)
    assert short.n_windows > encoder().encode(question).n_windows
    assert encoder().decode(np.array([2009, 2003, 15262])) == "it is ada"


def test_a_tokenizer_without_a_class_token_is_refused() -> None:
    """No answer is scored there; without it the first word of the question would be."""
    with pytest.raises(RepositoryError, match=r"tokenizer.json: puts no class token before"):
        SpanEncoder(Tokenizer(WordLevel({"a": 0}, "a")))


@pytest.mark.parametrize("name", ["question", "context"])
def test_what_is_refused_says_which_text_it_is(name: str) -> None:
    """A caller of many questions looks for it."""
    for bad, error in (("\u200b", EmptyText(name)), ("a\ud800", MalformedText(name, 1))):
        asked = Question(bad, "Ada.") if name == "question" else Question("Who?", bad)
        with pytest.raises(type(error)) as refused:
            encoder().encode(asked)
        assert str(refused.value) == str(error)


def test_windows_without_a_place_for_an_answer_have_none() -> None:
    """Whatever the logits say."""
    question = Question("Who?", "Ada.", top_k=3)
    windows = encoder().encode(question)
    empty = replace(windows, is_context=np.zeros_like(windows.is_context))
    assert codec.read(empty, random_logits(empty, 1), question) == codec.Reading((), math.inf)
    answer = codec.decode(empty, random_logits(empty, 1), question, ALWAYS)
    assert (answer.text, answer.alternatives, answer.no_answer_probability) == ("", (), 1.0)
