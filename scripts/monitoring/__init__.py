"""What Prometheus and Grafana read: rules and dashboards, written into the chart by `python -m scripts.monitoring`."""
