"""The role rule: what a contract must say, and the decision for every kind of caller."""

from __future__ import annotations

import pytest
from convergence.access.v1 import access_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from libs import access, errors
from libs.access import Rule, authorise
from libs.tenancy import Caller, Role
from tests.support.gateway import internal_methods, public_methods

NOBODY = Caller(None)
ONBOARDER = Caller(Role.ONBOARDER)
RUNNER = Caller(Role.RUNNER, "acme", "k1")
ADMIN = Caller(Role.ADMIN, "acme", "k2")
PLATFORM = Caller(Role.PLATFORM_ADMIN)
CRON = Caller(None, peer="cron")
GATEWAY_RUNNER = Caller(Role.RUNNER, "acme", "k1", peer="gateway")


def outcome(rule: Rule | None, caller: Caller, tenant_id: str | None = None, *, is_open: bool = False) -> str:
    try:
        authorise(rule, caller, tenant_id, onboarding_open=is_open)
    except errors.Error as exc:
        return exc.reason
    return "ok"


@pytest.mark.parametrize(
    ("rule", "caller", "tenant_id", "expected"),
    [
        (None, PLATFORM, None, "RULE_MISSING"),
        (None, CRON, None, "RULE_MISSING"),
        (Rule("RUNNER"), RUNNER, "acme", "ok"),
        (Rule("RUNNER"), GATEWAY_RUNNER, "acme", "ok"),
        (Rule("RUNNER"), ADMIN, "acme", "ok"),
        (Rule("RUNNER"), PLATFORM, "acme", "ok"),
        (Rule("RUNNER"), RUNNER, "other_co", "TENANT_NOT_FOUND"),
        (Rule("RUNNER"), RUNNER, "ACME", "TENANT_NOT_FOUND"),
        (Rule("RUNNER"), RUNNER, "", "TENANT_NOT_FOUND"),
        (Rule("RUNNER"), Caller(Role.RUNNER, ""), "", "TENANT_NOT_FOUND"),
        (Rule("RUNNER"), RUNNER, None, "TENANT_NOT_FOUND"),
        (Rule("RUNNER"), ONBOARDER, "acme", "API_KEY_MISSING"),
        (Rule("RUNNER"), NOBODY, "acme", "API_KEY_MISSING"),
        (Rule("RUNNER"), CRON, "acme", "PEER_NOT_ALLOWED"),
        (Rule("ADMIN"), RUNNER, "acme", "ROLE_TOO_LOW"),
        (Rule("ADMIN"), RUNNER, "other_co", "TENANT_NOT_FOUND"),
        (Rule("ADMIN"), ADMIN, "acme", "ok"),
        (Rule("PLATFORM_ADMIN"), ADMIN, "acme", "ROLE_TOO_LOW"),
        (Rule("PLATFORM_ADMIN"), ADMIN, "other_co", "TENANT_NOT_FOUND"),
        (Rule("PLATFORM_ADMIN"), ADMIN, None, "ROLE_TOO_LOW"),
        (Rule("PLATFORM_ADMIN"), PLATFORM, None, "ok"),
        (Rule("PLATFORM_ADMIN", frozenset({"cron"})), CRON, None, "ok"),
        (Rule("PLATFORM_ADMIN", frozenset({"scheduler"})), CRON, None, "PEER_NOT_ALLOWED"),
        (Rule("ANY_KEY"), RUNNER, None, "ok"),
        (Rule("ANY_KEY"), PLATFORM, None, "ok"),
        (Rule("ANY_KEY"), ONBOARDER, None, "API_KEY_MISSING"),
        (Rule("ANY_KEY"), NOBODY, None, "API_KEY_MISSING"),
        (Rule("ROLE_UNSPECIFIED", frozenset({"cron"})), CRON, "acme", "ok"),
        (Rule("ROLE_UNSPECIFIED", frozenset({"cron"})), PLATFORM, "acme", "PEERS_ONLY"),
        (Rule("ROLE_UNSPECIFIED", frozenset({"gateway"})), GATEWAY_RUNNER, "acme", "PEERS_ONLY"),
    ],
)
def test_decision(rule: Rule | None, caller: Caller, tenant_id: str | None, expected: str) -> None:
    assert outcome(rule, caller, tenant_id) == expected


@pytest.mark.parametrize("caller", [ONBOARDER, RUNNER, ADMIN])
def test_onboarding_is_for_the_platform_admin_unless_it_is_open(caller: Caller) -> None:
    rule = Rule("ONBOARDER")
    assert outcome(rule, caller, "new_co") == "ROLE_TOO_LOW"
    assert outcome(rule, caller, "new_co", is_open=True) == "ok"
    assert outcome(rule, PLATFORM, "new_co") == "ok"
    assert outcome(rule, NOBODY, "new_co", is_open=True) == "API_KEY_MISSING"


def contract(rule: str, *, request: str = "string tenant_id") -> descriptor_pool.DescriptorPool:
    """A pool with one service of one method with this rule, over a request with this field."""
    pool = descriptor_pool.DescriptorPool()
    for module in (descriptor_pb2, access_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    file.dependency.append("convergence/access/v1/access.proto")
    message = file.message_type.add(name="M")
    if request:
        kind, name = request.split()
        number = descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
        message.field.add(name=name, number=1, type=number, label="LABEL_OPTIONAL")
    method = file.service.add(name="S").method.add(name="Do", input_type=".t.M", output_type=".t.M")
    if rule:
        options = message_factory.GetMessageClass(pool.FindMessageTypeByName("google.protobuf.MethodOptions"))()
        text_format.Parse(f"[convergence.access.v1.rule] {{ {rule} }}", options, descriptor_pool=pool)
        method.options.ParseFromString(options.SerializeToString())
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def test_a_rule_is_read_off_the_contract() -> None:
    rules = access.rules_of(["t.S"], contract("role: PLATFORM_ADMIN peers: 'cron'"))
    assert rules == {"/t.S/Do": Rule("PLATFORM_ADMIN", frozenset({"cron"}))}


@pytest.mark.parametrize(
    ("rule", "request_field", "complaint"),
    [
        ("", "string tenant_id", "has no rule"),
        ("role: ROLE_UNSPECIFIED", "string tenant_id", "lets nobody in"),
        ("role: 99", "string tenant_id", "has no rule"),
        ("role: RUNNER", "", "no string field tenant_id"),
        ("role: ADMIN", "int32 tenant_id", "no string field tenant_id"),
        ("role: ANY_KEY", "string tenant_id", "names a tenant"),
        ("role: ADMIN peers: 'gateway'", "string tenant_id", "peer gateway"),
    ],
)
def test_a_contract_with_a_hole_is_refused(rule: str, request_field: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"t\.S\.Do .*{complaint}"):
        access.rules_of(["t.S"], contract(rule, request=request_field))


def test_every_method_of_our_contract_has_a_usable_rule() -> None:
    methods = [*public_methods(), *internal_methods()]
    rules = access.rules_of(sorted({method.containing_service.full_name for method in methods}))
    assert len(rules) == len(methods) > 50
    for method in internal_methods():
        assert rules[f"/{method.containing_service.full_name}/{method.name}"].peers_only
    for method in public_methods():
        assert not rules[f"/{method.containing_service.full_name}/{method.name}"].peers_only
