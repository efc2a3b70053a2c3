"""List, watch and the caches they fill."""
