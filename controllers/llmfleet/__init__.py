"""llmfleet: serve fleets of tensor-parallel vLLM instances on Kubernetes."""

from llmfleet.names import VERSION as __version__

__all__ = ["__version__"]
