"""The dashboard *Triton*: the model servers by their own metrics."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard

from deploy.observability.panels import ORANGE, Parts, Query, lines, page, row, stacked, variable

HERE = 'model=~"$model", instance=~"$triton"'
SERVER = 'instance=~"$triton"'
DOWN, QUEUE, REPLICA = "BertierBackendDown", "BertierQueueGrowth", "BertierReplicaDown"


def triton() -> dashboard.Dashboard:
    """Return the dashboard."""
    description = "Triton's own metrics: requests, queue, compute and batches by model, and the host's CPU and GPU."
    choices = (
        variable(
            "model",
            "Model",
            "Models that Triton has loaded; named as the variants.",
            "label_values(nv_inference_count, model)",
        ),
        variable(
            "triton",
            "Triton",
            "Which Tritons, by the address of their metrics.",
            "label_values(nv_inference_count, instance)",
        ),
    )
    panels = (*_requests(), *_time(), *_replicas(), *_host(), *_gpu())
    return page("bertier-triton", "bertier / Triton", description, choices, panels)


def _rate(metric: str, by: str = "model") -> str:
    return f"sum by ({by}) (rate({metric}{{{HERE}}}[$__rate_interval]))"


def _requests() -> Parts:
    return (
        row("Requests"),
        stacked(
            "Successful requests",
            "Requests per second that Triton answered, the gateway's golden questions and probes included.",
            "reqps",
            Query(_rate("nv_inference_request_success"), "{{model}}"),
        ),
        stacked(
            "Failed requests",
            "Requests per second that failed, by Triton's reason; CANCELED are those whose caller left.",
            "reqps",
            Query(_rate("nv_inference_request_failure", "model, reason"), "{{model}} {{reason}}"),
            runbook="BertierBreakerOpen",
        ),
        lines(
            "Pending requests",
            "Requests that wait for an instance of the model, from all gateways.",
            "short",
            Query(f"sum by (model) (nv_inference_pending_request_count{{{HERE}}})", "{{model}}"),
            runbook=QUEUE,
        ),
    )


def _time() -> Parts:
    def mean(part: str) -> str:
        return (
            f"{_rate(f'nv_inference_{part}_duration_us')} / {_rate('nv_inference_request_success')}"
        )

    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    return (
        row("Time and batches"),
        lines(
            "Request time",
            "Mean time of a request inside Triton, by model.",
            "µs",
            Query(mean("request"), "{{model}}"),
        ),
        stacked(
            "Time by step",
            "Mean time of a request over the chosen models: waiting, input, inference, output.",
            "µs",
            *(
                Query(
                    f"sum(rate(nv_inference_{part}_duration_us{{{HERE}}}[$__rate_interval])) / sum(rate(nv_inference_request_success{{{HERE}}}[$__rate_interval]))",
                    part.replace("_", " "),
                )
                for part in parts
            ),
            runbook=QUEUE,
        ),
        lines(
            "Windows per execution",
            "Batch size after dynamic batching: windows per run of the model. Always 1 for models that"
            " are not batch-invariant.",
            "short",
            Query(
                f"{_rate('nv_inference_count')} / {_rate('nv_inference_exec_count')}",
                "{{model}}",
            ),
        ),
    )


def _replicas() -> Parts:
    return (
        row("Several Tritons behind a gateway, as the gateways see them"),
        lines(
            "Replicas up",
            "1: ready and not ejected, at every gateway that uses it.",
            "short",
            Query("min by (replica) (bertier_replica_up)", "{{replica}}"),
            bounds=(0, 1),
            runbook=REPLICA,
        ),
        lines(
            "In flight by replica",
            "Requests at each model server, over all gateways.",
            "short",
            Query("sum by (replica) (bertier_replica_in_flight)", "{{replica}}"),
        ),
        lines(
            "Ejections",
            "How often per hour a model server, or a variant on it, was ejected because it failed.",
            "short",
            Query(
                "sum by (replica) (increase(bertier_replica_ejections_total[1h]))", "{{replica}}"
            ),
            runbook=REPLICA,
        ),
    )


def _host() -> Parts:
    return (
        row("Host"),
        lines(
            "CPU",
            "Use of all cores of Triton's host, other programs included.",
            "percentunit",
            Query(f"nv_cpu_utilization{{{SERVER}}}", "{{instance}}"),
            bounds=(0, 1),
            limits=((0.9, ORANGE),),
        ),
        lines(
            "Memory",
            "Memory in use on Triton's host, and its total.",
            "bytes",
            Query(f"nv_cpu_memory_used_bytes{{{SERVER}}}", "{{instance}} used"),
            Query(f"nv_cpu_memory_total_bytes{{{SERVER}}}", "{{instance}} total"),
            runbook=DOWN,
        ),
        lines(
            "Pinned memory pool",
            "Memory reserved for copies to a GPU, in use and in total.",
            "bytes",
            Query(f"nv_pinned_memory_pool_used_bytes{{{SERVER}}}", "{{instance}} used"),
            Query(f"nv_pinned_memory_pool_total_bytes{{{SERVER}}}", "{{instance}} total"),
        ),
    )


def _gpu() -> Parts:
    return (
        row("GPU, where there is one"),
        lines(
            "GPU use",
            "Share of the time in which the GPU was busy.",
            "percentunit",
            Query(f"nv_gpu_utilization{{{SERVER}}}", "{{instance}} {{gpu_uuid}}"),
            bounds=(0, 1),
        ),
        lines(
            "GPU memory",
            "Memory of the GPU in use, and its total.",
            "bytes",
            Query(f"nv_gpu_memory_used_bytes{{{SERVER}}}", "{{gpu_uuid}} used"),
            Query(f"nv_gpu_memory_total_bytes{{{SERVER}}}", "{{gpu_uuid}} total"),
        ),
        lines(
            "GPU power",
            "Power the GPU draws, and its limit.",
            "watt",
            Query(f"nv_gpu_power_usage{{{SERVER}}}", "{{gpu_uuid}}"),
            Query(f"nv_gpu_power_limit{{{SERVER}}}", "{{gpu_uuid}} limit"),
        ),
    )
