"""What runs before `helm upgrade` when asked for: Helm itself never updates a CRD."""
