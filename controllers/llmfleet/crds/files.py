"""CRD files as manifests, and whether the apiserver serves what they describe.

In: the texts of YAML files, an object as read. Out: manifests, or a `CrdError` that names the file; yes or no. Pure.
Nothing but CustomResourceDefinitions of our own group is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import yaml

from llmfleet import names
from llmfleet.kube.refs import CRD, Manifest


class CrdError(ValueError):
    """A file that is not one of ours."""


def parse_files(texts: Mapping[str, str]) -> Iterator[Manifest]:
    """One manifest for each document, in the order of the file names."""
    for name, text in sorted(texts.items()):
        try:
            found = [document for document in yaml.safe_load_all(text) if document is not None]
        except yaml.YAMLError as error:
            raise CrdError(f"{name} is not YAML: {error}") from error
        for document in found:
            yield checked(name, document)


def checked(name: str, document: object) -> Manifest:
    manifest = document if isinstance(document, Mapping) else {}
    spec, metadata = manifest.get("spec"), manifest.get("metadata")
    if (manifest.get("apiVersion"), manifest.get("kind")) != (CRD.api_version, CRD.kind):
        raise CrdError(f"{name} holds something else than a {CRD.api_version} {CRD.kind}")
    if not isinstance(spec, Mapping) or not isinstance(metadata, Mapping) or spec.get("group") != names.API_GROUP:
        raise CrdError(f"{name} describes a kind that is not of the group {names.API_GROUP}")
    return manifest


def is_served(crd: Manifest) -> bool:
    """The apiserver has accepted the names and serves the kind."""
    conditions = (crd.get("status") or {}).get("conditions") or ()
    return any(item.get("type") == "Established" and item.get("status") == "True" for item in conditions)
