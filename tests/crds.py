"""Schemas of kinds that are none of Kubernetes' own, closed: a field that they do not name is an error.

`python -m tests.crds FILE…` writes them anew from definitions (CustomResourceDefinition, YAML) of a release of KEDA
(config/crd/bases) or Prometheus's operator (example/prometheus-operator-crd): their structure, without their texts.
"""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml

FOLDER = Path(__file__).parent / "crds"
ANY = "x-kubernetes-preserve-unknown-fields"


def closed(schema: Any) -> Any:
    """The schema as JSON Schema has it, which lets no more through than what it names."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: closed(value) for key, value in schema.items() if key != "description" or isinstance(value, dict)}
    if kept.pop("x-kubernetes-int-or-string", False):
        kept["type"] = ["integer", "string"]
        kept.pop("anyOf", None)
    if "properties" in kept and not kept.get(ANY) and "additionalProperties" not in kept:
        kept["additionalProperties"] = False
    return {key: value for key, value in kept.items() if not key.startswith("x-kubernetes")}


def wrong(one: dict[str, Any]) -> list[str]:
    """What is wrong with an object, if its kind is known here."""
    known = _known(one["kind"])
    if known and one["apiVersion"] not in known:
        return [f"{one['kind']} is of {', '.join(known)}, not of {one['apiVersion']}"]
    return [str(error.message) for error in known[one["apiVersion"]].iter_errors(one)] if known else []


@functools.cache
def _known(kind: str) -> dict[str, Any]:
    """By version."""
    path = FOLDER / f"{kind}.json"
    schemas = json.loads(path.read_text()) if path.exists() else {}
    return {version: jsonschema_rs.validator_for(schema) for version, schema in schemas.items()}


def main(*paths: str) -> None:
    for path in paths:
        spec = yaml.safe_load(Path(path).read_text())["spec"]
        schemas = {}
        for version in spec["versions"]:
            schema = closed(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            schemas[f"{spec['group']}/{version['name']}"] = schema
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{spec['names']['kind']}.json").write_text(json.dumps(schemas, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
