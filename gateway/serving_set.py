"""What is served now: a catalog that was checked against the backend and the host it runs on.

A ServingSet is built whole (preparation.py), then swapped in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from typing import NamedTuple

from gateway.backends.breaker import Breakers
from gateway.catalog.schema import QA, Plan, Profile, Variant
from gateway.catalog.store import Catalog, Task
from gateway.domain import BY_TRUST, Cost, Option, Size, Trust
from gateway.errors import InvalidField, NoClassification, NoQuestions
from gateway.latency.model import LatencyModel
from gateway.monitoring.sequential_tests import SequentialTests
from gateway.qa.codec import SpanEncoder

MOST_SIZES = 256  # of which the options are kept: callers choose how many windows they send


@dataclass(frozen=True, slots=True)
class ServedPlan:
    """A plan whose variants are all served, and what is the same for all requests."""

    plan: Plan
    trust: Trust
    size_bytes: int


class _Unpredicted(NamedTuple):
    """The options for one size, before any latency is predicted."""

    in_order: tuple[Option, ...]  # of the catalog
    by_price: tuple[Option, ...]  # equal ones in the order of the catalog


@dataclass(frozen=True, slots=True, weakref_slot=True)
class ServingSet:
    """A checked catalog with all that is needed to answer from it.

    With several tasks, each task has a part, which is a ServingSet (`of`). A request is answered from the part of
    its task, so only plans of one task are compared. Learned latencies and failures are shared by all parts.
    """

    catalog: Catalog
    encoder: SpanEncoder
    trust: Mapping[str, Trust]  # by variant; one that is absent is not served
    profiles: Mapping[str, Profile]
    latency: LatencyModel
    problems: Mapping[str, str] = field(default_factory=dict)  # by variant that is not served: why
    under_load: frozenset[str] = (
        frozenset()
    )  # variants whose latency was measured beside other work
    breakers: Breakers = field(default_factory=Breakers)  # closed: the set was just checked
    certificate_tests: SequentialTests = field(
        default_factory=SequentialTests
    )  # of the certificates
    # What is the same for all requests, so that none of them searches the catalog.
    served: tuple[ServedPlan, ...] = field(init=False)
    variants: Mapping[str, Variant] = field(init=False)  # all of the catalog
    task: str | None = field(init=False)  # the only one of the catalog; None: there are several
    best_floor: float = field(init=False)  # the largest certified floor; of several tasks: 0
    largest: str = field(init=False)  # the largest variant with a profile; "": there is none
    _plans: tuple[Plan, ...] = field(init=False)
    parts: Mapping[str, ServingSet] = field(init=False)  # by task; {}: there is one
    _p50_ms: dict[tuple[str, int], float] = field(init=False, default_factory=dict)
    _unpredicted: dict[Size, _Unpredicted] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        plans = [p for p in self.catalog.plans if all(v in self.trust for v in p.variants)]
        served = tuple(ServedPlan(p, self.trust_of(p), self._size_bytes(p)) for p in plans)
        object.__setattr__(self, "served", served)
        object.__setattr__(self, "_plans", tuple(plans))
        object.__setattr__(self, "variants", {v.name: v for v in self.catalog.variants})
        tasks = self.catalog.task_names
        object.__setattr__(self, "task", None if len(tasks) > 1 else "".join(tasks) or QA)
        comparable = self.task is not None and self.catalog.plans
        object.__setattr__(self, "best_floor", self.catalog.best_floor if comparable else 0.0)
        known = [v for v in self.catalog.variants if v.name in self.profiles]
        largest = max(known, key=lambda v: (v.parameters, v.size_bytes), default=None)
        object.__setattr__(self, "largest", "" if largest is None else largest.name)
        # They hold nothing of the whole: a set lives as long as a request uses it (retirement.py).
        parts = {} if self.task is not None else {name: self._part(name) for name in tasks}
        object.__setattr__(self, "parts", parts)

    def _part(self, task: str) -> ServingSet:
        catalog = self.catalog.only(task)
        trust = {v.name: self.trust[v.name] for v in catalog.variants if v.name in self.trust}
        return replace(self, catalog=catalog, trust=trust)

    def of(self, task: str) -> ServingSet:
        """Return the part that serves a task; "": the only classification.

        Raises: UnknownTask; InvalidField where there are several classifications.
        """
        if task == self.task:
            return self
        name = task or self._only_classification()
        if name == self.task:
            return self
        if (part := self.parts.get(name)) is not None:
            return part
        served = [each.name for each in self.catalog.tasks]
        raise NoQuestions(served) if name == QA else NoClassification(name, served)

    def _only_classification(self) -> str:
        names = [task.name for task in self.catalog.tasks]
        if len(names) > 1:
            raise InvalidField(
                f"task: missing, and several classifications are served; send one of {', '.join(names)}"
            )
        if not names:
            raise NoClassification("", ())
        return names[0]

    @property
    def classification(self) -> Task | None:
        """The task of a set that classifies; None: it answers questions, or has several tasks."""
        return None if self.task is None or self.task == QA else self.catalog.tasks[0]

    def without(self, problems: Mapping[str, str]) -> ServingSet:
        """Return the set that no longer routes to the variants with a problem."""
        trust = {name: trust for name, trust in self.trust.items() if name not in problems}
        return replace(self, trust=trust, problems={**self.problems, **problems})

    def plans(self) -> Sequence[Plan]:
        """Return the plans whose variants are all served."""
        return self._plans

    def trust_of(self, plan: Plan) -> Trust:
        """Return the least trust of the plan's variants, or that its certificate is broken."""
        if plan.name in self.certificate_tests.broken:
            return Trust.BROKEN
        return min((self.trust[v] for v in plan.variants), key=BY_TRUST.index)

    def _size_bytes(self, plan: Plan) -> int:
        return sum(self.catalog.variant(v).size_bytes for v in plan.variants)

    def cost(self, plan: Plan, answered_by: str, size: Size) -> Cost:
        """Return the cost of the variants of a plan that were asked, the last of which answered.

        By the profiles of this host: ms of one core for windows of this size.
        """
        used = plan.variants[: plan.variants.index(answered_by) + 1]
        return Cost(
            compute_ms=sum([self._compute_ms(variant, size) for variant in used]),
            largest_variant=self.largest,
            largest_compute_ms=self._compute_ms(self.largest, size),
        )

    def _compute_ms(self, variant: str, size: Size) -> float:
        known = self._p50_ms.get((variant, size.bucket))
        if known is None:
            known = self.profiles[variant].cell(size.bucket).p50_ms
            self._p50_ms[variant, size.bucket] = known
        return known * size.n_windows

    def options(
        self, size: Size, quantile: float, now_ms: float, head_starts_ms: Sequence[float] = ()
    ) -> list[Option]:
        """Return every plan with its latency predicted for a request of this size.

        `head_starts_ms`: by how much later the targets of those are that wait for admission.
        """
        predicted = self.predictor(size, quantile, now_ms, head_starts_ms)
        return [predicted(known) for known in self._trusted_now(self._known_of(size).in_order)]

    def cheapest_first(self, size: Size) -> Sequence[Option]:
        """Return every plan by price, its latency not predicted yet."""
        return self._trusted_now(self._known_of(size).by_price)

    def predictor(
        self, size: Size, quantile: float, now_ms: float, head_starts_ms: Sequence[float] = ()
    ) -> Callable[[Option], Option]:
        """Return what predicts the latency of one option at a time; it holds at this moment only."""
        predict, latency = self.latency.predictor(size, quantile, now_ms), self.latency

        def predicted(known: Option) -> Option:
            p = predict(known.plan)
            behind_ms = latency.behind_ms(head_starts_ms, p.cost_ms) if head_starts_ms else 0.0
            return Option(
                known.plan,
                known.trust,
                known.size_bytes,
                p.cost_ms,
                p.idle_ms,
                p.predicted_ms,
                behind_ms,
                p.wait_ms,
            )

        return predicted

    def _known_of(self, size: Size) -> _Unpredicted:
        known = self._unpredicted.get(size)
        if known is None:
            in_order = tuple(
                Option(e.plan, e.trust, e.size_bytes, self.latency.cost_ms(e.plan, size), nan, nan)
                for e in self.served
            )
            known = _Unpredicted(in_order, tuple(sorted(in_order, key=lambda o: o.price)))
            if len(self._unpredicted) >= MOST_SIZES:
                self._unpredicted.clear()
            self._unpredicted[size] = known
        return known

    def _trusted_now(self, options: Sequence[Option]) -> Sequence[Option]:
        """Return the options with the trust that the tests of their certificates leave them."""
        broken = self.certificate_tests.broken
        if not broken:
            return options
        return [o._replace(trust=Trust.BROKEN) if o.plan.name in broken else o for o in options]
