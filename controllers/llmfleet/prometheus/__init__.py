"""A Prometheus server as a source of figures."""
