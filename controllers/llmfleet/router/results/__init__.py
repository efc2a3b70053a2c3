"""Answers to deterministic requests, kept in Redis for a while and given again."""
