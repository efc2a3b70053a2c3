"""HTTP and credentials for the Kubernetes API."""
