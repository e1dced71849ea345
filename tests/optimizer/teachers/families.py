"""A tiny random question-answering checkpoint of each family, with a fast tokenizer of its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import (
    AlbertConfig,
    BertConfig,
    DebertaConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MobileBertConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    RobertaConfig,
    XLMRobertaConfig,
    XLNetConfig,
)

from tests.optimizer import checkpoints

SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
ROBERTA: dict[str, Any] = {**SIZE, "max_position_embeddings": 514, "pad_token_id": 1}
DEBERTA: dict[str, Any] = {
    **SIZE,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "max_position_embeddings": 512,
}
DEBERTA_V3: dict[str, Any] = {
    **DEBERTA,
    "position_buckets": 32,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
}
ALTERNATING: dict[str, Any] = {"global_attn_every_n_layers": 2}
SMALL_EMBEDDING: dict[str, Any] = {**SIZE, "embedding_size": 16}


def class_token_last() -> Tokenizer:
    """Return a tokenizer as XLNet's: its class token ends a window."""
    made = checkpoints.sentence_piece()
    made.post_processor = processors.TemplateProcessing(
        "$A </s> <s>:2", "$A </s> $B:1 </s>:1 <s>:2", [("<s>", 0), ("</s>", 2)]
    )
    return made


def lower_word_piece() -> Tokenizer:
    """Return an uncased tokenizer as BERT's."""
    return checkpoints.word_piece(lower=True)


Make = tuple[Callable[[int], PretrainedConfig], Callable[[], Tokenizer]]
FAMILIES: dict[str, Make] = {
    "bert": (lambda n: BertConfig(vocab_size=n, **SIZE), lower_word_piece),
    "bert-cased": (lambda n: BertConfig(vocab_size=n, **SIZE), checkpoints.word_piece),
    "distilbert": (
        lambda n: DistilBertConfig(vocab_size=n, dim=32, n_layers=2, n_heads=2, hidden_dim=48),
        lower_word_piece,
    ),
    "roberta": (
        lambda n: RobertaConfig(vocab_size=n, type_vocab_size=1, **ROBERTA),
        checkpoints.byte_level,
    ),
    "xlm-roberta": (
        lambda n: XLMRobertaConfig(vocab_size=n, type_vocab_size=1, **ROBERTA),
        checkpoints.sentence_piece,
    ),
    "mpnet": (lambda n: MPNetConfig(vocab_size=n, **ROBERTA), lower_word_piece),
    "deberta": (lambda n: DebertaConfig(vocab_size=n, **DEBERTA), checkpoints.byte_level),
    "deberta-v3": (
        lambda n: DebertaV2Config(vocab_size=n, **DEBERTA_V3),
        checkpoints.sentence_piece,
    ),
    "modernbert": (
        lambda n: ModernBertConfig(
            vocab_size=n,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            cls_token_id=0,
            sep_token_id=2,
            local_attention=16,
            **ALTERNATING,
            **SIZE,
        ),
        checkpoints.byte_level,
    ),
    "albert": (lambda n: AlbertConfig(vocab_size=n, **SMALL_EMBEDDING), checkpoints.sentence_piece),
    "electra": (lambda n: ElectraConfig(vocab_size=n, **SMALL_EMBEDDING), lower_word_piece),
    "mobilebert": (
        lambda n: MobileBertConfig(
            vocab_size=n,
            intra_bottleneck_size=16,
            pad_token_id=1,
            num_feedforward_networks=2,
            **SMALL_EMBEDDING,
        ),
        lower_word_piece,
    ),
    "xlnet": (
        lambda n: XLNetConfig(vocab_size=n, d_model=32, n_layer=2, n_head=2, d_inner=48),
        class_token_last,
    ),
}


def save(
    family: str, folder: Path, model: Any = None, labels: Mapping[int, str] | None = None
) -> Path:
    """Write a checkpoint of a family; return its folder. `model`: the class, None: it answers questions."""
    config_of, tokenizer_of = FAMILIES[family]
    tokenizer = tokenizer_of()
    config: Any = config_of(tokenizer.get_vocab_size())
    if labels is not None:
        config.id2label = dict(labels)
    return checkpoints.save(config, folder, tokenizer, model)
