"""Checkpoints of families other than BERT: tiny, random, with tokenizers trained on a few lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModelForQuestionAnswering,
    BertConfig,
    CamembertConfig,
    Data2VecTextConfig,
    DistilBertConfig,
    ElectraConfig,
    ErnieConfig,
    MPNetConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

from optimizer.models import student

LINES = (
    "The bridge over the gorge was designed by Ada Brunner and opened in 1931.",
    "Who designed the bridge? Its single arch spans 142 metres.",
    "Which colour is the cat in the garden? The dog in the garden is green and quite old.",
)
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # in the order of RoBERTa's ids
NAMES = dict(zip(("cls", "pad", "sep", "unk", "mask"), SPECIAL, strict=True))
SIZE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
}
ROBERTA = {**SIZE, "max_position_embeddings": 514, "type_vocab_size": 1}
MPNET = {**SIZE, "max_position_embeddings": 514}
DISTILBERT: dict[str, Any] = {"dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 96}
WIDE: dict[str, Any] = {**SIZE, "hidden_size": 128}
CONFIGS: dict[str, Callable[[int], PretrainedConfig]] = {
    "roberta": lambda n: RobertaConfig(vocab_size=n, **ROBERTA),
    "xlm-roberta": lambda n: XLMRobertaConfig(vocab_size=n, layer_norm_eps=1e-5, **ROBERTA),
    "camembert": lambda n: CamembertConfig(vocab_size=n, **ROBERTA),
    "data2vec-text": lambda n: Data2VecTextConfig(vocab_size=n, **ROBERTA),
    "distilbert": lambda n: DistilBertConfig(vocab_size=n, **DISTILBERT),
    "electra": lambda n: ElectraConfig(vocab_size=n, embedding_size=64, **SIZE),
    "ernie": lambda n: ErnieConfig(vocab_size=n, use_task_id=True, **SIZE),
    "mpnet": lambda n: MPNetConfig(vocab_size=n, **MPNET),
}


def save(
    config: PretrainedConfig, folder: Path, tokenizer: Tokenizer | None = None, model: Any = None
) -> Path:
    """Write a checkpoint of random weights, large enough for logits to differ; return its folder."""
    torch.manual_seed(5)
    made = (model or AutoModelForQuestionAnswering).from_config(config)
    for name, parameter in made.named_parameters():
        if "norm" not in name.lower():
            parameter.data.normal_(0, 0.3 if "embeddings" in name else 0.15)
    for part in made.modules():
        if isinstance(part, torch.nn.Embedding) and part.padding_idx is not None:
            part.weight.data[part.padding_idx] = 0.0  # as it is trained: a padding has no meaning
    made.save_pretrained(folder)
    if tokenizer is not None:
        named = {f"{name}_token": token for name, token in NAMES.items()}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def byte_level(*, lower: bool = False) -> Tokenizer:
    """Return a tokenizer as RoBERTa's: no byte is unknown, and a space belongs to the word after it."""
    made = Tokenizer(models.BPE())
    if lower:
        made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet)
    made.train_from_iterator(LINES, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return made


def sentence_piece() -> Tokenizer:
    """Return a tokenizer as XLM-RoBERTa's: a space is a character of the word after it."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    pair = "<s> $A </s> </s> $B </s>"
    specials = [("<s>", 0), ("</s>", 2)]
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", pair, specials)
    return made


def word_piece(*, lower: bool = False) -> Tokenizer:
    """Return a tokenizer as BERT's, cased or not; DistilBERT and ELECTRA have the same."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lower)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL)
    made.train_from_iterator(LINES, trainer)
    pair = "<s> $A </s> $B:1 </s>:1"
    specials = [("<s>", 0), ("</s>", 2)]
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", pair, specials)
    return made


def loud_bert(folder: Path) -> PreTrainedModel:
    """Return a BERT wide enough for two ranks and widths, and so loud that every part matters."""
    return _loud(BertConfig(vocab_size=900, **WIDE), folder)


def loud_mpnet(folder: Path) -> PreTrainedModel:
    """Return the same of MPNet, whose scores hang on relative positions, too."""
    made = _loud(MPNetConfig(vocab_size=900, max_position_embeddings=514, **WIDE), folder)
    torch.nn.init.normal_(student.bert_of(made).encoder.relative_attention_bias.weight, std=2.0)
    torch.nn.init.zeros_(student.bert_of(made).embeddings.token_type_embeddings.weight)
    return made


def _loud(config: PretrainedConfig, folder: Path) -> PreTrainedModel:
    torch.manual_seed(3)
    AutoModelForQuestionAnswering.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    model: PreTrainedModel = student.load(str(folder))
    model.eval()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if "LayerNorm" not in name:
            torch.nn.init.normal_(parameter, std=0.15)
    return model
