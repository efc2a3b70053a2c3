"""Durable jobs: a request that is stored before it is acknowledged, run later, and read when it is done."""
