"""What one instance can do: step-time coefficients, and the load it carries within its objective."""
