"""Prefill/decode hand-off as vLLM's NIXL pull connector does it, over a small TCP side channel."""
