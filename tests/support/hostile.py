"""Tenant ids that somebody might try: none of them is one, and none may reach a statement, a dataset or a path."""

from __future__ import annotations

# As a client would put them into JSON; in a path they are percent-encoded.
HOSTILE_IDS = (
    "",
    "a",
    "ab",
    "a" * 51,
    "a" * 5_000,
    "ACME",
    "Acme",
    "1acme",
    "_acme",
    "acme-co",
    "acme.co",
    "acme co",
    " acme",
    "acme ",
    "acme\n",
    "acme\r\nx-role: PLATFORM_ADMIN",
    "acme\t",
    "acme\0",
    "acme`",
    "acme'; DROP TABLE tenants.tenant_profiles; --",
    "acme` WHERE TRUE OR `1`=`1",
    "${jndi:ldap://127.0.0.1/a}",
    "{{7*7}}",
    "../other_co",
    "..",
    "*",
    "%",
    "\u0430cme",  # a Cyrillic letter that looks like the first
    "acm\u00e9",
    "\uff41cme",  # full width
    "acme\u200b",
    "tenants",
    "information_schema",
    "INFORMATION_SCHEMA",
    "onboard",
    "x_meta_pipeline_runs",
    "project.tenants",
)
