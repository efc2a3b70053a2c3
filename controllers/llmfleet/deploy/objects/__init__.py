"""One module for each kind of object an instance consists of; each turns a spec into one manifest and nothing else."""
