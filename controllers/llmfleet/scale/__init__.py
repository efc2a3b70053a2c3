"""Flow: what routers and engines measured becomes the size of a fleet, and one reason for it."""
