"""Other encoders rewritten as the BERT that computes the same, so that one code cuts and exports all.

Only weights move. MPNet becomes a `StudentBert` with a bias of relative positions; it has no token
types, so that theirs are zeros and stay it. A family with a part that BERT has not is refused by name, before its weights
are read; what was rewritten is held against the original (`check_parity`).

Legend: B batch, S tokens, H hidden width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForQuestionAnswering,
    BertConfig,
    BertForQuestionAnswering,
    MPNetConfig,
    MPNetForQuestionAnswering,
    PretrainedConfig,
    PreTrainedModel,
)

from gateway.errors import BertierError
from gateway.qa.codec import MAX_TOKENS
from optimizer.models import position_bias
from optimizer.models.bert import as_student
from optimizer.models.relative_position import BUCKETS
from optimizer.models.weights import ACTIVATIONS

PARITY_TOLERANCE = 1e-4  # logits
PARITY_SHAPES = ((3, 64), (2, MAX_TOKENS))  # (B, S)
SEED = 17

# Their positions are counted from the padding's id + 1.
COUNTED_FROM_PADDING = ("camembert", "data2vec-text", "mpnet", "roberta", "xlm-roberta")
FAMILIES = ("bert", "distilbert", "electra", "ernie", *COUNTED_FROM_PADDING)  # by model_type
REFUSED = {
    "albert": "projects its embeddings after their norm",
    "big_bird": "attends to blocks",
    "convbert": "mixes attention with convolutions",
    "deberta": "attends by relative position",
    "deberta-v2": "attends by relative position",
    "funnel": "attends by relative position",
    "longformer": "attends to a sliding window",
    "megatron-bert": "norms before its layers",
    "mobilebert": "has bottlenecks",
    "modernbert": "attends by rotated positions",
    "rembert": "projects its embeddings after their norm",
    "roberta-prelayernorm": "norms before its layers",
    "roformer": "attends by rotated positions",
    "xlm-roberta-xl": "norms before its layers",
    "xlnet": "attends by relative position",
}

DISTILBERT_NAMES = {
    r"^transformer\.": "encoder.",
    r"\.attention\.q_lin\.": ".attention.self.query.",
    r"\.attention\.k_lin\.": ".attention.self.key.",
    r"\.attention\.v_lin\.": ".attention.self.value.",
    r"\.attention\.out_lin\.": ".attention.output.dense.",
    r"\.sa_layer_norm\.": ".attention.output.LayerNorm.",
    r"\.ffn\.lin1\.": ".intermediate.dense.",
    r"\.ffn\.lin2\.": ".output.dense.",
    r"\.output_layer_norm\.": ".output.LayerNorm.",
}
MPNET_NAMES = {
    r"\.attention\.attn\.q\.": ".attention.self.query.",
    r"\.attention\.attn\.k\.": ".attention.self.key.",
    r"\.attention\.attn\.v\.": ".attention.self.value.",
    r"\.attention\.attn\.o\.": ".attention.output.dense.",
    r"\.attention\.LayerNorm\.": ".attention.output.LayerNorm.",
}
MPNET_PADDING = 1  # its code fixes the id, whatever its configuration says
BIAS = "encoder.relative_attention_bias.weight"
POSITIONS = "embeddings.position_embeddings.weight"
TYPES = "embeddings.token_type_embeddings.weight"
TASKS = "embeddings.task_type_embeddings.weight"  # ernie's; the task is always 0

Tensors = dict[str, torch.Tensor]


class NotBert(BertierError):
    """A model that no BERT equals; the message goes on after the model's name."""


def check(config: PretrainedConfig) -> None:
    """Raises: NotBert for a model that cannot be rewritten, or not be served."""
    family = config.model_type
    if family not in FAMILIES:
        why = REFUSED.get(family, "is not known to be one")
        raise NotBert(
            f"students are cut from BERT, and model_type {family} {why}; these can be rewritten as"
            f" one: {', '.join(sorted(FAMILIES))}"
        )
    activation = activation_of(config)
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise NotBert(f"hidden_act {activation} cannot be exported; these can: {known}")
    width = getattr(config, "embedding_size", config.hidden_size)
    if width != config.hidden_size:
        raise NotBert(
            f"its embeddings ({width} wide) are projected to {config.hidden_size} after their norm,"
            " which BERT cannot do; give one with embedding_size = hidden_size"
        )
    buckets = getattr(config, "relative_attention_num_buckets", BUCKETS)
    if buckets != BUCKETS:
        raise NotBert(f"has {buckets} buckets of relative positions, and its code {BUCKETS}")
    _check_positions(config)


def _check_positions(config: PretrainedConfig) -> None:
    kind = getattr(config, "position_embedding_type", None) or "absolute"
    if kind != "absolute":
        raise NotBert(f"position_embedding_type {kind}: only absolute positions can be served")
    n_positions = config.max_position_embeddings - first_position(config)
    if n_positions < MAX_TOKENS:
        raise NotBert(f"has {n_positions} positions, and windows have up to {MAX_TOKENS} tokens")


def activation_of(config: PretrainedConfig) -> str:
    return str(config.activation if config.model_type == "distilbert" else config.hidden_act)


def first_position(config: PretrainedConfig) -> int:
    """Return the row of the position table that a window's first token gets."""
    return _padding_id(config) + 1 if config.model_type in COUNTED_FROM_PADDING else 0


def _padding_id(config: PretrainedConfig) -> int:
    """Return the token that the model itself takes for padding."""
    return MPNET_PADDING if config.model_type == "mpnet" else config.pad_token_id or 0


def attention(family: str = "bert") -> str:
    """Return the attention to train with: on a GPU fused, on a CPU plain (docs/decisions, 0004).

    transformers has no fused attention for an MPNet; rewritten as a BERT it gets it.
    """
    return "sdpa" if torch.cuda.is_available() and family != "mpnet" else "eager"


def as_bert(model: PreTrainedModel) -> BertForQuestionAnswering:
    """Return the same question-answering model as a BERT; a BERT as it is. Raises: NotBert."""
    check(model.config)
    if isinstance(model, BertForQuestionAnswering) and model.config.type_vocab_size > 1:
        return model
    config = bert_config(model.config)
    bert: BertForQuestionAnswering = AutoModelForQuestionAnswering.from_config(  # type: ignore[no-untyped-call]
        config, attn_implementation=attention()
    )
    weights = _bert_weights(model)
    table = weights.get(f"bert.{BIAS}")
    if table is not None:
        bert = as_student(bert)
        position_bias.attach(bert.bert.encoder, table)
        bert.bert.embeddings.token_type_embeddings.weight.requires_grad = False
    bert.load_state_dict(weights)
    bert.train(model.training)
    return bert


def bert_config(config: PretrainedConfig) -> BertConfig:
    """Return the shape of the BERT that equals a model of this configuration."""
    distilled = config.model_type == "distilbert"
    return BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.hidden_dim if distilled else config.intermediate_size,
        hidden_act=activation_of(config),
        hidden_dropout_prob=getattr(config, "hidden_dropout_prob", 0.0),
        attention_probs_dropout_prob=getattr(config, "attention_probs_dropout_prob", 0.0),
        max_position_embeddings=config.max_position_embeddings - first_position(config),
        type_vocab_size=max(2, getattr(config, "type_vocab_size", 0)),
        layer_norm_eps=getattr(config, "layer_norm_eps", 1e-12),  # distilbert's is fixed
        pad_token_id=config.pad_token_id,
    )


def _bert_weights(model: PreTrainedModel) -> Tensors:
    """Return all weights under BERT's names; the tables' rows are those of BERT's ids."""
    config, prefix = model.config, f"{model.base_model_prefix}."
    state: Mapping[str, torch.Tensor] = model.state_dict()
    inner = {
        _bert_name(n.removeprefix(prefix)): w for n, w in state.items() if n.startswith(prefix)
    }
    outer = {name: weight for name, weight in state.items() if not name.startswith(prefix)}
    inner[POSITIONS] = inner[POSITIONS][first_position(config) :]
    types = inner.get(TYPES, torch.zeros(1, config.hidden_size))
    if TASKS in inner:
        types = types + inner.pop(TASKS)[0]
    inner[TYPES] = types.repeat(2, 1) if len(types) == 1 else types
    return {f"bert.{name}": weight.clone() for name, weight in inner.items()} | outer


def _bert_name(name: str) -> str:
    for theirs, ours in (DISTILBERT_NAMES | MPNET_NAMES).items():
        name = re.sub(theirs, ours, name)
    return name


@torch.no_grad()
def as_mpnet(bert: BertForQuestionAnswering) -> MPNetForQuestionAnswering:
    """Return a model with relative positions, all its heads and equal token types as an MPNet.

    Its words are a plain table. What the first token type adds goes into the positions.
    """
    config = bert.config
    head: dict[str, Any] = {"num_labels": config.num_labels, "problem_type": config.problem_type}
    made = MPNetForQuestionAnswering(
        MPNetConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
            hidden_dropout_prob=config.hidden_dropout_prob,
            attention_probs_dropout_prob=config.attention_probs_dropout_prob,
            max_position_embeddings=config.max_position_embeddings + MPNET_PADDING + 1,
            layer_norm_eps=config.layer_norm_eps,
            relative_attention_num_buckets=BUCKETS,
            **head,
        )
    )
    state = {name.removeprefix("bert."): weight for name, weight in bert.state_dict().items()}
    state[POSITIONS] = state[POSITIONS] + state.pop(TYPES)[0]
    state[POSITIONS] = nn.functional.pad(state[POSITIONS], (0, 0, MPNET_PADDING + 1, 0))
    names = {_bert_name(name.removeprefix("mpnet.")): name for name in made.state_dict()}
    made.load_state_dict({names[name]: weight for name, weight in state.items()})
    return made


@torch.no_grad()
def check_parity(model: PreTrainedModel, bert: PreTrainedModel) -> None:
    """Compare logits on random tokens, padding included. Raises: NotBert."""
    for n_rows, n_tokens in PARITY_SHAPES:
        gap = _gap(model, bert, n_rows, n_tokens)
        if not gap <= PARITY_TOLERANCE:  # or not a number
            raise NotBert(
                f"rewritten as a BERT its logits differ by {gap:.4f} at {n_tokens} tokens; its"
                f" configuration asks for more than a {model.config.model_type} does: see"
                " optimizer/models/adapt.py"
            )


def _gap(model: PreTrainedModel, bert: PreTrainedModel, n_rows: int, n_tokens: int) -> float:
    """Return the largest difference; padding is the model's own for it, 0 for BERT, as served."""
    config = model.config
    draw = torch.Generator().manual_seed(SEED)
    padding_id = _padding_id(config)
    ids = torch.randint(config.vocab_size - 1, (n_rows, n_tokens), generator=draw)
    ids += ids >= padding_id
    lengths = n_tokens - torch.arange(n_rows)[:, None] * (n_tokens // 4)
    mask = (torch.arange(n_tokens) < lengths).long()
    types = (torch.arange(n_tokens) > n_tokens // 4).long() * mask
    theirs = _logits(model, ids * mask + padding_id * (1 - mask), mask, _known_types(config, types))
    ours = _logits(bert, ids * mask, mask, {"token_type_ids": types})
    return float((theirs - ours).abs()[:, mask == 1].max())


def _known_types(config: PretrainedConfig, types: torch.Tensor) -> dict[str, torch.Tensor]:
    n_types = getattr(config, "type_vocab_size", 0)
    return {"token_type_ids": types.clamp(max=n_types - 1)} if n_types else {}


def _logits(model: Any, ids: torch.Tensor, mask: torch.Tensor, types: Tensors) -> torch.Tensor:
    was_training = model.training
    model.eval()
    out = model(input_ids=ids, attention_mask=mask, **types)
    model.train(was_training)
    return torch.stack([out.start_logits, out.end_logits])  # (2, B, S)
