"""What all kinds share: the models' settings, metadata, conditions, references, rules of the CRDs."""

import datetime
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

GROUP = "kube3fs.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


# ---- CRD vocabulary: what JSON schema cannot say, as x-kubernetes-* extensions -----------------------------


class Rule(NamedTuple):
    """A CEL rule of the API server, over `self` and `oldSelf`. The message says what to change."""

    rule: str
    message: str
    reason: Literal["FieldValueInvalid", "FieldValueForbidden"] = "FieldValueInvalid"


def rules(*all_rules: Rule) -> dict[str, Any]:
    """Schema extension: CEL rules on the field or model that carries it."""
    return {"x-kubernetes-validations": [rule._asdict() for rule in all_rules]}


def immutable(message: str) -> Rule:
    """A field that keeps its first value. For an optional field, which may come and go, see `fixed_once`."""
    return Rule("self == oldSelf", message, "FieldValueForbidden")


def fixed_once(field: str, message: str) -> Rule:
    """For the parent of an optional field: the field may be neither added nor removed later, nor changed."""
    return Rule(
        f"has(self.{field}) == has(oldSelf.{field}) "
        f"&& (!has(self.{field}) || self.{field} == oldSelf.{field})",
        message,
        "FieldValueForbidden",
    )


def exactly_one_of(fields: Sequence[str], message: str) -> Rule:
    """For a union written as optional fields: one of them, no more and no less."""
    return Rule(" + ".join(f"(has(self.{field}) ? 1 : 0)" for field in fields) + " == 1", message)


def keyed_by(*keys: str) -> dict[str, Any]:
    """Schema extension: a list of objects that server-side apply merges by these fields."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


# ---- models ------------------------------------------------------------------------------------------------


class ApiModel(BaseModel):
    """Base of every model: camelCase outside, snake_case inside, frozen, unknown fields ignored.

    Unknown fields are the API server's to refuse; an older reader must understand a newer object.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        use_attribute_docstrings=True,
    )

    def as_object(self) -> dict[str, Any]:
        """As the API server takes it: camelCase, JSON types, fields that are None left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


Name = Annotated[str, Field(min_length=1, max_length=253)]
"""The name of a Kubernetes object."""

MOST_BYTES = 2**62
"""The most bytes that a status can say; what earlier versions promised in all may be more."""
Bytes = Annotated[int, Field(ge=0, le=MOST_BYTES, json_schema_extra={"format": "int64"})]
"""A number of bytes."""

Count = Annotated[int, Field(ge=0, le=2**31 - 1, json_schema_extra={"format": "int32"})]

Word = Annotated[str, Field(max_length=64)]
"""A short machine-written string: a version, a state."""

MESSAGE_LIMIT = 4096


def _clip(text: object) -> object:
    if isinstance(text, str) and len(text) > MESSAGE_LIMIT:
        return text[: MESSAGE_LIMIT - 1] + "…"
    return text


Message = Annotated[str, BeforeValidator(_clip), Field(max_length=MESSAGE_LIMIT)]
"""A sentence for people. Cut to 4096 characters rather than refused: a long error must not hide itself."""

HOST_PATH_RULES = (
    Rule(
        "self.startsWith('/') && size(self) > 1",
        "path must be absolute and not the root: for example /var/lib/kube3fs",
    ),
    Rule(
        "!self.endsWith('/') && !self.contains('//') && !self.matches('/[.][.]?(/|$)')",
        "path must be clean: remove the trailing /, // and the . and .. segments",
    ),
    Rule("self.matches('^[A-Za-z0-9._/-]*$')", "path may hold letters, digits and . _ - / only"),
)

HostPath = Annotated[str, Field(min_length=1, max_length=512)]
"""A folder on a node: absolute and clean."""


def now() -> datetime.datetime:
    """The current time as metav1.Time has it: UTC, whole seconds."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


class ObjectMeta(ApiModel):
    """The part of metav1.ObjectMeta that our programs read. Fields not named here are kept as they came."""

    model_config = ConfigDict(extra="allow")

    name: str
    namespace: str | None = None
    uid: str | None = None
    generation: int | None = None
    resource_version: str | None = None
    creation_timestamp: datetime.datetime | None = None
    deletion_timestamp: datetime.datetime | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: list[str] = Field(default_factory=list)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, _core: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Metadata is the API server's own: a CRD may say no more about it."""
        return {"type": "object"}


class Condition(ApiModel):
    """One aspect of the object's state, as metav1.Condition."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    """What the condition is about, in CamelCase."""
    status: Literal["True", "False", "Unknown"]
    observed_generation: Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})] | None = None
    """The generation of the spec that this condition was computed from."""
    last_transition_time: datetime.datetime
    """When the status last changed."""
    reason: Annotated[
        str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    ]
    """Why, in CamelCase, for programs."""
    message: Message
    """Why, in a sentence, for people, with what to do about it."""


Conditions = Annotated[list[Condition], Field(max_length=16, json_schema_extra=keyed_by("type"))]


class Status(ApiModel):
    """Base of every kind's status."""

    observed_generation: Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})] | None = None
    """The generation of the spec that this status was computed from."""
    conditions: Conditions = Field(default_factory=list)


class ClusterRef(ApiModel):
    """A StorageCluster by namespace and name."""

    namespace: Annotated[str, Field(min_length=1, max_length=63)]
    name: Annotated[str, Field(min_length=1, max_length=63)]

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class CallError(ApiModel):
    """Why the last attempt failed: what the waiting CSI call answers."""

    code: Word
    """Name of a gRPC status code, for example RESOURCE_EXHAUSTED."""
    message: Message
    """A sentence that says what to do."""


class Column(NamedTuple):
    """A column of `kubectl get`. Priority 1 shows with `-o wide` only."""

    name: str
    type: Literal["string", "integer", "date", "boolean"]
    json_path: str
    priority: int = 0


class Names(NamedTuple):
    """How a kind appears in the API and in kubectl."""

    plural: str
    short: str
    namespaced: bool
    columns: tuple[Column, ...]
    selectable: tuple[str, ...] = ()
    """Fields for `kubectl get --field-selector`, and for agents that watch only their node's objects."""


AGE = Column("Age", "date", ".metadata.creationTimestamp")
READY = Column("Ready", "string", '.status.conditions[?(@.type=="Ready")].status')
REASON = Column("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', 1)


class Resource(ApiModel):
    """A kind of ours. Subclasses add `spec`, `status` and `names`."""

    names: ClassVar[Names]

    api_version: Literal["kube3fs.io/v1alpha1"] = "kube3fs.io/v1alpha1"
    kind: str = ""
    metadata: ObjectMeta
