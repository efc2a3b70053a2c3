"""What runs before `helm uninstall` deletes anything."""
