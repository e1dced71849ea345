"""A BERT that answers questions, or classifies, with words of low rank, and without the tokens that matter least.

A classifier is the same model: its head, named `qa_outputs` too, has an output for each label and is read at the
first token.

After some layers an early span head says what each token is worth; the rest of the layers sees the
best alone, and the others keep what the early head said of them. That may happen several times, each with
a head of its own. The choice itself has no gradient: early heads learn from a loss of their own, and the
layers through the states that were kept.
Source: Goyal et al. 2020 (PoWER-BERT), and Ye et al. 2021 (TR-BERT), who put skipped tokens back at
the end; here by span logits for importance, in place of attention or a learned policy.

Legend: B batch, S tokens, K of them kept, H hidden width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from transformers import BertConfig, BertForQuestionAnswering, PreTrainedModel
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from optimizer.models import position_bias
from optimizer.models.position_bias import Added
from optimizer.models.weights import FORCED, Drops, early_name, n_kept

IGNORE = position_bias.HIDDEN
CLASSIFIES: Final = (
    "single_label_classification"  # as `config.problem_type`, transformers' own word
)

Head = Callable[[torch.Tensor], torch.Tensor]  # states -> start and end logits
Layer = Callable[[torch.Tensor, Added], torch.Tensor]  # states, what is added to the scores


@dataclass(frozen=True, slots=True)
class Dropping:
    """When tokens are dropped, and by whom."""

    after: int  # layers
    keep: float  # share of all tokens
    head: Head  # (.., H) -> (.., 2), the early span head


class LayersOutput(NamedTuple):
    """What a run through the layers gave; of dropped tokens their last word."""

    logits: torch.Tensor  # (B, S, 2) start and end; of a classifier (B, S, L)
    hidden: torch.Tensor  # (B, S, H)
    # One (B, S, 2) for each drop: its early head's logits; tokens dropped earlier keep theirs.
    early: tuple[torch.Tensor, ...] = ()
    kept: torch.Tensor | None = None  # (B, S) bool, after the last drop; none: nothing dropped


@dataclass
class StudentOutput(QuestionAnsweringModelOutput):
    """What a Hugging Face model says, and what came before the end; `hidden_states`: the last alone."""

    early_logits: tuple[torch.Tensor, ...] | None = None  # of each drop (B, S, 2)
    kept: torch.Tensor | None = None  # (B, S) bool
    columns: torch.Tensor | None = None  # of the teacher's states that its own are; none: all
    class_logits: torch.Tensor | None = None  # (B, L) of a classifier, which has no start and end


class StudentBert(BertForQuestionAnswering):  # type: ignore[no-untyped-call]
    """BERT for question answering that knows words of low rank, dropped tokens, narrower states and
    relative positions.

    `bert.embeddings.projection` (r to H, no bias) and `early_outputs` (H to 2) are there or None;
    `drops` says when tokens are dropped, and how many; each drop after the first has its own head, named
    by `early_name`; `columns`, which of the teacher's states are left, or None;
    `optimizer.models.position_bias`, what the encoder has of relative positions.
    """

    columns: torch.Tensor | None

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.early_outputs: nn.Linear | None = None
        self.drops: Drops = ()
        self.register_buffer("columns", None, persistent=False)
        _without_projection(self)

    @property
    def dropping(self) -> tuple[Dropping, ...]:
        heads = [self.get_submodule(early_name(i)) for i in range(len(self.drops))]
        return tuple(
            Dropping(after, keep, head)
            for (after, keep), head in zip(self.drops, heads, strict=True)
        )

    def forward(
        self,
        input_ids: torch.Tensor,  # (B, S)
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **_: Any,
    ) -> StudentOutput:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        parts = self.bert.embeddings
        x = parts(inputs_embeds=words_of(parts, input_ids), token_type_ids=types)
        encoder = self.bert.encoder
        layers = [partial(_layer, layer) for layer in encoder.layer]
        bias = position_bias.bias_of(encoder)
        said = run(x, layers, self.qa_outputs, mask, types, self.dropping, bias)
        classifier = classifies(self)
        start, end = (None, None) if classifier else said.logits.unbind(-1)
        return StudentOutput(
            start_logits=start,
            end_logits=end,
            class_logits=said.logits[:, 0] if classifier else None,
            hidden_states=(said.hidden,),
            early_logits=said.early or None,
            kept=said.kept,
            columns=self.columns,
        )


def classifies(model: Any) -> bool:
    """Say whether a model gives labels, not spans."""
    config = getattr(model, "config", None)
    return bool(getattr(config, "problem_type", None) == CLASSIFIES)


def as_classifier(model: PreTrainedModel, n_labels: int, head: nn.Linear | None) -> StudentBert:
    """Return a model, which it shares all other weights with, that gives labels.

    `head`: (H to L) that reads the first token; None: a new one, drawn at random.
    """
    made = as_student(model)
    if head is None:
        head = nn.Linear(width_of(model), n_labels)
        head.weight.data.normal_(std=made.config.initializer_range)
        head.bias.data.zero_()
    made.qa_outputs = head
    made.config.num_labels, made.config.problem_type = n_labels, CLASSIFIES
    return made


def said_by(out: Any) -> tuple[torch.Tensor, ...]:
    """Return a model's distributions: over labels (B, L), or over start and end, (B, S) each."""
    classes = getattr(out, "class_logits", None)
    return (out.start_logits, out.end_logits) if classes is None else (classes,)


def _layer(layer: Any, x: torch.Tensor, added: Added) -> torch.Tensor:
    states: torch.Tensor = layer(x, added.to(position_bias.heads_of(layer.attention.self)))
    return states


def words_of(embeddings: Any, input_ids: torch.Tensor) -> torch.Tensor:  # (..) -> (.., H)
    """Return the word embeddings in full width."""
    rows: torch.Tensor = embeddings.word_embeddings(input_ids)
    projection = getattr(embeddings, "projection", None)
    return rows if projection is None else projection(rows)


def as_student(model: PreTrainedModel) -> StudentBert:
    """Return a model that shares all its weights, and can be given a projection and an early head."""
    if isinstance(model, StudentBert):
        return model
    made: StudentBert = _rebuilt(StudentBert, model)
    _without_projection(made)
    return made


def as_plain(model: PreTrainedModel) -> BertForQuestionAnswering:
    """Return the model that shares the weights of one without a projection and an early head.

    Relative positions are lost: `optimizer.models.adapt.as_mpnet` keeps them.
    """
    made: BertForQuestionAnswering = _rebuilt(BertForQuestionAnswering, model)
    return made


def _without_projection(model: Any) -> None:
    model.bert.embeddings.projection = None


def _rebuilt(kind: Any, model: Any) -> Any:
    with torch.device("meta"):  # its own weights are never drawn
        made = kind(model.config)
    made.bert, made.qa_outputs = model.bert, model.qa_outputs
    made.train(model.training)
    return made


def linear_of(weight: torch.Tensor) -> nn.Linear:  # (out, in)
    """Return a product without bias that has these weights, to be trained."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight = nn.Parameter(weight.detach().clone())
    return made


def with_thin_words(
    model: PreTrainedModel,
    left: nn.Module,  # an embedding of width r
    right: torch.Tensor,  # (H, r)
) -> PreTrainedModel:
    """Replace the word embeddings by a product, in place; return the model as a `StudentBert`."""
    thin = as_student(model)
    embeddings: Any = thin.bert.embeddings
    embeddings.word_embeddings, embeddings.projection = left, linear_of(right)
    return thin


def with_dropping(model: PreTrainedModel, dropping: Sequence[Dropping]) -> PreTrainedModel:
    """Let the later layers see fewer tokens, or all, in place; return the model, a `StudentBert`.

    The early heads are copies of those given.
    """
    if not dropping and not isinstance(model, StudentBert):
        return model
    fewer = as_student(model)
    heads: list[Any] = [copy.deepcopy(each.head) for each in dropping]  # modules, to be its parts
    for i in range(max(len(fewer.drops), len(heads))):
        setattr(fewer, early_name(i), heads[i] if i < len(heads) else None)
    fewer.drops = tuple((each.after, each.keep) for each in dropping)
    return fewer


def dropping_of(model: PreTrainedModel, drops: Drops) -> tuple[Dropping, ...]:
    """Return such drops for a model: the first with its first early head, and so on.

    Further drops take its last early head, or its span head if it has none.
    """
    had: list[Any] = [each.head for each in getattr(model, "dropping", ())] or [model.qa_outputs]
    return tuple(
        Dropping(after, keep, had[min(i, len(had) - 1)]) for i, (after, keep) in enumerate(drops)
    )


def rank_of(model: PreTrainedModel) -> int:
    """Return the rank of the words; 0: they are as wide as the states."""
    bert: Any = model.bert
    projection = getattr(bert.embeddings, "projection", None)
    return 0 if projection is None else int(projection.in_features)


def width_of(model: PreTrainedModel) -> int:
    """Return the width of the states; the config keeps that of the model it was cut from."""
    head: Any = model.qa_outputs
    return int(head.in_features)


def run(
    x: torch.Tensor,  # (B, S, H)
    layers: Sequence[Layer],
    head: Head,
    attention_mask: torch.Tensor,  # (B, S)
    token_type_ids: torch.Tensor,  # (B, S)
    dropping: Sequence[Dropping] = (),
    bias: nn.Embedding | None = None,
) -> LayersOutput:
    """Run the layers, on fewer tokens from where it is said; `bias`: of relative positions."""
    left = _Left(attention_mask, forced_of(token_type_ids))
    before: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # states, early, kept
    done, n_tokens = 0, x.shape[1]
    with position_bias.kernels(bias, x):
        for drop in dropping:
            x = _through(x, layers[done : drop.after], left.added(x, bias))
            early = drop.head(x)
            kept = kept_positions(early, left.mask, left.forced, n_kept(drop.keep, n_tokens))
            before.append((x, early, kept))
            x = x.gather(1, kept[..., None].expand(-1, -1, x.shape[-1]))  # (B, K, H)
            left, done = left.only(kept), drop.after
        x = _through(x, layers[done:], left.added(x, bias))
        said = LayersOutput(head(x), x)
    for states, early, kept in reversed(before):
        said = _restored(said, states, early, kept)
    return said


class _Left(NamedTuple):
    """The tokens that the next layers see, (B, K) each."""

    mask: torch.Tensor
    forced: torch.Tensor
    positions: torch.Tensor | None = None  # in the window; None: 0, 1, ...

    def only(self, kept: torch.Tensor) -> _Left:  # (B, K')
        """Return what is left where these places go on."""
        positions = kept if self.positions is None else self.positions.gather(1, kept)
        return _Left(self.mask.gather(1, kept), self.forced.gather(1, kept), positions)

    def added(self, like: torch.Tensor, bias: nn.Embedding | None) -> Added:
        return Added(self.mask, like, bias, self.positions)


def _restored(
    said: LayersOutput,  # of the tokens that went on, (B, K, ..)
    states: torch.Tensor,  # (B, S, H) before the drop
    early: torch.Tensor,  # (B, S, 2)
    kept: torch.Tensor,  # (B, K)
) -> LayersOutput:  # (B, S, ..)
    """Put back the tokens that were dropped, with what was known of them then."""

    def among(whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        places = kept[..., None].expand(-1, -1, whole.shape[-1])
        return whole.scatter(1, places, part.to(whole.dtype))

    went_on = torch.ones_like(kept, dtype=torch.bool) if said.kept is None else said.kept
    nowhere = torch.zeros(early.shape[:2], dtype=torch.bool, device=kept.device)
    return LayersOutput(
        among(early, said.logits),
        among(states, said.hidden),
        (early, *(among(early, later) for later in said.early)),
        nowhere.scatter(1, kept, went_on),
    )


def _through(x: torch.Tensor, layers: Sequence[Layer], added: Added) -> torch.Tensor:
    for layer in layers:
        x = layer(x, added)
    return x


def forced_of(token_type_ids: torch.Tensor) -> torch.Tensor:  # (B, S) -> bool
    """Return which tokens are always kept: the first of the question."""
    at_front = torch.arange(token_type_ids.shape[1], device=token_type_ids.device) < FORCED
    return at_front & (token_type_ids == 0)


@torch.no_grad()
def kept_positions(
    early: torch.Tensor,  # (B, S, 2)
    attention_mask: torch.Tensor,  # (B, S)
    forced: torch.Tensor,  # (B, S) bool
    n: int,
) -> torch.Tensor:  # (B, n) ascending
    """Return the `n` most important tokens: those forced first, padding last, then by early logits."""
    importance = early.float().amax(-1)  # (B, S)
    importance = importance.masked_fill(forced, -IGNORE)
    importance = importance.masked_fill(attention_mask == 0, IGNORE)
    order = importance.argsort(dim=-1, descending=True, stable=True)  # of equals the lower first
    return order[:, :n].sort(dim=-1).values
