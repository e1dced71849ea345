"""The custom resources that the manifests use, as far as they use them; an unknown field is an error.

Sources: prometheus-operator's API reference (monitoring.coreos.com/v1), KEDA's ScaledObject specification.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(_Closed):
    name: str
    namespace: str
    labels: dict[str, str] = {}


class Selector(_Closed):
    match_labels: dict[str, str] = Field(alias="matchLabels")


class Endpoint(_Closed):
    port: str
    path: str = "/metrics"
    interval: str = Field(pattern=r"^\d+(ms|s|m)$")
    scrape_timeout: str = Field(alias="scrapeTimeout", pattern=r"^\d+(ms|s|m)$")


class ServiceMonitorSpec(_Closed):
    selector: Selector
    endpoints: list[Endpoint] = Field(min_length=1)


class ServiceMonitor(_Closed):
    api_version: Literal["monitoring.coreos.com/v1"] = Field(alias="apiVersion")
    kind: Literal["ServiceMonitor"]
    metadata: Metadata
    spec: ServiceMonitorSpec


class Rule(_Closed):
    alert: str | None = None
    record: str | None = None
    expr: str
    hold: str | None = Field(None, alias="for")
    keep_firing_for: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class RuleGroup(_Closed):
    name: str
    interval: str | None = None
    limit: int | None = None
    rules: list[Rule]


class PrometheusRuleSpec(_Closed):
    groups: list[RuleGroup]


class PrometheusRule(_Closed):
    api_version: Literal["monitoring.coreos.com/v1"] = Field(alias="apiVersion")
    kind: Literal["PrometheusRule"]
    metadata: Metadata
    spec: PrometheusRuleSpec


class ScaleTarget(_Closed):
    api_version: str = Field(alias="apiVersion")
    kind: Literal["Deployment", "StatefulSet"]
    name: str


class Trigger(_Closed):
    type: Literal["prometheus", "cpu"]
    name: str | None = None
    metric_type: Literal["AverageValue", "Value", "Utilization"] = Field(alias="metricType")
    metadata: dict[str, str]  # KEDA wants strings, numbers too


class Advanced(_Closed):
    hpa: Json = Field(alias="horizontalPodAutoscalerConfig")


class ScaledObjectSpec(_Closed):
    target: ScaleTarget = Field(alias="scaleTargetRef")
    min_replicas: int = Field(alias="minReplicaCount", ge=1)
    max_replicas: int = Field(alias="maxReplicaCount")
    polling_s: int = Field(alias="pollingInterval")
    cooldown_s: int = Field(alias="cooldownPeriod")
    advanced: Advanced
    triggers: list[Trigger] = Field(min_length=1)


class ScaledObject(_Closed):
    api_version: Literal["keda.sh/v1alpha1"] = Field(alias="apiVersion")
    kind: Literal["ScaledObject"]
    metadata: Metadata
    spec: ScaledObjectSpec


CUSTOM: dict[str, type[_Closed]] = {
    "PrometheusRule": PrometheusRule,
    "ScaledObject": ScaledObject,
    "ServiceMonitor": ServiceMonitor,
}
