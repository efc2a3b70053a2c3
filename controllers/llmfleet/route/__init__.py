"""From instances and pods to the backends document that routers read."""
