"""The commands that move files of a model repository: promote, withdraw, rollback; and a candidate's terms.

They need no more packages than serving does: who is on call has to go back where nothing else is installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.catalog import candidate, candidate_classes
from gateway.catalog.candidate import Terms
from gateway.errors import RepositoryError
from optimizer.cli import command as commands_of
from optimizer.cli import tables
from optimizer.publish import repository
from optimizer.study import config as configs
from optimizer.study.config import StudyConfig

SHADOW = "shadow"
CANDIDATE = (
    "publish beside the current catalog, to be tried on this share of the requests, above 0 and up to 1;"
    f" or: {SHADOW}, to answer beside it without callers seeing it"
)
PROMOTE_AFTER = (
    "with --candidate: promote it after so many of its requests, once it is shown to be no worse"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of these commands; return the exit status."""
    parser = argparse.ArgumentParser("bertier-optimize")
    add(parser.add_subparsers(required=True, metavar="COMMAND"))
    return commands_of.run(parser.parse_args(argv))


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of a command that publishes."""
    command.add_argument("--candidate", metavar="SHARE", help=CANDIDATE)
    command.add_argument("--promote-after", type=int, metavar="N", help=PROMOTE_AFTER)


def add(commands: Any) -> None:
    """Add the commands."""
    text = "make the candidate current; 'rollback' undoes it for a catalog"
    command = commands.add_parser("promote", help=text, description=text)
    command.add_argument("--model-repository", type=Path, default=configs.REPOSITORY)
    command.set_defaults(run=_promote)
    text = "put the candidate aside: it gets no more requests"
    command = commands.add_parser("withdraw", help=text, description=text)
    command.add_argument("--model-repository", type=Path, default=configs.REPOSITORY)
    command.add_argument("--reason", default="by hand", help="kept with it; default: by hand")
    command.set_defaults(run=_withdraw)
    text = "restore the catalog from before the last publication"
    command = commands.add_parser("rollback", help=text, description=text)
    command.add_argument("--model-repository", type=Path, default=configs.REPOSITORY)
    command.set_defaults(run=_rollback)


def terms_of(args: argparse.Namespace) -> Terms | None:
    """Return the terms of the candidate that the options ask for, if any. Raises: ConfigError."""
    if args.candidate is None:
        if args.promote_after is not None:
            raise configs.ConfigError("--promote-after needs --candidate")
        return None
    if args.promote_after is not None and args.promote_after < 1:
        raise configs.ConfigError(f"--promote-after {args.promote_after}: it must be at least 1")
    if args.candidate == SHADOW:
        return Terms(shadow=True, promote_after=args.promote_after)
    return Terms(share=_share(args.candidate), promote_after=args.promote_after)


def check_task(terms: Terms | None, config: StudyConfig) -> None:
    """Raises: ConfigError for a candidate of a classification: no gateway would try it."""
    if terms is not None and config.task is not None:
        raise configs.ConfigError(
            f"--candidate: the study classifies ([task] {config.task.name}), and candidates are compared by their"
            " answers to questions alone; publish it without --candidate ('bertier-optimize rollback' undoes it), or"
            " to a --model-repository of its own, whose gateway gets a share of the requests from your load balancer"
        )


def _share(given: str) -> float:
    try:
        share = float(given)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise configs.ConfigError(
            f"--candidate {given}: give a share above 0 and up to 1, or {SHADOW}"
        )
    return share


def _tries_classes(folder: Path) -> bool:
    """Return whether the candidate is of classes: a catalog goes first. Raises: RepositoryError."""
    if (folder / candidate.CANDIDATE).exists():
        return False
    if (folder / candidate_classes.CANDIDATE).exists():
        return True
    raise RepositoryError(
        f"{folder}: nothing is tried: there is no {candidate.CANDIDATE}, and no {candidate_classes.CANDIDATE}"
    )


def _promote(args: argparse.Namespace) -> dict[str, Any]:
    if _tries_classes(args.model_repository):
        return {"promoted": str(candidate_classes.promote(args.model_repository))}
    return tables.show_catalog(candidate.promote(args.model_repository))


def _withdraw(args: argparse.Namespace) -> dict[str, Any]:
    files = candidate_classes if _tries_classes(args.model_repository) else candidate
    aside = files.withdraw(args.model_repository, args.reason)
    return {"withdrawn": str(aside)}


def _rollback(args: argparse.Namespace) -> dict[str, Any]:
    return tables.show_catalog(repository.rollback(args.model_repository))
