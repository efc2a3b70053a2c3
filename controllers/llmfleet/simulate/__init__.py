"""A fleet in memory, request by request, driven by the very code that sizes real ones."""
