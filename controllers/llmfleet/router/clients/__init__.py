"""The connections of a router's clients."""
