"""Faults on command, over a port of its own."""
