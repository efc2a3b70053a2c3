"""The operator process: one lease, all caches, the deploy and route controllers."""
