"""Makes the dashboards in deploy/grafana/dashboards: `python -m deploy.observability.generate`."""
