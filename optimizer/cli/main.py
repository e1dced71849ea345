"""`bertier-optimize`: train, distil, export, certify, publish, evaluate. A stopped stage resumes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from gateway.catalog import store
from optimizer.benchmarks import commands as compare_cli
from optimizer.benchmarks.engines import commands as engines_cli
from optimizer.cli import command, evaluate, expect, qnli, rollouts, simulate, stages, tables
from optimizer.report import inputs as report
from optimizer.study import config as configs


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 done, 1 failed, 2 wrong usage."""
    return command.run(_parser().parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("bertier-optimize", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    study = stages.study_options()
    stages.add(commands, study)
    _add_profile(commands)
    expect.add(commands, study)
    evaluate.add(commands)
    qnli.add(commands)
    simulate.add(commands)
    rollouts.add(commands)
    _add_report(commands)
    compare_cli.add(commands, study, stages.question_study_of)
    engines_cli.add(commands)
    return parser


def _add_profile(commands: Any) -> None:
    text = "measure the latency of the published variants again, on this host"
    command = commands.add_parser("profile", help=text, description=text)
    command.add_argument("--model-repository", type=Path, default=configs.REPOSITORY)
    command.set_defaults(run=_profile)


def _add_report(commands: Any) -> None:
    text = "write a report of a study: one HTML file that opens from disk"
    command = commands.add_parser("report", help=text, description=text)
    command.add_argument(
        "--study", type=Path, default=configs.DEFAULT_STUDY, help="study file (TOML)"
    )
    command.add_argument(
        "--run-dir", type=Path, help="run folder; default: runs/<name of the study>"
    )
    command.add_argument(
        "--model-repository", type=Path, help="default: the repository of the study file"
    )
    command.add_argument("--output", type=Path, default=Path("report.html"))
    command.add_argument(
        "--baseline", type=Path, help="catalog.json of an earlier publication, to compare with"
    )
    command.set_defaults(run=_report)


def _profile(args: argparse.Namespace) -> dict[str, Any]:
    from optimizer.publish import publication

    catalog = publication.reprofiled(args.model_repository)
    store.write(args.model_repository, catalog)
    return tables.show_catalog(catalog)


def _report(args: argparse.Namespace) -> dict[str, Any]:
    from optimizer.report import page

    config = configs.read(args.study)
    run_dir = args.run_dir or Path("runs") / config.name
    published = args.model_repository or config.publish.repository
    inputs = report.read(config, run_dir, published, args.baseline)
    size_bytes = report.write(page.page(inputs), args.output)
    Console().print(f"{args.output}: {size_bytes / 1e3:.0f} kB; open it in a browser", markup=False)
    return {"output": str(args.output), "size_bytes": size_bytes, "trials": len(inputs.trials)}


if __name__ == "__main__":
    sys.exit(main())
