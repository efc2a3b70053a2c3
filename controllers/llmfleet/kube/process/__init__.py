"""What every process with controllers is made of."""
