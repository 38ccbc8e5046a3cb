"""From a model's JSON schema to the structural schema that a CRD takes.

The API server wants every type spelled out in place: no `$ref`, no `anyOf` with null, nothing that
`apiextensions.k8s.io/v1` JSONSchemaProps does not know.
"""

from typing import Any

from pydantic import BaseModel

KEPT = {
    "description",
    "enum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "pattern",
    "required",
    "type",
}
"""Copied as they are; `properties`, `additionalProperties`, `default`, `x-kubernetes-*` are handled below."""

DROPPED = {"title"}


class NotStructuralError(ValueError):
    """A model uses something that a CRD cannot express; the message says where."""


def structural(model: type[BaseModel]) -> dict[str, Any]:
    """The structural schema of a model. Raises NotStructuralError."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return _convert(schema, schema.get("$defs", {}), model.__name__)


def _convert(schema: dict[str, Any], definitions: dict[str, Any], where: str) -> dict[str, Any]:
    schema = _inline(schema, definitions, where)
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in KEPT:
            out[key] = " ".join(value.split()) if key == "description" else value
        elif key == "properties":
            out[key] = {name: _convert(sub, definitions, f"{where}.{name}") for name, sub in value.items()}
        elif key == "additionalProperties":
            out[key] = _convert(value, definitions, f"{where}[*]")
        elif key == "const":
            out["enum"] = [value]
        elif key == "default":
            if _is_scalar(value):
                out[key] = value
        elif key.startswith("x-kubernetes-"):
            out[key] = value
        elif key not in DROPPED:
            raise NotStructuralError(f"{where}: {key} has no place in a CRD's schema")
    if "items" in out:
        out["items"] = _convert(out["items"], definitions, f"{where}[]")
    if "type" not in out:
        raise NotStructuralError(f"{where}: no type")
    return out


def _inline(schema: dict[str, Any], definitions: dict[str, Any], where: str) -> dict[str, Any]:
    """Replace `$ref` and `anyOf [X, null]` by what they stand for; what stands beside wins, rules add up."""
    schema = {key: value for key, value in schema.items() if key != "$defs"}
    while "$ref" in schema or "anyOf" in schema:
        if "$ref" in schema:
            inner = definitions[schema.pop("$ref").removeprefix("#/$defs/")]
        else:
            options = [option for option in schema.pop("anyOf") if option != {"type": "null"}]
            if len(options) != 1:
                raise NotStructuralError(f"{where}: a union of types; write one optional field for each")
            inner = options[0]
        schema = _merge(inner, schema)
    return schema


def _merge(inner: dict[str, Any], outer: dict[str, Any]) -> dict[str, Any]:
    validations = [*inner.get("x-kubernetes-validations", []), *outer.get("x-kubernetes-validations", [])]
    merged = {**inner, **outer}
    return {**merged, "x-kubernetes-validations": validations} if validations else merged


def _is_scalar(value: object) -> bool:
    """Only these defaults are the API server's to fill in: an absent list, map or object stays absent."""
    return isinstance(value, bool | int) or (isinstance(value, str) and value != "")
