"""values.schema.json and the README table of every chart, from its values.yaml.

In: each chart's values.yaml with one `# --` line above every key, the rules below, the LLMCluster schema (so that a
model's fields are checked before anything is sent), and the bounds of the router's settings. Out: the files as text.
It writes nothing and contacts no cluster.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import make_crds
import yaml

MARKS = ("<!-- values: written by ci/generate -->", "<!-- end of values -->")
Schema = dict[str, Any]
Notes = Mapping[tuple[str, ...], str]

OBJECT: Schema = {"type": "object"}
OBJECTS: Schema = {"type": "array", "items": OBJECT}
STRINGS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
NAME = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
DOTTED = "[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
DURATION: Schema = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"}
DAYS: Schema = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$"}

# Keys whose value is Kubernetes' own shape: passed through, so only their outer type is checked.
SHAPES: dict[str, Schema] = {
    "additionalLabels": STRINGS,
    "addresses": {
        "type": "array",
        "uniqueItems": True,
        "items": {"type": "string", "pattern": "^(\\[[0-9A-Fa-f:.]+\\]|[A-Za-z0-9._-]+):[0-9]{1,5}$"},
    },
    "affinity": OBJECT,
    "apiserverPorts": {
        "type": "array",
        "minItems": 1,
        "uniqueItems": True,
        "items": {"type": "integer", "minimum": 1, "maximum": 65535},
    },
    "apiserverTo": OBJECTS,
    "alertLabels": STRINGS,
    "annotations": STRINGS,
    "behavior": OBJECT,
    "clientsFrom": OBJECTS,
    "commonLabels": STRINGS,
    "extraEnv": {
        "type": "array",
        "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "minLength": 1}}},
    },
    "extraObjects": {"type": "array", "items": {"type": ["object", "string"]}},
    "imagePullSecrets": {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string", "minLength": 1}},
            "additionalProperties": False,
        },
    },
    "metricRelabelings": OBJECTS,
    "metricsFrom": OBJECTS,
    "namespaceSelector": OBJECT,
    "nodeSelector": STRINGS,
    "podAnnotations": STRINGS,
    "podLabels": STRINGS,
    "podSecurityContext": OBJECT,
    "relabelings": OBJECTS,
    "resources": {
        "type": "object",
        "properties": {"requests": OBJECT, "limits": OBJECT, "claims": OBJECTS},
        "additionalProperties": False,
    },
    "securityContext": OBJECT,
    "tolerations": OBJECTS,
    "topologySpreadConstraints": OBJECTS,
}

# What the type of a default does not say, by path or by key.
RULES: dict[str, Schema] = {
    "digest": {"pattern": "^(sha256:[0-9a-f]{64})?$"},
    "for": DAYS,
    "imageRegistry": {"pattern": f"^({DOTTED}(:[0-9]+)?(/[a-z0-9._/-]+)?)?$"},
    "interval": DURATION,
    "intervalSeconds": {"minimum": 1, "maximum": 300},
    "kind": {"enum": ["PrometheusRule", "ConfigMap"]},
    "maxReplicas": {"minimum": 1, "maximum": 1000},
    "maxUnavailable": {"type": ["integer", "string"], "minimum": 1, "pattern": "^[1-9][0-9]?%$"},
    "masterName": {"pattern": "^[A-Za-z0-9_.-]{0,100}$"},
    "maxmemory": {"pattern": "^[0-9]+(kb|mb|gb)$"},
    "minReplicas": {"minimum": 1, "maximum": 1000},
    "minimumRequestRate": {"minimum": 0},
    "namespace": {"pattern": f"^({NAME})?$", "maxLength": 63},
    "namespaceOverride": {"pattern": f"^({NAME})?$", "maxLength": 63},
    "objective": {"exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "patienceSeconds": {"minimum": 0, "maximum": 3600},
    "port": {"minimum": 1, "maximum": 65535},
    "preStopSleepSeconds": {"minimum": 0, "maximum": 300},
    "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "registry": {"pattern": f"^({DOTTED}(:[0-9]+)?(/[a-z0-9._/-]+)?)?$"},
    "release": {"pattern": f"^({DOTTED})?$", "maxLength": 53},
    "rules.renderMode": {"enum": ["", "skipIfMissing", "failIfMissing", "alwaysRender"]},
    "renderMode": {"enum": ["skipIfMissing", "failIfMissing", "alwaysRender"]},
    "runbookBase": {"pattern": "^(https?://[^ ]+)?$"},
    "replicas": {"minimum": 1, "maximum": 1000},
    "repository": {"pattern": "^([a-z0-9]+([._/-]+[a-z0-9]+)*)?$"},
    "scrapeTimeout": DURATION,
    "autoscalerServiceAccountName": {"pattern": f"^({DOTTED})?$"},
    "serverPort": {"minimum": 1, "maximum": 65535},
    "serviceAccountName": {"pattern": f"^({DOTTED})?$"},
    "severity": {"enum": ["critical", "warning", "info"]},
    "size": {"pattern": "^[0-9]+(\\.[0-9]+)?(Ki|Mi|Gi|Ti)$"},
    "tag": {"pattern": "^([A-Za-z0-9_][A-Za-z0-9_.-]*)?$", "maxLength": 128},
    "targetCPUUtilizationPercentage": {"minimum": 1, "maximum": 1000},
    "terminationGracePeriodSeconds": {"minimum": 1, "maximum": 86400},
    "threshold": {"type": "number", "minimum": 0},
    # Edges of the buckets of the router's histograms: a share can only be counted at one.
    "thresholdSeconds": {
        "type": "number",
        "enum": [
            *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1),
            *(2.5, 5, 7.5, 10, 20, 40, 80, 160, 320, 640),
        ],
    },
    "timeoutSeconds": {"minimum": 1, "maximum": 86400},
    "type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "window": DAYS,
    "watchNamespaces": {"items": {"type": "string", "pattern": f"^{NAME}$", "maxLength": 63}, "uniqueItems": True},
}

TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def outputs(root: Path) -> dict[Path, str]:
    """The schema and the README of every chart that has values."""
    spec, scaling, limits = kind_fields(root, 0), scaling_fields(root), router_limits(root)
    files: dict[Path, str] = {}
    for values in sorted(root.glob("charts/llmfleet*/values.yaml")):
        chart, text = values.parent, values.read_text(encoding="utf-8")
        readme = chart / "README.md"
        if not readme.exists():
            continue
        schema = chart_schema(chart.name, text, spec, scaling, limits)
        files[chart / "values.schema.json"] = json.dumps(schema, indent=2) + "\n"
        files[readme] = with_table(readme.read_text(encoding="utf-8"), text)
    return files


def kind_fields(root: Path, number: int) -> dict[str, Schema]:
    """The fields of a kind's spec as its CRD says them: 0 is the LLMCluster, 1 the LLMClusterAutoscaler."""
    version = make_crds.build_crds(make_crds.load_source(root))[number]["spec"]["versions"][0]
    found: dict[str, Schema] = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    return found


def scaling_fields(root: Path) -> dict[str, Schema]:
    """What a model's `autoscaling` may say: an autoscaler's spec without what the chart writes itself."""
    written = ("mode", "scaleTargetRef", "instanceTemplate", "decode")
    return {name: field for name, field in kind_fields(root, 1).items() if name not in written}


def router_limits(root: Path) -> ModuleType:
    """The module that says what the router's settings may be."""
    if str(root / "controllers") not in sys.path:
        sys.path.insert(0, str(root / "controllers"))
    from llmfleet.router import limits

    return limits


def chart_schema(
    chart: str, text: str, spec: Mapping[str, Schema], scaling: Mapping[str, Schema], limits: ModuleType
) -> Schema:
    """The schema of one chart's values, closed at every level that is ours."""
    schema = object_schema(yaml.safe_load(text), comments(text), ())
    properties = schema["properties"]
    if "global" in properties:
        # A chart above may have globals of its own; Helm hands them to every subchart.
        properties["global"]["additionalProperties"] = True
    if chart == "llmfleet":
        for name in set(properties) - {"global"}:
            # Each subchart closes its own values; this level only says which subcharts there are.
            properties[name]["additionalProperties"] = True
    else:
        properties["enabled"] = {"description": "Set by the umbrella chart, whose condition it is", "type": "boolean"}
        properties.setdefault("global", OBJECT)
    if chart == "llmfleet-fleet":
        add_models(schema, spec, scaling)
        add_settings(schema["properties"]["router"]["properties"]["settings"], limits)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Values of the chart {chart}",
        **schema,
    }


def comments(text: str) -> dict[tuple[str, ...], str]:
    """Each key's `# --` line by the key's path."""
    found: dict[tuple[str, ...], str] = {}
    path: list[str] = []
    comment = ""
    for line in text.splitlines():
        if match := re.match(r"^ *# -- (.*)$", line):
            comment = match[1]
        elif match := re.match(r"^( *)([A-Za-z][\w-]*):", line):
            path = [*path[: len(match[1]) // 2], match[2]]
            if comment:
                found[tuple(path)] = comment
            comment = ""
    return found


def object_schema(values: Mapping[str, Any], notes: Notes, path: tuple[str, ...]) -> Schema:
    """A closed object: no key but those of values.yaml, and each that a template cannot do without."""
    properties = {key: key_schema(value, notes, (*path, key)) for key, value in values.items()}
    needed = [key for key, value in values.items() if is_needed(key, value, path)]
    required: Schema = {"required": needed} if needed else {}
    return {"type": "object", "properties": properties, **required, "additionalProperties": False}


def is_needed(key: str, value: Any, path: tuple[str, ...]) -> bool:
    """Whether null, by which Helm takes a key away, is refused: there is a default, and nothing stands for its absence.

    Kubernetes' own shapes may be taken away, and whole alerts.
    """
    if key in SHAPES:
        return isinstance(value, list) and bool(value)
    return value not in ("", [], {}) and "alerts" not in (key, *path[-1:])


def key_schema(value: Any, notes: Notes, path: tuple[str, ...]) -> Schema:
    """One key: its comment, its default's type, and what the rules add."""
    key = path[-1]
    if path not in notes:
        raise SystemExit(f"{'.'.join(path)}: write a `# --` line above it in values.yaml")
    head = {"description": notes[path]}
    if key in SHAPES:
        return head | SHAPES[key]
    if isinstance(value, dict) and value:
        return head | object_schema(value, notes, path)
    return head | {"type": TYPES[type(value)]} | RULES.get(".".join(path), RULES.get(key, {}))


def add_models(schema: Schema, cluster: Mapping[str, Schema], scaling: Mapping[str, Schema]) -> None:
    """Let `engine` and each model take an LLMCluster's fields, with the image in parts."""
    whole = schema["properties"]["engine"]["properties"]["image"]
    image = {key: part for key, part in whole.items() if key != "required"}
    spec = {name: plain(field) for name, field in cluster.items() if name not in ("image", "imagePullPolicy")}
    instances = {
        "description": "How many instances of this model run; null where an overlay writes autoscaling instead",
        "type": ["integer", "null"],
        "minimum": 0,
        "maximum": 1000,
    }
    schema["$defs"] = {"image": image, "engine": {"type": "object", "properties": spec | {"image": reference("image")}}}
    schema["$defs"]["engine"]["additionalProperties"] = False
    ours = {name: plain(field) for name, field in scaling.items() if name != "prefill"}
    about = "Bounds and policy of an LLMClusterAutoscaler that makes the instances of this model"
    fields = {name: reference(f"engine/properties/{name}") for name in [*spec, "image"]}
    block = {name: part for name, part in plain(scaling["prefill"])["properties"].items() if name != "instanceTemplate"}
    schema["$defs"]["role"] = closed_object(
        {
            "instances": instances,
            "autoscaling": closed_object(block, "Bounds of this role's instances, under one LLMClusterAutoscaler"),
        }
        | {name: field for name, field in fields.items() if name != "role"},
        "Instances of this role: a size, and what differs from the model's own fields",
    )
    model = closed_object({"instances": instances, "autoscaling": closed_object(ours, about)} | fields)
    model["properties"] |= {"prefill": reference("role"), "decode": reference("role")}
    schema["$defs"]["model"] = model | {"type": ["object", "null"]}
    schema["properties"]["engine"] = {
        "description": schema["properties"]["engine"]["description"],
        **reference("engine"),
        "required": ["image"],
    }
    schema["properties"]["models"] |= {
        "propertyNames": {"pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 30},
        "additionalProperties": reference("model"),
    }


def closed_object(properties: Schema, description: str = "") -> Schema:
    """An object with these properties and no other."""
    head = {"description": description} if description else {}
    return {**head, "type": "object", "properties": properties, "additionalProperties": False}


def add_settings(schema: Schema, limits: ModuleType) -> None:
    """Let `router.settings` take what the router itself accepts, within the same bounds."""
    sections = {field.name: field.default for field in fields(limits.Settings) if is_dataclass(field.default)}
    schema["properties"] = {limits.camel(name): section_schema(section, limits) for name, section in sections.items()}
    schema["properties"] |= {
        "classes": {"type": "object", "additionalProperties": {"type": "integer", "minimum": -1000, "maximum": 1000}},
        "forwardHeaders": {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"}},
        "logLevel": {"enum": list(limits.LOG_LEVELS)},
    }
    schema["additionalProperties"] = False


def section_schema(section: Any, limits: ModuleType) -> Schema:
    """One section of the router's settings."""
    properties = {limits.camel(field.name): setting_schema(field, limits) for field in fields(section)}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def setting_schema(field: Field[Any], limits: ModuleType) -> Schema:
    """One setting: a section, a switch, a word or a number; what none of these says, the router itself checks."""
    rules = field.metadata
    if is_dataclass(field.default):
        return section_schema(field.default, limits)
    if "switch" in rules:
        return {"type": "boolean"}
    if rules.get("among"):
        return {"enum": list(rules["among"])}
    if "pattern" in rules:
        return {"type": "string", "pattern": f"^({rules['pattern']})$"}
    return bounds(field) if "low" in rules else {}


def bounds(number: Field[Any]) -> Schema:
    """One number of the router's settings."""
    whole = isinstance(number.default, int) and number.name.startswith("max_")
    low, high = number.metadata["low"], number.metadata["high"]
    return {"type": "integer" if whole else "number", "minimum": low, "maximum": high}


def reference(name: str) -> Schema:
    """Point at a definition."""
    return {"$ref": f"#/$defs/{name}"}


def plain(field: Schema, *, item: bool = False) -> Schema:
    """Kubernetes' structural schema as JSON Schema: closed objects, no defaults, no rule that needs CEL.

    Only list items keep what they require: maps are merged from several places before the CRD sees them.
    """
    dropped = ("default", "format", "nullable", *(() if item else ("required",)))
    kept = {k: v for k, v in field.items() if not k.startswith("x-kubernetes-") and k not in dropped}
    if field.get("x-kubernetes-int-or-string"):
        kept = {k: v for k, v in kept.items() if k not in ("anyOf", "type")} | {"type": ["integer", "string"]}
    if isinstance(kept.get("items"), dict):
        kept["items"] = plain(kept["items"], item=True)
    if isinstance(kept.get("additionalProperties"), dict):
        kept["additionalProperties"] = plain(kept["additionalProperties"])
    if "properties" in kept:
        kept["properties"] = {name: plain(part) for name, part in kept["properties"].items()}
        if not field.get("x-kubernetes-preserve-unknown-fields"):
            kept.setdefault("additionalProperties", False)
    return kept


def with_table(readme: str, text: str) -> str:
    """The README with the table between its marks renewed."""
    before, _, rest = readme.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{table(text)}\n{MARKS[1]}{after}"


def table(text: str) -> str:
    """One row for each key that takes a value."""
    rows = ["| key | default | what it is |", "|---|---|---|"]
    for path, value, note in leaves(yaml.safe_load(text), comments(text), ()):
        default = json.dumps(value).replace("|", "\\|")
        rows.append(f"| `{'.'.join(path)}` | `{default}` | {note.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def leaves(
    values: Mapping[str, Any], notes: Notes, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """Keys with their defaults; a Kubernetes shape counts as one value."""
    for key, value in values.items():
        here = (*path, key)
        if isinstance(value, dict) and value and key not in SHAPES:
            yield from leaves(value, notes, here)
        else:
            yield here, value, notes[here]
