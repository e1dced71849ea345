"""`bertier`: serve, triton, ask, classify, plan, variants, state, validate, keys. Parses flags and prints; decides nothing.

Exit code 0: success; 1: failure, with one line on stderr; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gateway import settings
from gateway.catalog import store
from gateway.catalog.store import Catalog
from gateway.cli import client, keys, tables
from gateway.cli.client import EmbeddedGateway, HttpGateway, Json
from gateway.domain import SloPolicy
from gateway.errors import BackendUnavailable, BertierError
from gateway.settings_errors import CLIENTS_KEY

URL = "http://127.0.0.1:8080"
LOADING = (
    "loading the models in this process; the first time on a host their latency is measured, too"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    flags = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = flags.run
    try:
        return run(flags)
    except BertierError as exc:
        print(f"bertier: {' '.join(str(exc).split())}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `bertier variants | head`
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return 130


def serve(flags: argparse.Namespace) -> int:
    from gateway import app, workers

    chosen = _settings(flags)
    n = workers.count(chosen)
    if n > 1:
        from gateway.workers import parent

        return parent.serve(chosen.model_copy(update={"workers": n}))
    return app.serve(chosen.model_copy(update={"workers": 1}))


def triton(flags: argparse.Namespace) -> int:
    from gateway.observability import logs
    from gateway.triton_server.installation import find_installation
    from gateway.triton_server.process import TritonOptions
    from gateway.triton_server.supervisor import check_ports, run_foreground

    chosen = _settings(flags)
    logs.set_up(chosen.log_level, chosen.log_format)
    installation = find_installation()
    if installation is None:
        raise BackendUnavailable(
            "no Triton was found on this host; install it with 'make run' or put tritonserver on"
            " PATH, or serve without one: 'bertier serve --backend embedded'"
        )
    options = TritonOptions(
        model_repository=chosen.model_repository,
        http_port=chosen.triton_http_port,
        grpc_port=chosen.triton_grpc_port,
        metrics_port=chosen.triton_metrics_port,
        host=chosen.host,
    )
    check_ports(options)
    run_foreground(installation, options, chosen.triton_start_timeout_ms)
    return 0


def ask(flags: argparse.Namespace) -> int:
    context = client.read_context(flags.context, sys.stdin.read)
    body = {"question": flags.question, "context": context, "top_k": flags.top_k}
    explain = "1" if flags.explain or not flags.json else None
    reply = _gateway(flags).answer(body, _slo_headers(flags, explain))
    if flags.json:
        print(json.dumps(reply, ensure_ascii=False))
    else:
        tables.show_answer(reply)
    return 0


def classify(flags: argparse.Namespace) -> int:
    given = {"text": flags.text, "text_pair": flags.text_pair, "task": flags.task}
    body = {name: value for name, value in given.items() if value is not None}
    explain = "1" if flags.explain or not flags.json else None
    reply = _gateway(flags).classify(body, _slo_headers(flags, explain))
    if flags.json:
        print(json.dumps(reply, ensure_ascii=False))
    else:
        tables.show_classification(reply)
    return 0


def plan(flags: argparse.Namespace) -> int:
    given = {"n_tokens": flags.tokens, "task": flags.task}
    body = {name: value for name, value in given.items() if value is not None}
    reply = _gateway(flags).plan(body, _slo_headers(flags, None))
    if flags.json:
        print(json.dumps(reply, ensure_ascii=False))
    else:
        tables.show_plan(reply)
    return 0 if reply["feasible"] else 1


def variants(flags: argparse.Namespace) -> int:
    try:
        if flags.model_repository is not None:
            raise BackendUnavailable("a repository was asked for, not a gateway")
        reply, source = _http(flags).variants(), flags.url or URL
    except BackendUnavailable:
        if flags.url is not None and flags.model_repository is None:
            raise
        repository = _settings(flags).model_repository
        reply, source = _unserved_catalog(store.read(repository)), str(repository)
    if flags.json:
        print(json.dumps(reply, ensure_ascii=False))
    else:
        tables.show_variants(reply, source)
    return 0


def state(flags: argparse.Namespace) -> int:
    reply = _http(flags).state()
    if flags.json:
        print(json.dumps(reply))
    else:
        tables.show_state(reply)
    return 0


def validate(flags: argparse.Namespace) -> int:
    from gateway.lifecycle.validation import validate as check

    settings = _settings(flags)
    repository = flags.repository or settings.model_repository
    finding = check(repository, settings)
    for problem in finding.problems:
        print(problem)
    if finding.problems:
        n, s = len(finding.problems), "" if len(finding.problems) == 1 else "s"
        print(f"bertier: {repository}: {n} problem{s} found", file=sys.stderr)
        return 1
    states = ", ".join(f"{name} {trust}" for name, trust in finding.trust.items())
    print(f"{repository}: good; {states}")
    return 0


def serve_flags() -> frozenset[str]:
    """Return the options of `bertier serve`, for its documentation."""
    serving = argparse.ArgumentParser().add_subparsers()
    _add_serve(serving)
    options = serving.choices["serve"]._actions  # noqa: SLF001 (argparse has no public list)
    return frozenset(option for action in options for option in action.option_strings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "bertier", description="Answers from the smallest BERT that meets each request's SLO."
    )
    parser.add_argument("--version", action="version", version=f"bertier {version('bertier')}")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_serve(commands)
    _add_ask(commands)
    _add_classify(commands)
    _add_plan(commands)
    command = _add(commands, "variants", variants, "show the models that are served")
    _add_source(command)
    command = _add(commands, "state", state, "show queues, predictions, breakers, budgets, caches")
    command.add_argument("--url", help=f"a gateway's operations port, or itself ({URL})")
    command.add_argument("--authority", type=Path, metavar="PEM", help="as for ask")
    command.add_argument(
        "--api-key", metavar="KEY", help=f"with the scope metrics; else {CLIENTS_KEY}"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command = _add(commands, "validate", validate, "check a model repository")
    command.add_argument("repository", nargs="?", type=Path, metavar="REPO")
    keys.add(commands, _add)
    return parser


def _add(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], what: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what)
    command.set_defaults(run=run)
    return command


def _add_serve(commands: Any) -> None:
    command = _add(commands, "serve", serve, "answer questions over HTTP and gRPC")
    command.add_argument("--http-port", type=int)
    command.add_argument("--api-keys-file", type=Path, metavar="FILE", help="TOML file of API keys")
    command.add_argument("--tls-certificate", type=Path, metavar="PEM", help="serve over TLS")
    command.add_argument("--tls-key", type=Path, metavar="PEM", help="its private key")
    command.add_argument(
        "--tls-client-authority", type=Path, metavar="PEM", help="require client certificates"
    )
    command.add_argument("--grpc-port", type=int)
    command.add_argument("--uds", type=Path, metavar="PATH", help="Unix socket for HTTP")
    command.add_argument("--root-path", metavar="PATH", help="path of the gateway behind a proxy")
    command.add_argument("--metrics-port", type=int, help="separate port for /metrics")
    command.add_argument("--decisions-file", type=Path, metavar="FILE", help="record decisions")
    command.add_argument("--workers", metavar="N", help="processes that answer, or auto (1)")
    command.add_argument("--backend", choices=("auto", "triton", "embedded"))
    command.add_argument(
        "--triton-url",
        action="append",
        metavar="HOST:PORT",
        help="gRPC address of a running Triton; for several repeat the flag or use commas",
    )
    _add_triton_flags(command)
    _add_triton_flags(_add(commands, "triton", triton, "run Triton alone, in the foreground"))


def _add_triton_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", help="address to listen on (127.0.0.1)")
    command.add_argument("--model-repository", type=Path, metavar="DIR")
    for protocol in ("http", "grpc", "metrics"):
        command.add_argument(f"--triton-{protocol}-port", type=int, metavar="PORT")
    command.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    command.add_argument("--log-format", choices=("console", "json"))


def _add_ask(commands: Any) -> None:
    command = _add(commands, "ask", ask, "ask one question")
    command.add_argument("question")
    command.add_argument("--context", required=True, metavar="FILE|-|TEXT")
    command.add_argument("--top-k", type=int, default=1)
    command.add_argument("--variant", help="pin one variant")
    command.add_argument(
        "--explain", action="store_true", help="include the whole decision in the JSON"
    )
    _add_slo(command)
    _add_source(command)
    command.add_argument("--embedded", action="store_true", help="answer in this process")


def _add_classify(commands: Any) -> None:
    command = _add(commands, "classify", classify, "classify a text, or a pair of texts")
    command.add_argument("text")
    command.add_argument("text_pair", nargs="?", help="of a task that has pairs")
    command.add_argument("--task", help="a classification (default: the only one)")
    command.add_argument("--variant", help="pin one variant")
    command.add_argument(
        "--explain", action="store_true", help="include the whole decision in the JSON"
    )
    _add_slo(command)
    _add_source(command)
    command.add_argument("--embedded", action="store_true", help="classify in this process")


def _add_plan(commands: Any) -> None:
    command = _add(commands, "plan", plan, "show what an SLO would get now")
    command.add_argument("--tokens", type=int, help="length of question and context")
    command.add_argument("--task", help="a classification (default: question answering)")
    command.add_argument("--variant", help="pin one variant")
    _add_slo(command)
    _add_source(command)
    command.add_argument("--embedded", action="store_true", help="plan in this process")


def _add_slo(command: argparse.ArgumentParser) -> None:
    command.add_argument("--latency-ms", metavar="MS", help="end to end, 1 to 60000")
    command.add_argument("--min-f1", metavar="F1", help="floor on the certified F1, 0 to 1")
    command.add_argument(
        "--max-f1-loss", metavar="F1", help="certified loss to the largest variant, at most"
    )
    command.add_argument(
        "--min-answerable-f1", metavar="F1", help="the same for questions that have an answer"
    )
    command.add_argument("--class", dest="slo_class", help="interactive, standard, batch, ...")
    command.add_argument("--policy", choices=tuple(SloPolicy))


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url", help=f"URL of the gateway (default: {URL})")
    command.add_argument(
        "--authority", type=Path, metavar="PEM", help="authority that signed its certificate"
    )
    command.add_argument("--model-repository", type=Path, metavar="DIR")
    command.add_argument("--api-key", metavar="KEY", help=f"API key (default: {CLIENTS_KEY})")
    command.add_argument("--json", action="store_true", help="print JSON")


def _settings(flags: argparse.Namespace) -> settings.Settings:
    known = settings.Settings.model_fields
    return settings.read(**{name: value for name, value in vars(flags).items() if name in known})


def _gateway(flags: argparse.Namespace) -> HttpGateway | EmbeddedGateway:
    if flags.embedded or flags.model_repository is not None:
        print(LOADING, file=sys.stderr)
        return EmbeddedGateway(_settings(flags).model_repository)
    return _http(flags)


def _http(flags: argparse.Namespace) -> HttpGateway:
    key = flags.api_key or os.environ.get(CLIENTS_KEY)
    return HttpGateway(flags.url or URL, key, flags.authority)


def _slo_headers(flags: argparse.Namespace, explain: str | None) -> dict[str, str]:
    return client.headers_of(
        latency_ms=flags.latency_ms,
        min_f1=flags.min_f1,
        max_f1_loss=flags.max_f1_loss,
        min_answerable_f1=flags.min_answerable_f1,
        slo_class=flags.slo_class,
        policy=flags.policy,
        variant=flags.variant,
        explain=explain,
    )


def _unserved_catalog(catalog: Catalog) -> Json:
    """Return a catalog in the form of /v1/variants, for a repository that no gateway serves."""
    reply: Json = json.loads(json.dumps(asdict(catalog)))
    for variant in reply["variants"]:
        variant |= {"served": None, "trust": None, "problem": None}
    return reply


if __name__ == "__main__":
    raise SystemExit(main())
