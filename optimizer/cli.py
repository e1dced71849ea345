"""`bertier-optimize`: train, distil, export, certify, publish, evaluate. Every stage resumes."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway import catalog as catalogs
from gateway.catalog import Catalog
from gateway.errors import BertierError
from optimizer import (
    cli_tables,
    compare_cli,
    data,
    engines_cli,
    evaluate,
    gates,
    remote,
    report,
    repository,
    workers,
)
from optimizer import config as configs

STUDY = Path(__file__).parent / "studies" / "default.toml"
REPOSITORY = Path("model_repository")
ALLOW_DOMINATED = "publish variants, too, that another beats in latency, size and floor"
log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 done, 1 failed, 2 wrong usage."""
    args = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    try:
        result = args.run(args)
    except BertierError as exc:
        print(f"bertier-optimize: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bertier-optimize: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(json.dumps(result, sort_keys=True, default=str))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("bertier-optimize", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    study = _study_options()
    for name, run, text in (
        ("run", _run, "every stage of a study, then publish"),
        ("teacher", _teacher, "fine-tune the teacher"),
        ("distill", _distill, "distil the students"),
        ("finish", _finish, "distil members of the search's front on their own"),
        ("export", _export, "export and quantize the variants"),
        ("certify", _certify, "show each variant's floor, without publishing"),
        ("publish", _publish, "publish finished variants to a model repository"),
    ):
        command = commands.add_parser(name, parents=[study], help=text, description=text)
        command.set_defaults(run=run)
        if run in (_run, _publish):
            command.add_argument("--allow-dominated", action="store_true", help=ALLOW_DOMINATED)
    _add_search(commands, study)
    _add_profile(commands)
    _add_evaluate(commands)
    _add_rollback(commands)
    _add_report(commands)
    compare_cli.add(commands, study, _study)
    engines_cli.add(commands)
    return parser


def _study_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--study", type=Path, default=STUDY, help="study file (TOML)")
    options.add_argument("--data-dir", type=Path, default=Path("data"), help="of the question sets")
    options.add_argument("--run-dir", type=Path, help="default: runs/<name of the study>")
    options.add_argument("--teacher", help="finished QA checkpoint: folder or Hugging Face id")
    options.add_argument("--backbone", help="encoder to start from: folder or Hugging Face id")
    options.add_argument(
        "--model-repository", type=Path, help="to publish to; default: the study's"
    )
    return options


def _add_search(commands: Any, study: argparse.ArgumentParser) -> None:
    text = "search the elastic student's slices for the best of F1, latency and size"
    command = commands.add_parser("search", parents=[study], help=text, description=text)
    command.add_argument("--storage", help="database many workers share, e.g. postgresql://...")
    command.add_argument("--trials", type=int, help="candidates; in place of the study file's")
    command.add_argument("--sampler", choices=list(configs.Sampler), help="likewise")
    command.set_defaults(run=_search)


def _add_profile(commands: Any) -> None:
    text = "measure the published variants' latency on this host again"
    command = commands.add_parser("profile", help=text, description=text)
    command.add_argument("--model-repository", type=Path, default=REPOSITORY)
    command.set_defaults(run=_profile)


def _add_evaluate(commands: Any) -> None:
    text = "EM and F1 by the SQuAD 2.0 rule, of a repository's variants or of a running gateway"
    command = commands.add_parser("evaluate", help=text, description=text)
    command.add_argument("--data", required=True, help="SQuAD-format file, or squad_v2_dev etc.")
    command.add_argument("--variant", help="only this one; with --url: pinned by SLO-Variant")
    command.add_argument("--url", help="ask the gateway there, e.g. http://127.0.0.1:8080")
    command.add_argument("--slo-class", help="with --url: SLO-Class of every request")
    command.add_argument("--concurrency", type=int, default=4, help="with --url")
    command.add_argument("--limit", type=int, help="only the first questions")
    command.add_argument("--predictions", type=Path, help="write id -> answer as JSON")
    command.add_argument("--model-repository", type=Path, default=REPOSITORY)
    command.set_defaults(run=_evaluate)


def _add_rollback(commands: Any) -> None:
    text = "put the catalog before the last publication back"
    command = commands.add_parser("rollback", help=text, description=text)
    command.add_argument("--model-repository", type=Path, default=REPOSITORY)
    command.set_defaults(run=_rollback)


def _add_report(commands: Any) -> None:
    text = "show a study as one HTML page that opens from disk"
    command = commands.add_parser("report", help=text, description=text)
    command.add_argument("--study", type=Path, default=STUDY, help="study file (TOML)")
    command.add_argument("--run-dir", type=Path, help="default: runs/<name of the study>")
    command.add_argument("--model-repository", type=Path, help="default: the study's")
    command.add_argument("--output", type=Path, default=Path("report.html"))
    command.add_argument("--baseline", type=Path, help="catalog.json of what was published before")
    command.set_defaults(run=_report)


def _study(args: argparse.Namespace) -> Any:
    from optimizer.study import Study  # torch takes seconds to import: only where it is needed

    config = configs.read(args.study)
    given = {k: v for k in ("teacher", "backbone") if (v := getattr(args, k)) is not None}
    if args.model_repository is not None:
        given["publish"] = config.publish.model_copy(update={"repository": args.model_repository})
    config = config.model_copy(update=given)
    return Study(config, args.data_dir, args.run_dir or Path("runs") / config.name)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    _teacher(args)
    _distill(args)
    config = configs.read(args.study)
    if config.search:
        _search(args)
    if config.finish:
        _finish(args)
    return _publish(args)


def _teacher(args: argparse.Namespace) -> dict[str, Any]:
    study = _study(args)
    with workers.working():
        found = study.train_teacher()
    return _show_training({study.config.teacher_name: found})


def _distill(args: argparse.Namespace) -> dict[str, Any]:
    study = _study(args)
    with workers.working():
        study.train_teacher()
        if study.config.elastic:
            study.train_elastic(study.config.elastic)
        found = {s.name: study.train_student(s) for s in study.config.students}
    return _show_training(found)


def _search(args: argparse.Namespace) -> dict[str, Any]:
    from optimizer import search_stage

    study = _study(args)
    given = {k: v for k in ("trials", "sampler") if (v := getattr(args, k, None)) is not None}
    how = configs.with_changes(study.config.search or configs.SearchConfig(), given)
    study = replace(study, config=study.config.model_copy(update={"search": how}))
    found = search_stage.run(study, getattr(args, "storage", None))
    Console().print(search_stage.table_of(found))
    if said := search_stage.nothing_found(found):
        Console(stderr=True).print(said, highlight=False)
    return search_stage.gist(found)


def _finish(args: argparse.Namespace) -> dict[str, Any]:
    from optimizer import finish
    from optimizer.data import Split

    study = _study(args)
    finish.check(study.members, study.front_file)
    examples = study.certifying(Split.SEARCH)
    found = []
    with workers.working():
        for name, (config, slice_f1) in study.members.items():
            study.train_student(config)
            f1 = finish.f1_of(examples, study.readings(name, "search", examples))
            found.append(finish.Finished(name, slice_f1, f1))
    table = Table("finished", "F1 as a slice", "F1 finished", title="on the search split")
    for member in found:
        table.add_row(member.name, f"{member.slice_f1:.3f}", f"{member.f1:.3f}")
    Console().print(table)
    members = {member.name: member.f1 for member in found}
    return {"members": members, "rank_correlation": finish.rank_correlation(found)}


def _show_training(results: dict[str, Any]) -> dict[str, Any]:
    table = Table("trained", "parameters", "final loss")
    for name, found in results.items():
        loss = "-" if found["final_loss"] is None else f"{found['final_loss']:.3f}"
        table.add_row(name, f"{found['parameters'] / 1e6:.1f} M", loss)
    Console().print(table)
    return results


def _export(args: argparse.Namespace) -> dict[str, Any]:
    study = _study(args)
    results = {name: study.export(name) for name in study.variant_names}
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
    from optimizer import publication

    study = _study(args)
    catalog = publication.catalog_of(study, study.config.publish.repository)
    _show(catalog)
    result = cli_tables.show_certificates(catalog)
    if unmet := gates.unmet(catalog, study.config.certify.min_floor):
        raise publication.NothingToPublish(unmet)
    return result


def _publish(args: argparse.Namespace) -> dict[str, Any]:
    from optimizer import publication

    study = _study(args)
    how = study.config.publish
    allowed = how.allow_dominated or args.allow_dominated
    return _show(publication.publish(study, how.repository, allow_dominated=allowed))


def _profile(args: argparse.Namespace) -> dict[str, Any]:
    from optimizer import publication

    catalog = publication.reprofiled(args.model_repository)
    catalogs.write(args.model_repository, catalog)
    return _show(catalog)


def _rollback(args: argparse.Namespace) -> dict[str, Any]:
    return _show(repository.rollback(args.model_repository))


def _report(args: argparse.Namespace) -> dict[str, Any]:
    from optimizer.page import sections

    config = configs.read(args.study)
    run_dir = args.run_dir or Path("runs") / config.name
    published = args.model_repository or config.publish.repository
    inputs = report.read(config, run_dir, published, args.baseline)
    size_bytes = report.write(sections.page(inputs), args.output)
    Console().print(f"{args.output}: {size_bytes / 1e3:.0f} kB; open it in a browser", markup=False)
    return {"output": str(args.output), "size_bytes": size_bytes, "trials": len(inputs.trials)}


def _show(catalog: Catalog) -> dict[str, Any]:
    """Print the catalog as a table and return its gist."""
    columns = ("variant", "version", "MB", "ms p50 128", "ms p95 384", "F1", "forced", "floor")
    table = Table(*columns)
    for variant, plan in zip(catalog.variants, catalog.plans, strict=True):
        quality, profile = variant.quality[-1], variant.profile
        table.add_row(
            variant.name,
            str(variant.version),
            f"{variant.size_bytes / 1e6:.1f}",
            f"{profile.cell(128).p50_ms:.1f}",
            f"{profile.cell(384).p95_ms:.1f}",
            f"{quality.f1:.3f} ({quality.data})",
            "-" if quality.forced_f1 is None else f"{quality.forced_f1:.3f}",
            f"{plan.certified_f1:.3f}",
        )
    Console().print(table)
    return {plan.name: plan.certified_f1 for plan in catalog.plans}


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
    examples = data.load(args.data)[: args.limit]
    if not examples:
        raise data.DataError(f"{args.data}: holds no question")
    if args.url:
        answers = {args.url: _ask_gateway(args, examples)}
        forced: dict[str, evaluate.Scores] = {}
    else:
        answers, forced = _ask_variants(args, examples)
    if args.predictions:
        written = {
            n: dict(zip((e.id for e in examples), a, strict=True)) for n, a in answers.items()
        }
        args.predictions.write_text(json.dumps(written, ensure_ascii=False, indent=1))
    scores = {name: evaluate.score(examples, found) for name, found in answers.items()}
    _print_scores(scores, forced)
    return {name: evaluate.as_dict(s, forced.get(name)) for name, s in scores.items()}


def _ask_gateway(args: argparse.Namespace, examples: Sequence[data.Example]) -> list[str]:
    headers = {"SLO-Latency-Ms": "60000"}
    if args.variant:
        headers["SLO-Variant"] = args.variant
    if args.slo_class:
        headers = headers | {"SLO-Class": args.slo_class}
        headers.pop("SLO-Latency-Ms")
    try:
        return asyncio.run(remote.ask_all(args.url, examples, headers, args.concurrency))
    except ExceptionGroup as group:  # not except*: it would wrap what is raised, before 3.11.4
        raise next(_leaves(group)) from group


def _leaves(group: ExceptionGroup[Any]) -> Any:
    for exc in group.exceptions:
        yield from _leaves(exc) if isinstance(exc, ExceptionGroup) else (exc,)


def _ask_variants(
    args: argparse.Namespace, examples: Sequence[data.Example]
) -> tuple[dict[str, list[str]], dict[str, evaluate.Scores]]:
    """Return every variant's answers, and its scores when the best span is always given."""
    repo: Path = args.model_repository
    catalog = catalogs.read(repo)
    chosen = [v for v in catalog.variants if args.variant in (None, v.name)]
    if not chosen:
        known = ", ".join(v.name for v in catalog.variants)
        raise data.DataError(f"--variant {args.variant}: not in {repo}; it has {known}")
    answers, forced = {}, {}
    answerable = [i for i, e in enumerate(examples) if e.answerable]
    for variant in chosen:
        model = catalogs.model_path(repo, variant)
        readings = evaluate.read_all(model, repo / catalogs.TOKENIZER, examples)
        answers[variant.name] = evaluate.answers_of(readings, variant.decoding)
        best = evaluate.forced_answers(readings)
        forced[variant.name] = evaluate.score(
            [examples[i] for i in answerable], [best[i] for i in answerable]
        )
    return answers, forced


def _print_scores(scores: dict[str, evaluate.Scores], forced: dict[str, evaluate.Scores]) -> None:
    table = Table("", "n", "EM", "F1", "HasAns n", "HasAns F1", "NoAns n", "NoAns F1", "forced F1")
    for name, s in scores.items():
        forced_f1 = f"{100 * forced[name].f1:.1f}" if name in forced else "-"
        table.add_row(
            name,
            str(s.n),
            f"{100 * s.exact:.1f}",
            f"{100 * s.f1:.1f}",
            str(s.has_answer_n),
            f"{100 * s.has_answer_f1:.1f}",
            str(s.no_answer_n),
            f"{100 * s.no_answer_f1:.1f}",
            forced_f1,
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
