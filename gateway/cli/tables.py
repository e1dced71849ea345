"""The tables that `bertier` prints: an answer or a label and its decision, a plan, the variants."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from gateway.catalog.schema import ANSWERABLE, QA, UNANSWERABLE
from gateway.cli.client import Json

PIPED_WIDTH = 160  # characters, where no terminal says how many there are
TYPICAL_BUCKETS = (128, 384)  # the lengths whose latency is shown


def show_answer(reply: Json) -> None:
    answer = reply["answer"] or "(no answer in this context)"
    where = "" if reply["start"] is None else f", characters {reply['start']} to {reply['end']}"
    score = f"score {reply['score']:.2f}, unanswerable {reply['no_answer_probability']:.2f}{where}"
    others = [(other["probability"], other["answer"]) for other in reply["alternatives"]]
    _show_served(reply, answer, score, others)


def show_classification(reply: Json) -> None:
    score = f"score {reply['score']:.2f}, task {reply['task']}"
    others = [(each["probability"], each["label"]) for each in reply["scores"]]
    _show_served(reply, reply["label"], score, others)


def _show_served(reply: Json, answer: str, score: str, others: Sequence[tuple[float, str]]) -> None:
    """Print an answer, its score, the others by probability, and the decision."""
    slo, explain = reply["slo"], reply["explain"]
    by = f"by {reply['variant']} ({explain['reason']}): F1 >= {slo['certified_f1']:.3f}"
    lines = (
        score,
        f"{by}, predicted {slo['predicted_ms']:.1f} ms",
        f"SLO: {_describe_slo(slo)}; met: {slo['met']}",
    )
    console = _console()
    console.print(Text(answer, style="bold"), *(Text(line) for line in lines), sep="\n")
    for probability, text in others:
        console.print(Text(f"  {probability:.2f}  {text}"))
    console.print(_options_table(explain["options"]))


def show_plan(reply: Json) -> None:
    slo, console = reply["slo"], _console()
    verdict = (
        f"{reply['plan']} meets it" if reply["feasible"] else f"{reply['plan'] or 'nothing'} now"
    )
    violations = f", but {', '.join(reply['violations'])}" if reply["violations"] else ""
    console.print(Text(f"{_describe_slo(slo)}: {verdict}{violations} ({reply['reason']})"))
    console.print(_options_table(reply["options"]))
    near = [
        f"{p['plan']}: {p['idle_ms']:.1f} ms at F1 {p['certified_f1']:.3f}"
        for p in reply["nearest"]
    ]
    console.print(Text("feasible when idle: " + "; ".join(near)))


def _options_table(options: Sequence[Json]) -> Table:
    table = _table("plan", "F1 >=", "F1 loss <=", "now ms", "idle ms", "cost ms", "trust", "")
    for option in sorted(options, key=lambda o: float(o["cost_ms"])):
        table.add_row(
            option["plan"],
            f"{option['certified_f1']:.3f}",
            "-" if (loss := option.get("certified_f1_loss")) is None else f"{loss:.3f}",
            *(f"{option[name]:.1f}" for name in ("predicted_ms", "idle_ms", "cost_ms")),
            option["trust"],
            _why(option),
        )
    return table


def _why(option: Json) -> str:
    """Return why a candidate was rejected, or that it was chosen, or that it only costs more."""
    said = ["chosen"] * option["chosen"] + option["rejection_reasons"]
    return ", ".join(said) or "costs more"


def _describe_slo(slo: Json) -> str:
    loss = slo.get("max_f1_loss")
    paired = "" if loss is None else f", at most {loss:.3f} below the largest's"
    kind = slo.get("min_answerable_f1")
    answerable = "" if kind is None else f", >= {kind:.3f} of questions with an answer"
    return (
        f"{slo['latency_ms']:g} ms at F1 >= {slo['min_f1']:.3f}{answerable}{paired}"
        f" ({slo['class']}, {slo['policy']})"
    )


def show_variants(reply: Json, source: str) -> None:
    kinds = ("F1 >=", "answerable F1 >=", "unanswerable F1 >=")
    tasks = {v.get("task", QA) for v in reply["variants"]} - {QA}
    task_column = ("task",) * bool(tasks)
    columns = ("F1 (n)", *kinds, "p95 ms 128/384", "MB", "precision", "trust")
    table = _table("variant", *task_column, *columns)
    floors = {p["variants"][0]: p for p in reply["plans"] if len(p["variants"]) == 1}
    for variant in reply["variants"]:
        plan_ = floors.get(variant["name"])
        table.add_row(
            variant["name"],
            *(variant.get("task", QA),) * bool(tasks),
            _quality(variant, plan_),
            *_floors(plan_),
            " / ".join(_p95(variant, bucket) for bucket in TYPICAL_BUCKETS),
            f"{variant['size_bytes'] / 1e6:.1f}",
            variant["precision"],
            variant["trust"] or variant["problem"] or "not asked",
        )
    console = _console()
    console.print(table)
    cascades = [p for p in reply["plans"] if len(p["variants"]) > 1]
    if cascades:
        console.print(_cascades_table(cascades))
    accuracy = "; F1 of a classification is its accuracy" if tasks else ""
    console.print(Text(f"from {source}{accuracy}"))


def _cascades_table(plans: Sequence[Json]) -> Table:
    table = _table("cascade", "asks", "reach", "F1 >=", "F1 loss <=")
    for plan in plans:
        certificate = plan["certificate"]
        paired = certificate["paired"]
        table.add_row(
            plan["name"],
            ", ".join(plan["variants"]),
            " ".join(f"{share:.2f}" for share in plan["reach"]),
            f"{certificate['floor']:.3f}",
            f"{paired['loss']:.3f}" if paired else "-",
        )
    return table


def _quality(variant: Json, plan_: Json | None) -> str:
    """Return the mean F1 of the sample that the floor comes from."""
    if plan_ is not None:
        certificate = plan_["certificate"]
        return f"{certificate['f1']:.3f} ({certificate['n_questions']})"
    if not variant["quality"]:
        return "-"
    first = variant["quality"][0]
    return f"{first['f1']:.3f} ({first['n']})"


def _floors(plan_: Json | None) -> tuple[str, ...]:
    """Return the floors of all questions, and of those with and without an answer."""
    if plan_ is None:
        return "-", "-", "-"
    certificate = plan_["certificate"]
    kinds = {part["name"]: f"{part['floor']:.3f}" for part in certificate["strata"]}
    each = (kinds.get(name, "-") for name in (ANSWERABLE, UNANSWERABLE))
    return (f"{certificate['floor']:.3f}", *each)


def _p95(variant: Json, bucket: int) -> str:
    cells = [c for c in variant["profile"]["cells"] if c["bucket"] == bucket and c["batch"] == 1]
    return f"{cells[0]['p95_ms']:.1f}" if cells else "-"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        side: JustifyMethod = "right" if " ms" in column or "F1" in column else "left"
        # Names with a common beginning must stay distinguishable.
        table.add_column(column, justify=side, overflow="fold")
    return table


def _console() -> Console:
    piped = not sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=piped, width=PIPED_WIDTH if piped else None)


STATE_WIDTH = 80


def show_state(state: Json) -> None:
    """Print a gateway's inner state, at 80 columns."""
    console = Console(width=STATE_WIDTH, highlight=False)
    process, admission = state["process"], state["admission"]
    rss = "?" if process["rss_bytes"] is None else f"{process['rss_bytes'] / 2**20:.0f} MiB"
    lines = [
        (
            f"process    pid {process['pid']}, up {process['up_s']:.0f} s, {rss}, {process['open_files']} files,"
            f" {process['threads']} threads, {process['tasks']} tasks"
        ),
        *_workers(state.get("workers")),
        (
            f"admission  {admission['in_flight']} of {admission['most']} in flight, {admission['waiting']} wait"
            f" ({admission['expected_wait_ms']:.0f} ms), loop {admission['loop_late_ms']:.1f} ms late"
        ),
        f"refusals   {admission['refusals_held']} held back",
        f"budgets    {_budgets(state['budgets'])}",
        f"caches     {_caches(state['caches'])}",
        f"feedback   {state['feedback']['remembered']} of {state['feedback']['most']} answers remembered",
        (
            f"shadow     share {state['shadow']['share']:g}, {state['shadow']['waiting']} wait"
            f"{_evidence(state['shadow']['plans'])}"
        ),
        f"decisions  {state['decisions_unwritten']} lines not written yet",
    ]
    console.print(*(Text(line) for line in lines), sep="\n")
    if "queue" not in state:
        console.print(Text("models     none is served yet"))
        return
    _show_models(console, state)


def _workers(workers: Json | None) -> list[str]:
    """Return the line of a gateway with several workers: the other lines are of one of them."""
    if workers is None:
        return []
    each = ", ".join(f"{w['number']} {w['state']} {w['in_flight']}" for w in workers["each"])
    return [
        f"worker     {workers['this']} of {workers['of']}; in flight: {workers['in_flight']} in all ({each})"
    ]


def _show_models(console: Console, state: Json) -> None:
    queue, predictor = state["queue"], state["predictor"]
    console.print(
        Text(
            f"models     {queue['cores']:g} cores, {queue['in_flight']} in flight; {predictor['answers']} answers"
            f" learned from, {predictor['slowness']:.2f} x the profile"
        )
    )
    table = _table(
        "variant", "instances", "busy", "windows", "waiting", "others'", "wait ms", "breaker"
    )
    for name, line in queue["variants"].items():
        numbers = [
            str(line[key]) for key in ("instances", "busy", "windows", "waiting", "external")
        ]
        breaker = state["breakers"].get(name, "closed")
        table.add_row(name, *numbers, f"{line['wait_ms']:.0f}", breaker)
    console.print(table)
    if predictor["cells"]:
        table = _table("variant", "tokens", "answers", "seen / profile", "P95 alone / profile")
        for cell in predictor["cells"]:
            numbers = [str(cell["tokens"]), str(cell["answers"])]
            table.add_row(
                cell["variant"], *numbers, f"{cell['factor']:.2f}", f"{cell['p95_alone']:.2f}"
            )
        console.print(table)
    for name, why in state["not_served"].items():
        console.print(Text(f"not served: {name}: {why}"))
    for name, replica in state["replicas"].items():
        up = "up" if replica["up"] else "down"
        out = ", ejected" if replica["ejected"] else ""
        console.print(Text(f"replica    {name}: {up}{out}, {replica['in_flight']} in flight"))


def _budgets(budgets: Json) -> str:
    return ", ".join(f"{name} {b['left']:g} of {b['most']:g}" for name, b in budgets.items())


def _caches(caches: Json) -> str:
    answers = f"{caches['answers']} answers ({caches['answers_bytes'] / 2**20:.1f} MiB)"
    return (
        f"{answers}, words {caches['words_chars']:,} chars, contexts {caches['contexts_chars']:,}"
    )


def _evidence(plans: Json) -> str:
    """Return what is known against plans: the strongest evidence, log10."""
    if not plans:
        return ""
    name, most = max(plans.items(), key=lambda item: float(item[1]["evidence_log10"]))
    broken = sum(plan["broken"] for plan in plans.values())
    return f"; evidence at most 10^{most['evidence_log10']:.1f} ({name}), {broken} broken"
