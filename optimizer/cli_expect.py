"""`bertier-optimize expect`: tells gateways what to expect of a repository that is published already."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway import catalog as catalogs
from gateway import spans
from gateway.catalog import Catalog
from gateway.published import Agreement
from optimizer import asked, certify, expectations, profiling, strata
from optimizer.asked import Model
from optimizer.data import Split


def add(
    commands: Any,
    study: argparse.ArgumentParser,
    study_of: Callable[[argparse.Namespace], Any],  # -> Study; its import takes seconds
) -> None:
    """Add the command; `study`: the options of every study."""
    text = "write into a published catalog how plans agree with the largest variant, and how sure variants are"
    command = commands.add_parser("expect", parents=[study], help=text, description=text)
    command.set_defaults(run=lambda args: _expect(study_of(args)))


def _expect(study: Any) -> dict[str, Any]:
    repository = study.config.publish.repository
    catalog = catalogs.read(repository)
    examples = study.questions.certifying(Split.CALIBRATE)
    answers = {}
    for variant in catalog.variants:
        file = catalogs.model_path(repository, variant)
        tokenizer = repository / catalogs.TOKENIZER
        model = Model(file, variant.sha256, tokenizer, variant.precision)
        folder = study.folder / "published" / variant.name
        readings, _ = asked.readings(model, folder, Split.CALIBRATE, examples)
        answers[variant.name] = [
            spans.answer_of(reading, variant.decoding)
            for reading, example in zip(readings, examples, strict=True)
            if not strata.is_fresh(example.context)
        ]
    certified = [e for e in examples if not strata.is_fresh(e.context)]
    bound = certify.METHODS[study.config.certify.method]
    delta = catalog.plans[0].certificate.delta
    here = profiling.here()
    found = expectations.with_expectations(catalog, certified, answers, here, bound, delta)
    catalogs.write(repository, found)
    return show(found)


def show(catalog: Catalog) -> dict[str, Any]:
    """Show what is expected of each plan."""
    table = Table("plan", "contexts", "questions", "both answer", ">=", "the same", ">=")
    for plan in catalog.plans:
        if plan.agreement is not None:
            table.add_row(plan.name, *_cells(plan.agreement))
    Console().print(table)
    return {p.name: p.agreement and p.agreement.same_answer_floor for p in catalog.plans}


def _cells(found: Agreement) -> list[str]:
    rates = (found.both_answer, found.both_answer_floor, found.same_answer, found.same_answer_floor)
    return [str(found.n_contexts), str(found.n_questions), *(f"{rate:.3f}" for rate in rates)]
