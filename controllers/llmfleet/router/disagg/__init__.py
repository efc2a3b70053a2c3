"""Requests that one engine prefills and another decodes."""
