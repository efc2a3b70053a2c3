"""The data plane: request -> admit -> pick -> relay -> account."""
