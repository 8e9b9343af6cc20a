"""Every REST route and every method of the contract, read off the descriptors, with paths one can send."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from google.api import annotations_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

from tests.support.gateway import public_methods

# Something of the right form for each path variable but the tenant.
VALUES: Mapping[str, str] = {
    "provider": "gcp",
    "domain": "cost",
    "template": "billing",
    "pipeline_logging_id": "6b9e1f0a-4d3e-4f2b-8a1c-0d9e8f7a6b5c",
    "run_id": "6b9e1f0a-4d3e-4f2b-8a1c-0d9e8f7a6b5c",
    "config_id": "6b9e1f0a-4d3e-4f2b-8a1c-0d9e8f7a6b5c",
    "backfill_id": "6b9e1f0a-4d3e-4f2b-8a1c-0d9e8f7a6b5c",
    "credential_id": "cred_0123456789abcdef",
    "api_key_id": "key_0123456789abcdef",
}


@dataclass(frozen=True, slots=True)
class Route:
    """One way to call one method over REST."""

    verb: str
    template: str
    method: MethodDescriptor

    @property
    def names_tenant(self) -> bool:
        """True if the path is one tenant's."""
        return "{tenant_id}" in self.template

    @property
    def grpc_path(self) -> str:
        """The method's path on the wire."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    def path(self, tenant_id: str = "acme") -> str:
        """The path for a tenant, other variables filled with something of their form."""
        values = {**VALUES, "tenant_id": tenant_id}
        return re.sub(r"\{(\w+)\}", lambda found: values[found.group(1)], self.template)

    def __str__(self) -> str:
        return f"{self.verb} {self.template}"


def routes() -> list[Route]:
    """Every binding of every public method."""
    found = []
    for method in public_methods():
        options = method.GetOptions().Extensions[annotations_pb2.http]
        for binding in (options, *options.additional_bindings):
            verb = binding.WhichOneof("pattern")
            found.append(Route(verb.upper(), getattr(binding, verb), method))
    return found


def names_tenant(method: MethodDescriptor) -> bool:
    """True if the method's request names a tenant."""
    field = method.input_type.fields_by_name.get("tenant_id")
    return field is not None and field.type == FieldDescriptor.TYPE_STRING
