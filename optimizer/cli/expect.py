"""`bertier-optimize expect`: adds the expected agreement and confidence to a published catalog."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.catalog import store
from gateway.catalog.schema import Agreement
from gateway.catalog.store import Catalog
from optimizer.cli import tables
from optimizer.study import config as configs


def add(commands: Any, study: argparse.ArgumentParser) -> None:
    """Add the command; `study`: the options that all study commands share."""
    text = (
        "measure how often plans agree with the largest variant, and how confident variants are, and"
        " write both into a published catalog"
    )
    command = commands.add_parser("expect", parents=[study], help=text, description=text)
    command.set_defaults(run=_expect)


def _expect(args: argparse.Namespace) -> dict[str, Any]:
    from optimizer.certify import measured_agreement
    from optimizer.publish import recertify, tasks

    config = configs.read(args.study)
    published = args.model_repository or config.publish.repository
    catalog = tasks.part_of(store.read(published), tasks.name_of(config))
    folder = args.run_dir or Path("runs") / config.name
    evidence = recertify.evidence_of(published, catalog, config, args.data_dir, folder)
    found = measured_agreement.expected(catalog, evidence)
    store.write(published, tasks.beside(found, store.read(published)))
    return show(found)


def show(catalog: Catalog) -> dict[str, Any]:
    """Print the expected agreement of each plan; return the floors by plan."""
    table = Table(
        tables.whole("plan"), "contexts", "questions", "both answer", ">=", "the same", ">="
    )
    for plan in catalog.plans:
        if plan.agreement is not None:
            table.add_row(plan.name, *_cells(plan.agreement))
    Console().print(table)
    return {p.name: p.agreement and p.agreement.same_answer_floor for p in catalog.plans}


def _cells(found: Agreement) -> list[str]:
    rates = (found.both_answer, found.both_answer_floor, found.same_answer, found.same_answer_floor)
    return [str(found.n_contexts), str(found.n_questions), *(f"{rate:.3f}" for rate in rates)]
