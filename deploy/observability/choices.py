"""Variables that several dashboards share."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import QueryVariable

from deploy.observability.panels import variable


def slo_class() -> QueryVariable:
    values = "label_values(bertier_requests_total, slo_class)"
    return variable("slo_class", "Class", "SLO class of the requests.", values)


def variant() -> QueryVariable:
    values = "label_values(bertier_variant_up, variant)"
    return variable("variant", "Variant", "Models of the catalog.", values)


def instance(description: str = "Which gateways.") -> QueryVariable:
    return variable(
        "instance", "Gateway", description, "label_values(bertier_build_info, instance)"
    )
