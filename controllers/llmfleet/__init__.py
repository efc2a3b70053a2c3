"""llmfleet: serve fleets of tensor-parallel vLLM instances on Kubernetes."""

import os
import signal

from llmfleet.names import VERSION as __version__

__all__ = ["__version__"]

if os.getpid() == 1:
    # The kernel drops a SIGTERM that PID 1 of a container has no handler for. Without this one a pod that is deleted
    # in the second in which its process starts would stay for its whole grace period. Each role sets its own later.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
