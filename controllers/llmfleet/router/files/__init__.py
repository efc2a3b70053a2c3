"""The files that a router process reads and writes."""
