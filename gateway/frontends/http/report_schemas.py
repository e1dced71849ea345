"""What /readyz and /v1/variants reply, as models for the OpenAPI document; made from the values themselves.

Replies are not made of these models: a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from gateway.catalog.schema import Plan, Variant
from gateway.catalog.store import Origin, Task
from gateway.lifecycle.readiness import Readiness, VariantState

SHAPE = ConfigDict(extra="forbid", frozen=True)


def _of(name: str, *values: type[Any], without: Collection[str] = (), **more: Any) -> type[Any]:
    """Return a model with the fields of frozen dataclasses, and more."""
    found: dict[str, Any] = {}
    for value in values:
        hints = get_type_hints(value)
        shown = [each for each in fields(value) if each.name not in without]
        found |= {each.name: (hints[each.name], ...) for each in shown}
    found |= {field: (hint, ...) for field, hint in more.items()}
    model: type[Any] = create_model(name, __config__=SHAPE, **found)
    return model


VariantReport = _of("VariantReport", Variant, VariantState, without=("golden", "golden_tolerance"))
PlanReport = _of(
    "PlanReport",
    Plan,
    served=bool,
    trust=str | None,
    evidence=dict[str, Any] | None,
    live=dict[str, Any] | None,
)
TaskReport = _of("TaskReport", Task, without=("golden_inputs",))
CatalogReport: type[BaseModel] = create_model(
    "CatalogReport",
    __config__=SHAPE,
    origin=(Origin, ...),
    tokenizer_sha256=(str, ...),
    tasks=(list[TaskReport], ...),  # type: ignore[valid-type]  # made above
    variants=(list[VariantReport], ...),  # type: ignore[valid-type]  # made above
    plans=(list[PlanReport], ...),  # type: ignore[valid-type]
)
ReadinessReport = _of("ReadinessReport", Readiness)
