"""What a router process says of itself, and the order to drain."""
