"""The other routers of a release: what is said to them, and what is heard."""
