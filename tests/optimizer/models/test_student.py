"""Students are cut from a teacher: what is kept is what mattered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from optimizer.models import student
from optimizer.models.student import LowBitEmbedding, ModelError


def test_a_full_width_cut_of_all_layers_changes_nothing(tiny_backbone: Path) -> None:
    """Cutting is selection: what is kept is what the teacher has."""
    teacher = student.load(str(tiny_backbone)).eval()  # type: ignore[no-untyped-call]
    same = student.cut(teacher, (0, 1), teacher.config.intermediate_size)
    same.eval()  # type: ignore[no-untyped-call]
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(teacher(input_ids=ids).start_logits, same(input_ids=ids).start_logits)


def test_a_cut_leaves_the_teacher_as_it_was(tiny_backbone: Path) -> None:
    """Several students are cut from one teacher."""
    teacher = student.load(str(tiny_backbone))
    student.cut(teacher, (1,), 32)
    assert teacher.config.num_hidden_layers == 2
    assert student.bert_of(teacher).encoder.layer[0].intermediate.dense.out_features == 96


def test_what_the_teacher_does_not_have_is_refused(tiny_backbone: Path) -> None:
    """The message says what there is."""
    with pytest.raises(ModelError, match="2 layers"):
        student.cut(student.load(str(tiny_backbone)), (0, 7), 32)


def test_pruning_keeps_the_neurons_that_matter(tiny_backbone: Path) -> None:
    """Those that nobody reads go first, and what is left computes the same."""
    teacher = student.load(str(tiny_backbone))
    for layer in student.bert_of(teacher).encoder.layer:
        layer.output.dense.weight.data[:, ::3] = 0.0
    narrow = student.cut(teacher, (0, 1), 64)
    assert student.bert_of(narrow).encoder.layer[1].intermediate.dense.weight.shape == (64, 64)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        pairs = zip(
            teacher(input_ids=ids).to_tuple(), narrow(input_ids=ids).to_tuple(), strict=True
        )
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def test_a_student_of_fewer_heads_says_so(tiny_backbone: Path) -> None:
    """The catalog reads the shape from the model; a student may be cut from a student."""
    once = student.cut(student.load(str(tiny_backbone)), (0, 1), 96, heads=1)
    twice = student.cut(once, (1,), 32)
    assert student.heads_of(once) == (1, 1)
    assert student.shape_of(twice, 32).heads == 1
    with pytest.raises(ModelError, match=r"heads 2: layer 0 of .* with 1 of them"):
        student.cut(once, (0,), 96, heads=2)


def test_each_layer_may_have_a_width_of_its_own(tiny_backbone: Path) -> None:
    """A layer that matters less costs less; the catalog says what each one has."""
    teacher = student.load(str(tiny_backbone))
    uneven = student.cut(teacher, (0, 1), (96, 32), (1, 2))
    shape = student.shape_of(uneven, 32)
    assert (shape.layer_ffn, shape.layer_heads) == ((96, 32), (1, 2))
    assert (shape.ffn, shape.heads) == (96, 2)
    even = student.shape_of(student.cut(teacher, (0, 1), (32, 32), (1, 1)), 32)
    assert (even.layer_ffn, even.layer_heads, even.ffn, even.heads) == ((), (), 32, 1)
    assert not student.has_plain_form(student.cut(teacher, (0, 1), (96, 32)))


def test_a_width_of_its_own_is_that_of_the_best_neurons(tiny_backbone: Path) -> None:
    """A list of equal widths is one width; and no layer gets another's."""
    teacher = student.load(str(tiny_backbone))
    even, listed = student.cut(teacher, (1, 0), 32, 1), student.cut(teacher, (1, 0), (32, 48), 1)
    weights, others = even.state_dict(), listed.state_dict()
    for name in weights:
        if ".layer.0." in name:
            assert torch.equal(weights[name], others[name]), name
    assert others["bert.encoder.layer.1.output.dense.weight"].shape == (64, 48)


def test_an_uneven_student_may_be_a_start(tiny_backbone: Path) -> None:
    """It is cut by what its own layers have, and what is not named stays."""
    uneven = student.cut(student.load(str(tiny_backbone)), (0, 1), (96, 32), (1, 2))
    again = student.cut(uneven, (1, 0), None)
    assert student.shape_of(again, 32).layer_ffn == (32, 96)
    assert student.heads_of(again) == (2, 1)
    with pytest.raises(ModelError, match="ffn 48: layer 1 of the student is cut from one with 32"):
        student.cut(uneven, (0, 1), 48)


def test_widths_of_layers_that_share_their_weights_are_equal(tiny_backbone: Path) -> None:
    """One product has one width, also where a student's start shares and the student does not say so."""
    teacher = student.load(str(tiny_backbone))
    shared = student.cut(teacher, (0, 1, 1), (96, 32, 32))
    assert student.bert_of(shared).encoder.layer[2].output.dense.in_features == 32
    with pytest.raises(ModelError, match="layers 1 and 2 of the student share their weights"):
        student.cut(shared, (0, 1, 2), (96, 32, 16))
    with pytest.raises(ModelError, match="2 widths for 3 layers"):
        student.cut(teacher, (0, 1, 1), (96, 32))


def test_a_student_of_fewer_heads_learns(tiny_backbone: Path) -> None:
    """Gradients reach what is left; the weights saved fit a student cut the same way."""
    teacher = student.load(str(tiny_backbone))
    cut = student.cut(teacher, (0, 1), 96, heads=1)
    ids = torch.arange(5, 25)[None]
    cut(input_ids=ids).start_logits.sum().backward()
    query = student.bert_of(cut).encoder.layer[0].attention.self.query
    assert query.weight.grad is not None
    student.cut(teacher, (0, 1), 96, heads=1).load_state_dict(cut.state_dict())


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.01), (4, 0.15)])
def test_low_bit_embeddings_are_close_to_the_table(bits: int, tolerance: float) -> None:
    """Rounding costs what the bits allow, and no more."""
    torch.manual_seed(0)
    table = torch.randn(50, 128)
    found = LowBitEmbedding(table, bits)(torch.arange(50)[None])[0]
    assert (found - table).norm() / table.norm() < tolerance


def test_four_bits_take_half_a_byte() -> None:
    """Two codes share a byte, or the promise of size is void."""
    assert LowBitEmbedding(torch.randn(10, 128), 4).codes.shape == (10, 64)


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    """Who gives the wrong folder sees which."""
    with pytest.raises(ModelError, match=str(tmp_path)):
        student.load(str(tmp_path))


@torch.no_grad()
def test_a_share_of_the_start_is_kept(tiny_backbone: Path) -> None:
    """Between two trained models often lies a better one; at 0 and 1 lie the two."""
    start, trained = student.load(str(tiny_backbone)), student.load(str(tiny_backbone))
    for weights in trained.parameters():
        weights.add_(1.0)
    student.average(trained, start, 0.25)
    for name, weights in trained.named_parameters():
        assert torch.allclose(weights, start.get_parameter(name) + 0.75, atol=1e-5)
