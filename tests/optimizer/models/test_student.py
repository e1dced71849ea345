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
    with pytest.raises(ModelError, match="with 1 heads"):
        student.cut(once, (0,), 96, heads=2)


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
