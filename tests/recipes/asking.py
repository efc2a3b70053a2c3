"""Ask an apiserver whether it would take an object.

In: objects. Out: answers. Nothing is stored but namespaces, which an object needs to be taken at all.
"""

from __future__ import annotations

from typing import Any

from charts.rendering import Object
from fakes.apiserver import Answer, Apiserver
from recipes.recipes import NAMESPACE

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


class Kinds:
    """Paths of objects by what the apiserver says it serves."""

    def __init__(self, server: Apiserver) -> None:
        self.server = server
        self._groups: dict[str, dict[str, tuple[str, bool]]] = {}
        self._namespaces: set[str] = set()

    def known(self, api_version: str, kind: str) -> bool:
        return kind in self.group(api_version)

    def group(self, api_version: str) -> dict[str, tuple[str, bool]]:
        """Kind -> (plural, namespaced)."""
        if api_version not in self._groups:
            path = "/api/v1" if api_version == "v1" else f"/apis/{api_version}"
            answer = self.server.session.get(self.server.url + path, timeout=30)
            resources = answer.json().get("resources", []) if answer.status_code == 200 else []
            self._groups[api_version] = {
                one["kind"]: (one["name"], one["namespaced"]) for one in resources if "/" not in one["name"]
            }
        return self._groups[api_version]

    def path(self, thing: Object, namespace: str = NAMESPACE) -> str:
        """The collection an object belongs to."""
        plural, namespaced = self.group(thing["apiVersion"])[thing["kind"]]
        root = "/api/v1" if thing["apiVersion"] == "v1" else f"/apis/{thing['apiVersion']}"
        if not namespaced:
            return f"{root}/{plural}"
        return f"{root}/namespaces/{self.namespace(thing['metadata'].get('namespace', namespace))}/{plural}"

    def namespace(self, name: str) -> str:
        """Make a namespace once; that of the release enforces the restricted standard, as it should anywhere."""
        if name not in self._namespaces:
            labels = RESTRICTED if name == NAMESPACE else {}
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
            answer = self.server.call("POST", "/api/v1/namespaces", body)
            assert answer.status in (201, 409), answer.message
            self._namespaces.add(name)
        return name

    def dry_run(self, thing: Object) -> Answer:
        """Create an object without storing it; an unknown field is an error."""
        return self.server.call("POST", self.path(thing), thing, params={"dryRun": "All"})

    def pod(self, template: Any) -> Answer:
        """Ask for one pod of a template in the release's namespace."""
        metadata = {"name": "probe", "namespace": NAMESPACE, "labels": template["metadata"].get("labels", {})}
        metadata["annotations"] = template["metadata"].get("annotations", {})
        return self.dry_run({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
