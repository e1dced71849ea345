"""Parts of the dashboards: panels in one style, queries, variables, annotations, links.

Every panel says in its description what it shows and, where there is one, links to a runbook.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from grafana_foundation_sdk.builders import bargauge, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

GREEN, YELLOW, ORANGE, RED = "green", "yellow", "orange", "red"
DATASOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT, WIDTH = 8, 24  # of a panel, and of the page, in the units of Grafana's grid

Steps = Sequence[tuple[float | None, str]]  # from this value on this colour; None: from the start


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression, and what its series are called."""

    expr: str
    legend: str = ""
    instant: bool = False


class _Panel(Protocol):
    """What the builders of all kinds of panels have in common."""

    def title(self, title: str) -> Self: ...
    def description(self, description: str) -> Self: ...
    def datasource(self, datasource: common.DataSourceRef) -> Self: ...
    def unit(self, unit: str) -> Self: ...
    def height(self, h: int) -> Self: ...
    def span(self, w: int) -> Self: ...
    def links(self, links: list[Builder[dashboard.DashboardLink]]) -> Self: ...


Part = Builder[dashboard.Panel] | builders.Row
Parts = tuple[Part, ...]
P = TypeVar("P", bound=_Panel)


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    span: int = 8,
    runbook: str | None = None,
    limits: Steps = (),
    bounds: tuple[float | None, float | None] = (0, None),
    mean: bool = True,
) -> timeseries.Panel:
    """Return lines over time; `limits` are drawn dashed, the legend has mean and last value."""
    panel = _framed(timeseries.Panel(), title, description, unit, span, runbook)
    panel.line_width(1.5).fill_opacity(8).show_points(common.VisibilityMode.NEVER)
    panel.legend(_legend(["mean", "lastNotNull"] if mean else ["lastNotNull"]))
    panel.tooltip(_tooltip())
    if bounds[0] is not None:
        panel.min(bounds[0])
    if bounds[1] is not None:
        panel.max(bounds[1])
    if limits:
        panel.thresholds(_thresholds(limits))
        dashed = common_builders.GraphThresholdsStyleConfig()
        panel.thresholds_style(dashed.mode(common.GraphThresholdsStyleMode.DASHED))
    return panel.targets(_targets(queries))


def stacked(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    span: int = 8,
    runbook: str | None = None,
    share: bool = False,
) -> timeseries.Panel:
    """Return areas on top of each other; `share`: as parts of the whole."""
    panel = lines(title, description, unit, *queries, span=span, runbook=runbook)
    mode = common.StackingMode.PERCENT if share else common.StackingMode.NORMAL
    panel.stacking(common_builders.StackingConfig().mode(mode).group("A"))
    return panel.fill_opacity(45).line_width(0.5)


def number(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    steps: Steps = ((None, GREEN),),
    span: int = 4,
    runbook: str | None = None,
    decimals: int | None = None,
) -> stat.Panel:
    """Return one number, large, coloured by `steps`, with its course behind it."""
    panel = _framed(stat.Panel(), title, description, unit, span, runbook).height(4)
    panel.thresholds(_thresholds(steps)).color_mode(common.BigValueColorMode.VALUE)
    panel.graph_mode(
        common.BigValueGraphMode.NONE if query.instant else common.BigValueGraphMode.AREA
    )
    panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    if decimals is not None:
        panel.decimals(decimals)
    return panel.targets(_targets([query])).no_value("no data")


def bars(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    steps: Steps,
    span: int = 8,
    runbook: str | None = None,
    bounds: tuple[float, float] = (0, 1),
) -> bargauge.Panel:
    """Return one bar a series, coloured by `steps`."""
    panel = _framed(bargauge.Panel(), title, description, unit, span, runbook)
    panel.orientation(common.VizOrientation.HORIZONTAL).thresholds(_thresholds(steps))
    panel.display_mode(common.BarGaugeDisplayMode.BASIC).min(bounds[0]).max(bounds[1]).decimals(1)
    panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.targets(_targets(queries)).no_value("no data")


def heat(
    title: str,
    description: str,
    unit: str,
    buckets: str,
    *,
    span: int = 12,
    runbook: str | None = None,
) -> heatmap.Panel:
    """Return a histogram over time; `buckets`: increase of its buckets by `le`."""
    panel = _framed(heatmap.Panel(), title, description, unit, span, runbook)
    panel.y_axis(heatmap.YAxisConfig().unit(unit)).cell_gap(1).show_legend()
    colours = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Spectral")
    panel.color(colours.steps(64).exponent(0.5).reverse(reverse=False))
    panel.tooltip(heatmap.HeatmapTooltip().mode(common.TooltipDisplayMode.SINGLE).y_histogram(True))  # noqa: FBT003 - the library's
    target = _target(Query(buckets, "{{le}}"), "A").format(PromQueryFormat.HEATMAP)
    return panel.targets([target])


def row(title: str) -> builders.Row:
    return builders.Row(title)


def variable(name: str, label: str, description: str, query: str) -> builders.QueryVariable:
    """Return a choice of several values or of all; all is `.*`, which is valid where there are none."""
    choice = builders.QueryVariable(name).label(label).description(description)
    choice.query({"query": query, "refId": name}).datasource(DATASOURCE)
    choice.refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
    choice.sort(dashboard.VariableSort.ALPHABETICAL_ASC)
    every = dashboard.VariableOption(selected=True, text=["All"], value=["$__all"])
    return choice.multi(multi=True).include_all(include_all=True).all_value(".*").current(every)


def page(
    uid: str,
    title: str,
    description: str,
    variables: Sequence[builders.QueryVariable],
    panels: Sequence[Part],
) -> dashboard.Dashboard:
    """Return a dashboard with rows and panels from left to right, top to bottom."""
    made = builders.Dashboard(title).uid(uid).description(description).tags(["bertier"]).editable()
    made.time("now-1h", "now").refresh("30s").timezone("browser")
    made.tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
    made.with_variable(_datasource_variable()).with_variable(_runbooks_variable())
    for each in variables:
        made.with_variable(each)
    made.annotation(_catalog_switches()).link(_other_dashboards())
    for panel in panels:
        if isinstance(panel, builders.Row):
            made.with_row(panel)
        else:
            made.with_panel(panel)
    found = made.build()
    for number_, panel_ in enumerate(found.panels or [], start=1):
        panel_.id_val = number_
    return found


def _framed(panel: P, title: str, description: str, unit: str, span: int, runbook: str | None) -> P:
    panel.title(title).description(description).unit(unit).datasource(DATASOURCE)
    panel.height(HEIGHT).span(span)
    if runbook is not None:
        link = builders.DashboardLink(f"Runbook: {runbook}").type(dashboard.DashboardLinkType.LINK)
        panel.links([link.url(f"${{runbooks}}/{runbook}.md").target_blank(target_blank=True)])
    return panel


def _targets(queries: Sequence[Query]) -> list[Builder[prometheus.prometheus.Dataquery]]:
    return [_target(query, chr(ord("A") + n)) for n, query in enumerate(queries)]


def _target(query: Query, ref_id: str) -> prometheus.Dataquery:
    target = prometheus.Dataquery().ref_id(ref_id).datasource(DATASOURCE)
    target.expr(" ".join(query.expr.split())).legend_format(query.legend)
    return target.instant() if query.instant else target.range()


def _thresholds(steps: Steps) -> builders.ThresholdsConfig:
    made = builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE)
    given = list(steps) if steps[0][0] is None else [(None, "transparent"), *steps]
    return made.steps([dashboard.Threshold(value, colour) for value, colour in given])


def _legend(calcs: list[str]) -> common_builders.VizLegendOptions:
    made = common_builders.VizLegendOptions().display_mode(common.LegendDisplayMode.TABLE)
    made.placement(common.LegendPlacement.BOTTOM).calcs(calcs)
    return made.show_legend(show_legend=True)


def _tooltip() -> common_builders.VizTooltipOptions:
    made = common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
    return made.sort(common.SortOrder.DESCENDING)


def _datasource_variable() -> builders.DatasourceVariable:
    made = builders.DatasourceVariable("datasource").label("Data source").type("prometheus")
    current = dashboard.VariableOption(selected=True, text="Prometheus", value="prometheus")
    return made.description("The Prometheus that scrapes gateways and Tritons.").current(current)


def _runbooks_variable() -> builders.ConstantVariable:
    made = builders.ConstantVariable("runbooks").value("/public/runbooks")
    return made.description("Where docs/runbooks can be read; Grafana serves them itself.")


def _catalog_switches() -> builders.AnnotationQuery:
    """Mark when each gateway began to serve another catalog: the value is the time of the mark."""
    switched = """
        bertier_catalog_loaded_timestamp_seconds * 1000
          * on (instance) group_left (sha256, commit) bertier_catalog_info"""
    made = builders.AnnotationQuery().name("Catalog switches").datasource(DATASOURCE)
    made.enable(enable=True).icon_color("purple").expr(" ".join(switched.split())).step("60s")
    made.title_format("Catalog of {{commit}}").text_format("{{instance}} serves {{sha256}}")
    return made.use_value_for_time(use_value_for_time=True).tag_keys("instance")


def _other_dashboards() -> builders.DashboardLink:
    made = builders.DashboardLink("bertier").type(dashboard.DashboardLinkType.DASHBOARDS)
    made.tags(["bertier"]).include_vars(include_vars=True).keep_time(keep_time=True)
    return made.as_dropdown(as_dropdown=False)
