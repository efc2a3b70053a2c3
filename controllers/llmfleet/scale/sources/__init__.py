"""Which source of figures a spec names."""
