"""The stages of a study as commands, each alone and all in order."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.catalog import store as catalogs
from gateway.catalog.store import Catalog
from optimizer.cli import evaluate_labels, one_call, rollouts, tables
from optimizer.publish import checks
from optimizer.study import config as configs
from optimizer.study import same_task, store, workers

log = logging.getLogger(__name__)

WRITE = (
    "write the certified plans into the catalog of --model-repository; model files do not change"
)
ALLOW_DOMINATED = "also publish variants that another one beats in latency, size and floor"

ONLY = "train only this student; several times for several: for processes that share the work"
SHARED = (
    "database through which workers on several machines share the members, postgresql://...; workers with"
    " one run folder need none"
)
ONLY_SEARCH = "search only this elastic student's slices; several times for several"
STORED = (
    "take the latencies that 'bertier-optimize costs' measured on another host, the one that will"
    " serve, from the run folder: for a search where the GPU is"
)
COST_WORKERS = (
    "have latencies measured by 'bertier-optimize costs --storage' on the hosts that will serve, in turn with the"
    " other search workers; needs --storage"
)
COST_WORKER = (
    "be a cost worker of this database: measure what 'search --cost-workers' asks for, one shape at a time, until"
    " stopped; uses only the key `name` of the study file"
)
KEEP_PLANS = (
    "with --model-repository: certify the plans that are there, choose none anew; asks only the questions that make"
    " floors, and keeps what was measured on test data"
)
OWN = (
    "file with your own questions, or with --task labelled texts: certify the published variants on them, without a"
    " study"
)
GROUP = "with --task: column of what texts have in common, such as an article"
ALLOW_CONSTANT = "also publish variants that are no better than always answering 'no answer', to try the pipeline"


RUN_DIR = (
    "run folder; default: runs/<name of the study>. Or the URL of a store, such as s3://bucket/mine: the"
    " work is then done in runs/mine, and kept there"
)


def run_folder(name: str) -> Path:
    """Return the folder that --run-dir names, which may be kept in a store."""
    return _attached(name, Path("runs"))


def data_folder(name: str) -> Path:
    return _attached(name, Path("runs") / "data")


def _attached(name: str, local: Path) -> Path:
    if not store.is_url(name):
        return Path(name)
    try:
        folder = local / store.name_of(name)
        store.attach(name, folder)
    except store.StoreError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    return folder


def study_options() -> argparse.ArgumentParser:
    """Return the options that all study commands share."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--study", type=Path, default=configs.DEFAULT_STUDY, help="study file (TOML)"
    )
    options.add_argument(
        "--data-dir",
        type=data_folder,
        default=Path("data"),
        help="folder of the question sets, or its URL in a store; default: data",
    )
    options.add_argument("--run-dir", type=run_folder, help=RUN_DIR)
    options.add_argument(
        "--teacher",
        action="append",
        help="QA checkpoint of any model family: folder or Hugging Face id; give several times to average",
    )
    options.add_argument(
        "--weights",
        help="checkpoint that the study's models start from when the teacher is not published itself",
    )
    options.add_argument(
        "--backbone",
        help="encoder to train the largest model from: folder, Hugging Face id, minilm or mpnet-base",
    )
    options.add_argument(
        "--model-repository",
        type=Path,
        help="repository to publish to; default: the one of the study file",
    )
    return options


def add(commands: Any, study: argparse.ArgumentParser) -> None:
    """Add the commands; `study`: their options."""
    for name, run, text in (
        ("run", _run, "run every stage of a study and publish the result"),
        ("teacher", _teacher, "fine-tune the largest model, or take the given teacher"),
        (
            "distill",
            _distill,
            "train the elastic student and distil the students that the study file names",
        ),
        ("finish", _finish, "distil the members of the search's Pareto front one by one"),
        ("export", _export, "export and quantize the variants"),
        (
            "certify",
            _certify,
            "certify and show floors: of a published --model-repository, or else of the study's variants",
        ),
        ("publish", _publish, "publish finished variants to a model repository"),
    ):
        command = commands.add_parser(name, parents=[study], help=text, description=text)
        command.set_defaults(run=run)
        if run in (_run, _publish):
            command.add_argument("--allow-dominated", action="store_true", help=ALLOW_DOMINATED)
            command.add_argument("--allow-constant", action="store_true", help=ALLOW_CONSTANT)
            rollouts.add_options(command)
        if run is _run:
            one_call.add_options(command)
        if run is _finish:
            command.add_argument("--storage", help=SHARED)
        if run in (_distill, _finish):
            command.add_argument("--only", action="append", metavar="NAME", help=ONLY)
        if run is _certify:
            command.add_argument("--write", action="store_true", help=WRITE)
            command.add_argument("--keep-plans", action="store_true", help=KEEP_PLANS)
            command.add_argument("--data", type=Path, metavar="FILE", help=OWN)
            command.add_argument(
                "--delta", type=float, help="with --data: 1 - confidence; default: 0.1"
            )
            command.add_argument(
                "--dry-run",
                action="store_true",
                help="with --data: show the floors, do not write them",
            )
            evaluate_labels.add_options(command)
            command.add_argument("--group", help=GROUP)
    _add_search(commands, study)


def _add_search(commands: Any, study: argparse.ArgumentParser) -> None:
    text = "measure latency and size of every shape that a search may try, on this host"
    command = commands.add_parser("costs", parents=[study], help=text, description=text)
    command.add_argument("--storage", help=COST_WORKER)
    command.set_defaults(run=_costs)
    text = "search slices of the elastic students for the best trade-offs of F1, latency and size"
    command = commands.add_parser("search", parents=[study], help=text, description=text)
    command.add_argument(
        "--storage", help="database that several workers share, e.g. postgresql://..."
    )
    command.add_argument(
        "--trials", type=int, help="number of candidates; default: the study file's"
    )
    command.add_argument(
        "--sampler", choices=list(configs.Sampler), help="default: the study file's"
    )
    command.add_argument("--only", action="append", metavar="NAME", help=ONLY_SEARCH)
    latencies = command.add_mutually_exclusive_group()
    latencies.add_argument("--stored-costs", action="store_true", help=STORED)
    latencies.add_argument("--cost-workers", action="store_true", help=COST_WORKERS)
    command.set_defaults(run=_search)


def study_of(args: argparse.Namespace) -> Any:  # a Study
    """Return the study that the options name. Raises: ConfigError."""
    from optimizer.students.study import (
        Study,  # torch takes seconds to import: only where it is needed
    )

    config = configs.read(args.study)
    given = {k: v for k in ("weights", "backbone") if (v := getattr(args, k)) is not None}
    if args.teacher is not None:
        given["teacher"] = args.teacher[0] if len(args.teacher) == 1 else tuple(args.teacher)
    if args.model_repository is not None:
        given["publish"] = config.publish.model_copy(update={"repository": args.model_repository})
    config = configs.with_roles(config, given)
    if config.ignored:
        log.warning("%s", config.ignored)
    log.info("%s", config.roles)
    folder = args.run_dir or Path("runs") / config.name
    same_task.check(folder, config.task)
    return Study(config, args.data_dir, folder)


def question_study_of(args: argparse.Namespace) -> Any:  # a Study
    """Return the study for a command that compares answers to questions. Raises: ConfigError."""
    study = study_of(args)
    if study.config.task is not None:
        raise configs.ConfigError(
            f"{args.study}: classifies ([task] {study.config.task.name}); this command compares answers to questions"
        )
    return study


def _run(args: argparse.Namespace) -> dict[str, Any]:
    terms = rollouts.terms_of(args)  # a mistake in them should not show after hours
    if not one_call.is_wanted(args):
        rollouts.check_task(terms, configs.read(args.study))
        return _run_stages(args, lambda _: nullcontext())
    call = one_call.prepared(args)
    if args.dry_run:
        return call.plain
    floors = _run_stages(call.args, call.timed)
    return {"floors": floors, "stages": one_call.finished(call)}


def _run_stages(
    args: argparse.Namespace, timed: Callable[[str], AbstractContextManager[None]]
) -> dict[str, Any]:
    """Run the stages that a study file asks for, each inside `timed`; return what was published."""
    config = configs.read(args.study)
    wanted = {
        "teacher": _teacher,
        "distill": _distill,
        **({"search": _search} if config.search else {}),
        **({"finish": _finish} if config.finish else {}),
        "publish": _publish,
    }
    found: dict[str, Any] = {}
    for name, stage in wanted.items():
        with timed(name):
            found = stage(args)
    return found


def _teacher(args: argparse.Namespace) -> dict[str, Any]:
    study = study_of(args)
    _check_elastic(study)
    _check_target(study)
    with workers.working():
        found = study.largest.train()
    return _show_training({study.config.largest_name: found})


def _distill(args: argparse.Namespace) -> dict[str, Any]:
    study = study_of(args)
    _check_elastic(study)
    names = [*study.elastics, *(s.name for s in study.config.students)]
    only = _only(args, names, "student")
    asked = getattr(args, "only", None) or study.sliced
    with workers.working():
        study.largest.train()
        for name, elastic in study.elastics.items():
            if name in only and name in asked:
                elastic.train()
        found = {s.name: study.train_student(s) for s in study.config.students if s.name in only}
    return _show_training(found)


def _only(args: argparse.Namespace, known: Collection[str], kind: str) -> Collection[str]:
    """Return the names that --only picks, by default all. Raises: ConfigError for an unknown one."""
    only = getattr(args, "only", None)
    if unknown := sorted(set(only or ()) - set(known)):
        raise configs.ConfigError(
            f"--only {unknown[0]}: no such {kind}; there are: {', '.join(known) or 'none'}"
        )
    return known if only is None else only


def _check_elastic(study: Any) -> None:
    """Raises: ModelError for a fault that would otherwise show only after the teacher is trained."""
    for elastic in study.elastics.values():
        elastic.check()


def _check_target(study: Any) -> None:
    """Raises: RepositoryError for what publishing would refuse after hours of training."""
    from optimizer.publish import publication

    publication.check_target(study, study.config.publish.repository)


def _costs(args: argparse.Namespace) -> dict[str, Any] | None:
    from optimizer.search import cost_queue, costs, stage

    if args.storage is None:
        return stage.measure_costs(study_of(args))
    with cost_queue.opened(args.storage, configs.read(args.study).name) as queue:
        costs.serve(queue)
    return None


def _search(args: argparse.Namespace) -> dict[str, Any]:
    from optimizer.search import stage
    from optimizer.search.watched_limits import WatchedLimits

    study = study_of(args)
    given = {k: v for k in ("trials", "sampler") if (v := getattr(args, k, None)) is not None}
    how = configs.with_changes(study.config.search or configs.SearchConfig(), given)
    study = replace(study, config=study.config.model_copy(update={"search": how}))
    stage.how_of(study)
    only = _only(args, study.elastics, "elastic student")
    results = {}
    with _cost_queue(args, study.config.name) as queue:
        for name, elastic in study.elastics.items():
            if name not in only:
                continue
            found = stage.run(
                study,
                getattr(args, "storage", None),
                elastic,
                elsewhere=getattr(args, "stored_costs", False),
                queue=queue,
                limits=WatchedLimits(args.study),
            )
            Console().print(stage.table_of(found))
            if said := stage.nothing_found(found):
                Console(stderr=True).print(said, highlight=False)
            results[name] = stage.gist(found)
    return next(iter(results.values())) if len(results) == 1 else results


def _cost_queue(args: argparse.Namespace, study: str) -> AbstractContextManager[Any]:
    """Return the queue of the study's cost workers; None: there are none. Raises: ConfigError."""
    from optimizer.search import cost_queue

    if not getattr(args, "cost_workers", False):
        return nullcontext()
    if args.storage is None:
        raise configs.ConfigError(
            "--cost-workers: needs --storage, the database that the cost workers look into"
        )
    return cost_queue.opened(args.storage, study)


def _finish(args: argparse.Namespace) -> dict[str, Any]:
    from optimizer.data.question_sets import Split
    from optimizer.search import storage
    from optimizer.students import finish
    from optimizer.students.exported import Exported

    study = study_of(args)
    finish.check(study.members, study.folder, study.config.elastic)
    only = _only(args, study.members, "member of a Pareto front")
    examples = study.questions.certifying(Split.SEARCH)
    found = []
    claims = storage.claims(getattr(args, "storage", None), study.folder / "students")
    with workers.working(), claims as claim:
        wanted = [name for name in study.members if name in only]
        for name in workers.in_any_order(wanted, claim):
            config, slice_f1 = study.members[name]
            study.train_student(config)
            f1 = finish.f1_of(examples, Exported(study, name).readings("search", examples))
            found.append(finish.Finished(name, slice_f1, f1))
    before = "F1 in the search" if study.config.trains_candidates else "F1 as a slice"
    table = Table("variant", before, "F1 finished", title="F1 on the search split")
    for member in found:
        table.add_row(member.name, f"{member.slice_f1:.3f}", f"{member.f1:.3f}")
    Console().print(table)
    members = {member.name: member.f1 for member in found}
    return {"members": members, "rank_correlation": finish.rank_correlation(found)}


def _show_training(results: dict[str, Any]) -> dict[str, Any]:
    table = Table("model", "parameters", "final loss")
    for name, found in results.items():
        loss = "-" if found["final_loss"] is None else f"{found['final_loss']:.3f}"
        table.add_row(name, f"{found['parameters'] / 1e6:.1f} M", loss)
    if results:
        Console().print(table)
    return results


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from optimizer.students.exported import Exported

    study = study_of(args)
    results = {name: Exported(study, name).export() for name in study.variant_names}
    table = Table("variant", "MB", "parameters", "batch variance", "operators")
    for name, found in results.items():
        operators = ", ".join(f"{n} {op}" for op, n in sorted(found["operators"].items()))
        table.add_row(
            name,
            f"{found['size_bytes'] / 1e6:.1f}",
            f"{found['parameters'] / 1e6:.1f} M",
            f"{found['batch_variance']:.4f}",
            operators,
        )
    Console().print(table)
    return results


def _certify(args: argparse.Namespace) -> dict[str, Any]:
    if args.data is not None:
        from optimizer.cli import own

        return own.certify(args)
    if args.task:
        raise configs.ConfigError("--task needs --data; a study file names its own task")
    if args.model_repository is not None:
        return _certify_published(args)
    if args.write or args.keep_plans:
        raise configs.ConfigError(
            "--write and --keep-plans need --model-repository: the repository to certify"
        )
    from optimizer.publish import publication

    study = study_of(args)
    target = study.config.publish.repository
    catalog = publication.catalog_of(study, target)
    _note_look(target, catalog)
    tables.show_catalog(catalog)
    result = tables.show_certificates(catalog)
    if unmet := checks.unmet(catalog, study.config.certify.min_floor):
        raise publication.NothingToPublish(unmet)
    return result


def _certify_published(args: argparse.Namespace) -> dict[str, Any]:
    from optimizer.publish import recertify

    config, published = configs.read(args.study), args.model_repository
    folder = args.run_dir or Path("runs") / config.name
    if args.keep_plans:
        catalog = recertify.certify_as_they_are(published, config, args.data_dir, folder)
        result = tables.show_certificates(catalog)
    else:
        catalog, rated = recertify.certify(published, config, args.data_dir, folder)
        tables.show_certificates(catalog)
        result = tables.show_plans(rated)
    if not args.write:
        _note_look(published, catalog)
    else:
        recertify.write(published, catalog)
        Console().print(
            f"{published}: catalog written; undo with 'bertier-optimize rollback'", markup=False
        )
    return result


def _note_look(published: Path, catalog: Catalog) -> None:
    """Record the look at the data in the existing catalog although nothing is published."""
    if (published / catalogs.CATALOG).exists():
        catalogs.note_looks(published, catalog.looks)


def _publish(args: argparse.Namespace) -> dict[str, Any]:
    from optimizer.publish import publication

    terms = rollouts.terms_of(args)
    study = study_of(args)
    rollouts.check_task(terms, study.config)
    how = study.config.publish
    catalog = publication.publish(
        study,
        how.repository,
        terms,
        allow_dominated=how.allow_dominated or args.allow_dominated,
        allow_constant=how.allow_constant or args.allow_constant,
    )
    return tables.show_catalog(catalog)
