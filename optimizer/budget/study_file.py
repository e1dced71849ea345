"""Writes the chosen study as a TOML file that can be read, changed and run on its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optimizer.budget.schedule import Amount, Network, Role, Schedule, Shape, duration
from optimizer.study.config import DataConfig
from optimizer.study.space import spaced

SEED = 17
RANK = 128  # of the word embeddings of small candidates
DEEP = 4  # layers of a model whose slices have at least two
WIDE = 512  # hidden width from which on learning rates are those of a wide encoder
RATES = {"largest": (1e-4, 5e-5), "elastic": (2e-4, 6e-5), "student": (2e-4, 5e-5)}  # narrow, wide
FEW_ROWS = 2000  # with fewer rows, smaller batches make more steps


@dataclass(frozen=True, slots=True)
class Start:
    """The models that a study starts from."""

    teacher: str
    role: Role
    weights: str  # checkpoint of the largest model; the teacher itself, or what it teaches


def batch_size(rows: int) -> int:
    return 8 if rows < FEW_ROWS else 16


def text_of(
    name: str,
    start: Start,
    schedule: Schedule,
    data: Sequence[DataConfig],
    repository: Path,
    tokens: int,
) -> str:
    """Return the study file; `tokens`: length bucket of a typical question."""
    amount = schedule.amount
    parts = [
        _head(name, start, schedule),
        *([] if start.role is Role.LARGEST else [_training("train", "largest", amount)]),
        *(
            [_elastic(amount), _search(amount, tokens), _finish(amount)]
            if amount.kind.searches
            else []
        ),
        *(_student(amount, shape) for shape in amount.shapes),
        _publish(repository),
        *(_source(source, amount.fraction) for source in data),
    ]
    return "\n".join(parts)


def _quoted(value: object) -> str:
    """Return a TOML string, number or list: JSON writes the same."""
    return json.dumps(value, ensure_ascii=False)


def _head(name: str, start: Start, schedule: Schedule) -> str:
    role = {
        Role.LARGEST: f"teacher = {_quoted(start.teacher)}  # published unchanged as the largest model",
        Role.TEACHES: f"teacher = {_quoted(start.teacher)}  # only teaches\n"
        f"weights = {_quoted(start.weights)}  # the largest model starts from it",
        Role.ENCODER: f"backbone = {_quoted(start.weights)}  # fine-tuned first, then the teacher",
    }[start.role]
    return f"""# Chosen for a budget of {duration(schedule.budget_min)}: {schedule.amount.kind.name}; about {schedule.minutes:.0f} minutes on the host that chose it.
# Change it as you like and run it with 'bertier-optimize run --study' and this file.
name = {_quoted(name)}
seed = {SEED}
{role}
largest_name = {_quoted(variant_name(schedule.amount.whole.layers))}
"""


def variant_name(layers: int) -> str:
    return f"bert-{layers}"


def _rate(amount: Amount, what: str) -> float:
    return RATES[what][amount.whole.hidden >= WIDE]


def _how(amount: Amount, what: str, epochs: float) -> str:
    rate, size = _rate(amount, what), batch_size(amount.rows)
    return f"{{ epochs = {epochs:g}, learning_rate = {rate:g}, batch_size = {size} }}"


def _training(table: str, what: str, amount: Amount) -> str:
    return f"""[{table}]
epochs = {amount.largest_epochs:g}
learning_rate = {_rate(amount, what):g}
batch_size = {batch_size(amount.rows)}
"""


@dataclass(frozen=True, slots=True)
class Widths:
    """What the search may choose from, and the fewest layers of a candidate."""

    heads: list[int]
    ffn: list[int]
    ranks: list[int]
    min_layers: int

    @classmethod
    def of(cls, whole: Network) -> Widths:
        heads = {whole.heads, max(1, whole.heads // 2)}
        widths = {max(1, whole.ffn // n) for n in (1, 2, 4)}
        return cls(
            sorted(heads, reverse=True),
            sorted(widths, reverse=True),
            [0, RANK] if whole.hidden >= 2 * RANK else [0],
            2 if whole.layers >= DEEP else 1,
        )


def _elastic(amount: Amount) -> str:
    widths = Widths.of(amount.whole)
    return f"""[elastic]
random = 1
embedding_bits = 4
train = {_how(amount, "elastic", amount.epochs)}

[elastic.space]
layers = "any"
min_layers = {widths.min_layers}
heads = {widths.heads}
ffn = {widths.ffn}
rank = {widths.ranks}
"""


def _search(amount: Amount, tokens: int) -> str:
    return f"""[search]
sampler = "{"gp" if amount.gp else "tpe"}"
trials = {amount.trials}
tokens = {tokens}  # length at which latency is measured
questions = {list(amount.rungs)}
promote = 0.4
"""


def _finish(amount: Amount) -> str:
    return f"""[finish]
members = {amount.members}
train = {_how(amount, "student", amount.finish_epochs)}
"""


def _student(amount: Amount, shape: Shape) -> str:
    layers = list(spaced(shape.layers, amount.whole.layers))
    return f"""[[students]]
name = {_quoted(variant_name(shape.layers))}
layers = {layers}
ffn = {shape.ffn}
embedding_bits = 4
train = {_how(amount, "student", amount.epochs)}
"""


def _publish(repository: Path) -> str:
    return f"""[publish]
repository = {_quoted(str(repository))}
leave_out_weak = true  # variants that another one beats, or that are no better than "no answer"
"""


def _source(source: DataConfig, fraction: float) -> str:
    part = (
        ""
        if fraction == 1
        else f"fraction = {fraction:g}  # of the contexts: all of them take longer\n"
    )
    return f"""[[data]]
source = {_quoted(source.source)}
by_article = true  # a context where the article is not known
certifies = true
{part}"""
