"""Requests at engines."""
