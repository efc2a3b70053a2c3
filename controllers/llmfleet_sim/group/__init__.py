"""The ranks of one engine: rendezvous, steps in lockstep, and what happens when one is lost."""
