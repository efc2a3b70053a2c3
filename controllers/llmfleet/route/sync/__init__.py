"""The sidecar that keeps one file equal to one ConfigMap."""
