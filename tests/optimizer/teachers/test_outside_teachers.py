"""Mapped answers are the teacher's own, and students whose tokens differ learn from them."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from gateway.domain import Logits
from gateway.qa import codec
from gateway.qa.codec import SpanEncoder
from gateway.qa.scoring import normalize
from optimizer.data import question_sets
from optimizer.data.items import Feature
from optimizer.data.question_sets import Example
from optimizer.models import student
from optimizer.models.bert import IGNORE
from optimizer.study.config import DistillConfig
from optimizer.teachers import rows
from optimizer.teachers.errors import TeacherError
from optimizer.teachers.mapping import NO_ANSWER, Spread
from optimizer.teachers.outside_teachers import OutsideTeachers
from optimizer.teachers.rows import MappedAnswers
from optimizer.training import loop
from optimizer.training.losses import Imitation, Outputs
from tests.fakes import TOKENIZER
from tests.optimizer.teachers import families

SHIPPED = "model_repository/minilm-6"
SAMPLE = "loadtest/data/squad_sample.json.xz"
N_QUESTIONS = 150


def byte_level(texts: list[str]) -> Tokenizer:
    """Return a cased byte-level tokenizer, as a student of another family has it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=9000,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return made


@torch.inference_mode()
def own_answers(examples: list[Example]) -> list[str]:
    """Return what the teacher answers by itself: its tokens, its logits, the gateway's decoding."""
    model, encoder = student.load(SHIPPED).eval(), SpanEncoder.from_file(TOKENIZER)  # type: ignore[no-untyped-call]
    found = []
    for e in examples:
        windows = encoder.encode(e.as_question())
        ids, mask, types = (
            torch.from_numpy(a)
            for a in (windows.input_ids, windows.attention_mask, windows.token_type_ids)
        )
        with loop.autocast():  # rounds as it did when the teacher was asked
            out = model(input_ids=ids, attention_mask=mask, token_type_ids=types)
        hidden = mask.numpy() == 0
        start, end = (
            np.where(hidden, IGNORE, x.float().numpy()) for x in (out.start_logits, out.end_logits)
        )
        found.append(answer(codec.read(windows, Logits(start, end), e.as_question())))
    return found


def answer(reading: codec.Reading) -> str:
    """Return the best span, or nothing where "no answer" scores higher."""
    return "" if not reading.spans or reading.difference > 0 else reading.spans[0].text


@pytest.mark.usefixtures("float32")
@pytest.mark.timeout(900)  # a minute where nothing else runs
def test_mapped_answers_are_the_teachers_own(tmp_path: Path) -> None:
    """At least 99 of 100, for a trained teacher and a student that tokenizes otherwise.

    Decoded alike from the teacher's logits and from the cached, mapped probabilities: what maps
    wrongly, or is lost with the places that were not kept, is another answer.
    """
    loaded = question_sets.load(SAMPLE)
    encoder = SpanEncoder(byte_level([e.context for e in loaded]))
    whole = [e for e in loaded if encoder.encode(e.as_question()).n_windows == 1][:N_QUESTIONS]
    assert len(whole) == N_QUESTIONS
    features = question_sets.features(whole, encoder, seed=1)
    teachers = OutsideTeachers((SHIPPED,), 384, tmp_path)
    mapped, details = teachers.answers(whole, features, encoder)
    assert details[SHIPPED]["questions"] == N_QUESTIONS

    found = []
    for i, e in enumerate(whole):
        windows = encoder.encode(e.as_question())
        chances = mapped.chances([i], windows.input_ids.shape[1])
        logits = np.log(np.maximum(chances, 1e-30)).astype(np.float32)
        found.append(answer(codec.read(windows, Logits(logits[0], logits[1]), e.as_question())))
    wanted = own_answers(whole)
    same = sum(normalize(a) == normalize(b) for a, b in zip(found, wanted, strict=True))
    print(f"{same} of {N_QUESTIONS} answers are the same, {sum(map(bool, wanted))} are spans")
    assert same >= 0.99 * N_QUESTIONS
    assert N_QUESTIONS / 10 < sum(map(bool, wanted)) < N_QUESTIONS


CONTEXT = "The bridge over the gorge was designed by Ada Brunner and opened in 1931."


def asked(n: int) -> list[Example]:
    return [
        Example(str(i), f"Who designed bridge {i}?", CONTEXT, ("Ada Brunner",), (42,), "")
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def encoder() -> SpanEncoder:
    return SpanEncoder.from_file(TOKENIZER).resized(64)


def mapped_rows(encoder: SpanEncoder, spreads: list[Spread]) -> tuple[MappedAnswers, list[Feature]]:
    """Return the answers of teachers, each to the same one question, mapped."""
    (example,) = asked(1)
    features = question_sets.features([example], encoder, 1)
    row = rows.row_of(example, features[0], encoder)
    return MappedAnswers.of_rows([row], [[s] for s in spreads]), features


def spread(start: dict[int, float], end: dict[int, float]) -> Spread:
    found = replace(Spread.unknown())
    for side, shares in enumerate((start, end)):
        for i, (place, share) in enumerate(shares.items()):
            found.places[side, i], found.shares[side, i] = place, share
    return found


def test_several_teachers_average(encoder: SpanEncoder) -> None:
    """Their probabilities, not their logits; one that could not be asked has no say."""
    ada = spread({42: 1.0}, {53: 1.0})
    none = spread({NO_ANSWER: 1.0}, {NO_ANSWER: 1.0})
    mapped, features = mapped_rows(encoder, [ada, none, Spread.unknown()])
    start, end = mapped.chances([0], 40)[:, 0]
    (gold,) = features[0].spans
    assert start[gold[0]] == end[gold[1]] == 0.5
    assert start[0] == end[0] == 0.5


def test_what_was_not_kept_lies_on_the_rest_of_the_context(encoder: SpanEncoder) -> None:
    """So that a temperature finds a tail to raise; the question gets nothing."""
    mapped, features = mapped_rows(encoder, [spread({42: 0.75}, {53: 0.75})])
    (start, _) = mapped.chances([0], 64)[:, 0]
    n_question = int((features[0].token_type_ids == 0).sum())
    assert start.sum() == pytest.approx(1.0, abs=1e-3)
    assert start[1:n_question].sum() == 0
    assert start[len(features[0].input_ids) :].sum() == 0
    assert 0 < start[n_question] < 0.02


def test_a_question_that_nobody_was_asked_has_its_label(encoder: SpanEncoder) -> None:
    """It is too long for the teacher, not for the student."""
    mapped, features = mapped_rows(encoder, [Spread.unknown()])
    target = mapped.of(loop.batch_of(features, [0]))
    (gold,) = features[0].spans
    assert (int(target.start[0].argmax()), int(target.end[0].argmax())) == gold
    assert float(target.start[0].softmax(-1).max()) == pytest.approx(1.0)


@torch.no_grad()
def test_a_student_that_says_the_same_has_no_loss(encoder: SpanEncoder) -> None:
    """Start and end are pulled to the mapped distribution at a temperature, and to nothing else."""
    mapped, features = mapped_rows(encoder, [spread({42: 0.6, 46: 0.3}, {53: 0.8})])
    batch = loop.batch_of(features, [0])
    target = mapped.of(batch)
    assert target.hidden is None
    how = DistillConfig(label_weight=0.0, temperature=2.0)

    def loss(start: torch.Tensor) -> float:
        said = Outputs((start, target.end), torch.zeros(1, 1, 1))
        ask = Imitation(mapped, how, lambda _model, _batch: [said])
        return float(ask(torch.nn.Identity(), batch))

    assert loss(target.start + 3.0) == pytest.approx(0.0, abs=1e-5)
    assert loss(target.start.roll(1)) > 0.1


@pytest.mark.parametrize("family", ["roberta", "deberta-v3", "xlnet"])
def test_a_teacher_of_another_family_reaches_every_row(
    family: str, tmp_path: Path, encoder: SpanEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked once: a second set of the same questions needs no model at all."""
    caplog.set_level(logging.INFO)
    folder = families.save(family, tmp_path / "t")
    teachers = OutsideTeachers((str(folder),), None, tmp_path / "answers")
    examples = asked(30)
    features = question_sets.features(examples, encoder, 1)
    mapped, details = teachers.answers(examples, features, encoder)
    assert mapped.known.all()
    assert details[str(folder)]["questions"] == 30
    assert "begin or end inside a token of the student" in caplog.text
    for path in (tmp_path / "t").glob("*.safetensors"):
        path.rename(path.with_suffix(".kept"))  # its identity was taken before
    again, _ = teachers.answers(examples[:7], features[:7], encoder)
    assert np.array_equal(again.tokens, mapped.tokens[:, :7])


def test_answers_that_cannot_be_mapped_are_counted(encoder: SpanEncoder) -> None:
    """They begin or end inside a token of the student, which cannot give them."""
    examples = asked(30)
    features = question_sets.features(examples, encoder, 1)
    mapped = [rows.row_of(e, f, encoder) for e, f in zip(examples, features, strict=True)]
    inside = [spread({43: 1.0}, {52: 1.0})] * 30  # "da Brunne"
    found = rows.counted(mapped, inside)
    assert (found.spans, found.cut, found.too_long) == (30, 30, 0)
    whole = [spread({42: 1.0}, {53: 1.0})] * 29 + [Spread.unknown()]
    found = rows.counted(mapped, whole)
    assert (found.spans, found.cut, found.too_long) == (29, 0, 1)


def test_a_teacher_with_wrong_offsets_is_refused(tmp_path: Path, encoder: SpanEncoder) -> None:
    """Before it is asked for hours: here a whole context is one token."""
    folder = families.save("bert", tmp_path / "t")
    whole = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    whole.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> $B:1 </s>:1", [("<s>", 0), ("</s>", 1)]
    )
    whole.save(str(folder / "tokenizer.json"))
    examples = asked(30)
    features = question_sets.features(examples, encoder, 1)
    said = "30 of 30 gold answers begin or end inside a token of its tokenizer"
    with pytest.raises(TeacherError, match=said):
        OutsideTeachers((str(folder),), None, tmp_path / "answers").answers(
            examples, features, encoder
        )


def test_a_teacher_that_no_question_fits_is_refused(tmp_path: Path, encoder: SpanEncoder) -> None:
    """The labels alone would teach, and nobody would know."""
    examples = asked(30)
    with pytest.raises(TeacherError, match="none of 30 questions fits into its window"):
        OutsideTeachers(
            (str(families.save("bert", tmp_path / "t")),), 64, tmp_path / "answers"
        ).answers(*_long(examples, encoder), encoder)


def _long(examples: list[Example], encoder: SpanEncoder) -> tuple[list[Example], list[Feature]]:
    """Return questions that fit into the student's window, in a teacher's tokens not."""
    long = [replace(e, question="windsong " * 15) for e in examples]
    return long, question_sets.features(long, encoder, 1)
