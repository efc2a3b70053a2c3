"""The process that sizes fleets."""
