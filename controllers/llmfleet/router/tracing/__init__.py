"""Spans of requests, for a collector of OpenTelemetry; without `otel.endpoint` nothing of this is imported."""
