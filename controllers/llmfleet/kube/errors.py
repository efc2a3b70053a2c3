"""What can go wrong at the Kubernetes API, as the few exceptions a caller can act on.

KubeError
|-- NotFound            the object, its kind or its namespace is not (or no longer) there
|   `-- NamespaceGone   its namespace is being deleted: nothing new can be written there
|-- Conflict            somebody else wrote first, it exists already, or a UID precondition failed: read again
|-- Rejected            the apiserver refuses this object as it is (400, 413, 422): a retry cannot help
`-- Unavailable         retry later; `retry_after` says when, if the apiserver said so
    |-- Forbidden       RBAC is missing (403)
    |-- Expired         the resourceVersion is too old (410): list again
    `-- NotLeader       this process holds no lease: nothing was sent
"""

from __future__ import annotations


class KubeError(Exception):
    """Anything the Kubernetes API answered that is not success."""

    def __init__(self, message: str, *, code: int = 0, reason: str = "", retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.retry_after = retry_after
        self.asked = ""
        """What a write wanted, as RBAC calls it: `patch statefulsets.apps`."""


class NotFound(KubeError):
    """The object, its kind or its namespace does not exist."""


class NamespaceGone(NotFound):
    """The namespace is terminating."""


class Conflict(KubeError):
    """The object changed, exists already, or has another UID."""


class Rejected(KubeError):
    """The apiserver refuses the object itself; the message names the field."""


class Unavailable(KubeError):
    """No answer, or an answer that says later."""


class Forbidden(Unavailable):
    """The credentials lack a permission."""


class Expired(Unavailable):
    """The resourceVersion or continue token is too old."""


class NotLeader(Unavailable):
    """Another process leads, so nothing was sent."""
