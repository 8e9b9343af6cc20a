"""Who may call which rpc: reads the role rule off the contract, decides, and refuses contracts with holes.

The rule is the method option ``convergence.access.v1.rule``, found by name in the descriptor pool, so that this module
knows no generated code. ``libs.grpc_server`` asks once at start for all rules and then once per call for the decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

from libs.errors import PermissionDenied, Unauthenticated
from libs.tenancy import Caller, Role, tenant_not_found

_OPTION = "convergence.access.v1.rule"
_PEERS_ONLY = "ROLE_UNSPECIFIED"
_ANY_KEY = "ANY_KEY"
_TENANT_FIELD = "tenant_id"
GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class Rule:
    """The rule of one rpc: the weakest role that opens it over the public port, and the peers that may call anyway."""

    role: str
    peers: frozenset[str] = frozenset()

    @property
    def peers_only(self) -> bool:
        """True if no key opens the rpc."""
        return self.role == _PEERS_ONLY

    @property
    def names_tenant(self) -> bool:
        """True if the rpc acts inside the one tenant its request names."""
        return self.role in (Role.RUNNER, Role.ADMIN)


def rules_of(services: Iterable[str], pool: descriptor_pool.DescriptorPool | None = None) -> Mapping[str, Rule]:
    """Returns the rule of every method (``/package.Service/Method``) of the services.

    Raises ``ValueError`` naming every method whose rule is missing or cannot be enforced, so that a server that would
    leave an rpc open or dead never starts.
    """
    pool = pool or descriptor_pool.Default()
    rules: dict[str, Rule] = {}
    holes: list[str] = []
    for service in services:
        for method in pool.FindServiceByName(service).methods:
            rule = _rule_of(method, pool)
            hole = "has no rule" if rule is None else _hole(rule, method)
            if rule is None or hole:
                holes.append(f"{method.full_name} {hole}")
            else:
                rules[f"/{service}/{method.name}"] = rule
    if holes:
        raise ValueError("every rpc needs a usable option (convergence.access.v1.rule): " + "; ".join(holes))
    return rules


def authorise(rule: Rule | None, caller: Caller, tenant_id: str | None, *, onboarding_open: bool) -> None:
    """Raises unless ``caller`` may call an rpc with ``rule`` for the tenant its request names (``None``: names none).

    The order is part of the contract: an rpc without a rule lets nobody in; another tenant's id is answered exactly as
    one that does not exist, before anything about roles is told; only then is the role compared.
    """
    if rule is None:
        raise PermissionDenied("RULE_MISSING", "Nobody may call this method.")
    if caller.role is None:
        _authorise_peer(rule, caller)
        return
    if rule.peers_only:
        raise PermissionDenied("PEERS_ONLY", "No key opens this method.")
    if caller.role is Role.PLATFORM_ADMIN:
        return
    if rule.role == Role.ONBOARDER:
        if not onboarding_open:
            raise PermissionDenied("ROLE_TOO_LOW", "Onboarding needs the platform admin's key.")
        return
    if caller.role is Role.ONBOARDER:
        raise Unauthenticated("API_KEY_MISSING", "Send an API key in the x-api-key header.")
    if rule.role == _ANY_KEY:
        return
    if tenant_id is not None and (not caller.tenant_id or tenant_id != caller.tenant_id):
        raise tenant_not_found()
    if rule.names_tenant and tenant_id is None:
        raise tenant_not_found()
    if not caller.role.allows(Role(rule.role)):
        raise PermissionDenied("ROLE_TOO_LOW", f"This needs a key with role {rule.role}.", needed_role=rule.role)


def _authorise_peer(rule: Rule, caller: Caller) -> None:
    if not caller.peer:
        raise Unauthenticated("API_KEY_MISSING", "Send an API key in the x-api-key header.")
    if caller.peer not in rule.peers:
        raise PermissionDenied("PEER_NOT_ALLOWED", "This process may not call this method.", peer=caller.peer)


def _rule_of(method: MethodDescriptor, pool: descriptor_pool.DescriptorPool) -> Rule | None:
    try:
        option: Any = pool.FindExtensionByName(_OPTION)
    except KeyError:
        return None
    # Parsed again: options read before the extension was known keep it among their unknown fields.
    known = message_factory.GetMessageClass(pool.FindMessageTypeByName("google.protobuf.MethodOptions"))
    options: Any = known.FromString(method.GetOptions().SerializeToString())
    if not options.HasExtension(option):
        return None
    value: Any = options.Extensions[option]
    role = value.DESCRIPTOR.fields_by_name["role"].enum_type.values_by_number.get(value.role)
    return Rule(role.name, frozenset(value.peers)) if role else None


def _hole(rule: Rule, method: MethodDescriptor) -> str:
    field = method.input_type.fields_by_name.get(_TENANT_FIELD)
    if GATEWAY in rule.peers:
        return "lists the peer gateway, whose callers are judged by their role"
    if rule.peers_only and not rule.peers:
        return "lets nobody in"
    if rule.names_tenant and (field is None or field.type != FieldDescriptor.TYPE_STRING or field.is_repeated):
        return f"is for one tenant, but {method.input_type.full_name} has no string field tenant_id"
    if rule.role == _ANY_KEY and field is not None:
        return "is open to any key, but its request names a tenant"
    return ""
