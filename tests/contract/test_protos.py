"""The contracts keep the rules of ``protos/README.md``, read from their descriptors with comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from buf.validate import validate_pb2
from convergence.access.v1 import access_pb2
from convergence.credential.v1 import credential_pb2
from convergence.pipeline_executor.v1 import pipeline_executor_pb2
from convergence.scheduler.v1 import scheduler_pb2
from convergence.tenant.v1 import tenant_pb2
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from deploy.envoy import openapi
from protos import generate

# The public service of each context: what the gateway forwards to. All others are on the internal port.
PUBLIC = {
    "convergence.tenant.v1.TenantService",
    "convergence.credential.v1.CredentialService",
    "convergence.pipeline_executor.v1.PipelineService",
    "convergence.scheduler.v1.ScheduleService",
}
CONTEXTS = (tenant_pb2, credential_pb2, pipeline_executor_pb2, scheduler_pb2)
METHODS = [
    method
    for module in CONTEXTS
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
PUBLIC_METHODS = [method for method in METHODS if method.containing_service.full_name in PUBLIC]
INTERNAL_METHODS = [method for method in METHODS if method.containing_service.full_name not in PUBLIC]

# ARCHITECTURE's REST surface: every verb and path that a client may rely on.
T, C = "/api/v1/tenants/{tenant_id}", "/api/v1/scheduler/customer/{tenant_id}"
R, S = "/api/v1/pipelines/runs/{tenant_id}", "/api/v1/scheduler"
SURFACE = {
    "POST /api/v1/tenants/onboard",
    "GET /api/v1/whoami",
    "GET /api/v1/tenants",
    *(f"{verb} {T}" for verb in ("GET", "PATCH", "DELETE")),
    f"POST {T}:suspend",
    f"POST {T}:reactivate",
    f"GET {T}/usage",
    f"GET {T}/audit",
    f"POST {T}/api-keys",
    f"GET {T}/api-keys",
    f"DELETE {T}/api-keys/{{api_key_id}}",
    f"POST {T}/api-keys/{{api_key_id}}:rotate",
    f"POST {T}/credentials",
    f"GET {T}/credentials",
    *(f"{verb} {T}/credentials/{{credential_id}}" for verb in ("GET", "PATCH", "DELETE")),
    f"POST {T}/credentials/{{credential_id}}:validate",
    "GET /api/v1/pipelines/templates",
    "POST /api/v1/pipelines/run/{tenant_id}/{provider}/{domain}/{template}",
    f"GET {R}",
    f"GET {R}/{{pipeline_logging_id}}",
    f"GET {R}/{{pipeline_logging_id}}/steps",
    f"GET {R}/{{pipeline_logging_id}}/dq-results",
    f"POST {R}/{{pipeline_logging_id}}:cancel",
    f"GET {R}/{{pipeline_logging_id}}:watch",
    "GET /api/v1/costs/{tenant_id}",
    "GET /api/v1/compliance/{tenant_id}",
    *(f"POST {S}/{job}" for job in ("trigger", "process-queue", "reset-daily-quotas")),
    *(f"GET {S}/{view}" for view in ("status", "invariants", "queue", "dead-letters")),
    f"POST {S}/dead-letters/{{run_id}}:requeue",
    f"GET {C}/pipelines",
    f"POST {C}/pipelines",
    *(f"{verb} {C}/pipelines/{{config_id}}" for verb in ("GET", "PATCH", "DELETE")),
    *(f"POST {C}/pipelines/{{config_id}}:{verb}" for verb in ("pause", "resume", "run")),
    f"GET {C}/pipelines/{{config_id}}/runs",
    f"POST {C}/backfills",
    f"GET {C}/backfills",
    f"GET {C}/backfills/{{backfill_id}}",
    f"POST {C}/backfills/{{backfill_id}}:cancel",
    f"POST {C}/runs/{{run_id}}:cancel",
}


@pytest.fixture(scope="module")
def contracts(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor_pb2.FileDescriptorProto]:
    """Our files as protoc reads them, with their comments."""
    path = tmp_path_factory.mktemp("image") / "contracts.binpb"
    generate.image(path)
    files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file
    return [file for file in files if file.name.startswith("convergence/")]


def binding(method) -> tuple[str, str]:
    """HTTP verb and path of an rpc; empty strings without any."""
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern") or ""
    return verb.upper(), getattr(rule, verb) if verb else ""


def ids(methods) -> list[str]:
    return [f"{method.containing_service.name}.{method.name}" for method in methods]


def messages(file) -> Iterator[tuple[str, descriptor_pb2.DescriptorProto]]:
    """All messages of a file, nested ones too, by their dotted name; map entries are protoc's."""

    def walk(
        prefix: str, message: descriptor_pb2.DescriptorProto
    ) -> Iterator[tuple[str, descriptor_pb2.DescriptorProto]]:
        yield prefix + message.name, message
        for nested in message.nested_type:
            if not nested.options.map_entry:
                yield from walk(f"{prefix}{message.name}.", nested)

    for message in file.message_type:
        yield from walk("", message)


def test_package_is_the_directory_and_file_is_the_context(contracts) -> None:
    assert len(contracts) == len(CONTEXTS) + 1
    for file in contracts:
        folder, _, name = file.name.rpartition("/")
        assert file.package == folder.replace("/", ".")
        assert name == folder.split("/")[1] + ".proto"


def test_everything_has_a_comment(contracts) -> None:
    bare = []
    for file in contracts:
        commented = {tuple(place.path) for place in file.source_code_info.location if place.leading_comments.strip()}
        for location in file.source_code_info.location:
            if is_element(tuple(location.path)) and tuple(location.path) not in commented:
                bare.append(f"{file.name}:{location.span[0] + 1}")
    assert bare == []


def is_element(path: tuple[int, ...]) -> bool:
    """True for the path of a message, field, enum, enum value, service, rpc or extension in a file's descriptor."""
    inside = {"file": {4: "message", 5: "enum", 6: "service", 7: "field"}}
    inside["message"] = {2: "field", 3: "message", 4: "enum", 6: "field"}
    inside["enum"], inside["service"] = {2: "value"}, {2: "rpc"}
    kind = "file"
    if not path or len(path) % 2:
        return False
    for number in path[::2]:
        kind = inside.get(kind, {}).get(number, "")
    return bool(kind)


def test_enums_are_nested_bare_words_with_a_zero_value(contracts) -> None:
    for file in contracts:
        assert [enum.name for enum in file.enum_type] == []
        for _, message in messages(file):
            for enum in message.enum_type:
                words = "".join(f"_{letter}" if letter.isupper() else letter for letter in enum.name).strip("_").upper()
                assert (enum.value[0].name, enum.value[0].number) == (f"{words}_UNSPECIFIED", 0)


def test_times_end_in_time_and_money_is_never_a_float(contracts) -> None:
    types = descriptor_pb2.FieldDescriptorProto
    for file in contracts:
        for name, message in messages(file):
            for field in message.field:
                # The exceptions are names in tables (`until` inside a grant), which the wire repeats.
                stored = ("scheduled_for", "not_before", "until")
                if field.type_name == ".google.protobuf.Timestamp" and field.name not in stored:
                    assert field.name.endswith(("time", "times")), f"{name}.{field.name}"
                assert field.type not in (types.TYPE_DOUBLE, types.TYPE_FLOAT), f"{name}.{field.name}"


def test_tenant_id_comes_first(contracts) -> None:
    late = [
        f"{name}.tenant_id"
        for file in contracts
        for name, message in messages(file)
        if name.endswith("Request")
        for position, field in enumerate(message.field)
        if field.name == "tenant_id" and (position or field.number != 1)
    ]
    assert late == []


def test_lists_are_asked_for_and_answered_alike(contracts) -> None:
    comments = dict(openapi.comments(contracts))
    seen = 0
    for method in PUBLIC_METHODS:
        request, answer = method.input_type, method.output_type
        listed = "next_page_token" in answer.fields_by_name
        assert listed or not method.name.startswith(("List", "Query")), method.full_name
        if not listed:
            assert not {"page_size", "page_token"} & set(request.fields_by_name), method.full_name
            continue
        seen += 1
        size, token = request.fields_by_name["page_size"], request.fields_by_name["page_token"]
        rules = size.GetOptions().Extensions[validate_pb2.field].int32
        assert (size.type, rules.gte, rules.HasField("lte")) == (size.TYPE_INT32, 0, False), method.full_name
        assert token.GetOptions().Extensions[validate_pb2.field].string.max_len == 1024
        assert comments[f"{request.full_name}.page_size"] == "At most this many (default 100, above 1000 means 1000)."
        assert comments[f"{request.full_name}.page_token"] == "The `next_page_token` of the page before."
        assert answer.fields[0].is_repeated and answer.fields[0].message_type is not None
        # Each list has one order, and says which; filters are fields of their own.
        order = comments[answer.fields[0].full_name]
        assert re.match(r"(By|Ordered by|In) |(Newest|Oldest|Largest|Most open) first", order), (
            f"{answer.name}: {order}"
        )
        assert not {"filter", "order_by", "sort", "offset", "limit", "cursor"} & set(request.fields_by_name)
    assert seen > 10


def test_dates_are_asked_for_alike() -> None:
    for method in PUBLIC_METHODS:
        for field in method.input_type.fields:
            if field.name == "date" or field.name.endswith(("_date", "_since")):
                pattern = field.GetOptions().Extensions[validate_pb2.field].string.pattern
                assert pattern.strip("^$()?") == "[0-9]{4}-[0-9]{2}-[0-9]{2}", field.full_name


@pytest.mark.parametrize("method", METHODS, ids=ids(METHODS))
def test_every_rpc_has_a_rule(method) -> None:
    options = method.GetOptions()
    assert options.HasExtension(access_pb2.rule)
    rule = options.Extensions[access_pb2.rule]
    if method in INTERNAL_METHODS:
        assert rule.role == access_pb2.Rule.ROLE_UNSPECIFIED
        assert rule.peers
    else:
        assert rule.role != access_pb2.Rule.ROLE_UNSPECIFIED
    assert "gateway" not in rule.peers


@pytest.mark.parametrize("method", PUBLIC_METHODS, ids=ids(PUBLIC_METHODS))
def test_public_rpc_is_bound_to_http(method) -> None:
    verb, path = binding(method)
    assert verb
    assert path.startswith("/api/v1/")
    fields = {field.name for field in method.input_type.fields}
    assert {part.strip("{}") for part in path.replace(":", "/").split("/") if part.startswith("{")} <= fields
    if "{tenant_id}" in path or "tenant_id" in fields:
        assert method.input_type.fields[0].name == "tenant_id"


def test_internal_rpcs_have_no_http() -> None:
    assert [method.full_name for method in INTERNAL_METHODS if binding(method)[0]] == []


def test_rest_surface_is_complete_and_nothing_more() -> None:
    bound = {" ".join(binding(method)) for method in PUBLIC_METHODS}
    assert bound == SURFACE


def test_contexts_share_no_messages(contracts) -> None:
    for file in contracts:
        others = [
            name
            for name in file.dependency
            if name.startswith("convergence/") and name != "convergence/access/v1/access.proto"
        ]
        assert others == [], f"{file.name} imports {others}: contexts refer to each other by id"


def test_the_image_is_a_build_output() -> None:
    assert not (Path(generate.PROTOS) / "gen" / "contracts.binpb").exists()
