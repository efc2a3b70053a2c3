"""Which server keeps the jobs."""
