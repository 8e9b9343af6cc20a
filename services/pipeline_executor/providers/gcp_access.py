"""Signs in to Google Cloud with a tenant's service-account key.

Of the key only the identity and the private key are used. Its URLs (token_uri, universe) are not believed: the token is
signed here and goes to Google's own endpoints, or to the local stack's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import google.auth.transport.requests
from google.auth import exceptions as auth
from google.oauth2 import service_account

from libs import errors
from services.pipeline_executor.run_context import Secret

PROJECT: Final = r"^(?:[a-z0-9.-]{1,60}:)?[a-z][a-z0-9-]{4,61}[a-z0-9]$"
_TOKEN_URI = "https://oauth2.googleapis.com/token"
_KEY_FIELDS = ("project_id", "private_key_id", "private_key", "client_email", "client_id")


class _LocalCredentials(service_account.Credentials):
    """Signs as in the cloud, but asks Google nothing: the library else looks up where the account may be used."""

    def _maybe_start_regional_access_boundary_refresh(self, request: Any, url: str) -> None:
        return None


def credentials(secret: Secret, scopes: Sequence[str], *, local: bool) -> tuple[service_account.Credentials, str]:
    """What signs, and the key's own project; raises ``FailedPrecondition(CREDENTIAL_UNUSABLE)``."""
    key = secret.reveal()
    project_id = key.get("project_id")
    if not isinstance(project_id, str) or not re.fullmatch(PROJECT, project_id):
        raise _unusable()
    info = {name: key[name] for name in _KEY_FIELDS if isinstance(key.get(name), str)}
    kind = _LocalCredentials if local else service_account.Credentials
    try:
        made = kind.from_service_account_info(  # type: ignore[no-untyped-call]
            {**info, "type": "service_account", "token_uri": _TOKEN_URI}, always_use_jwt_access=True, scopes=scopes
        )
    except (ValueError, auth.GoogleAuthError):
        # Without its cause: the library's texts may quote the key.
        raise _unusable() from None
    return made, project_id


def headers(credentials: service_account.Credentials, address: str) -> Sequence[tuple[str, str]]:
    """The header that signs a call over plain text, where gRPC sends no call credentials: a local stand-in's."""
    made: dict[str, str] = {}
    credentials.before_request(  # type: ignore[no-untyped-call]
        google.auth.transport.requests.Request(), "POST", address, made
    )
    return list(made.items())


def _unusable() -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        "CREDENTIAL_UNUSABLE",
        "The stored GCP credential is not a usable service-account key: store the key's JSON as it was downloaded.",
    )
