"""Envelope encryption: a fresh AES-256-GCM data key per secret version, wrapped by Cloud KMS; behind ``domain.Cipher``.

Both layers, the wrapping of the data key and the encryption of the secret, are bound to the same additional data: a
canonical encoding of tenant, credential, provider, kind and version. A row's ciphertext put into another row, another
tenant or another version therefore does not open, and there is no second way that would open it. Every byte string
that goes to KMS or comes from it is checked by CRC32C.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Awaitable
from typing import Any, Final

import google_crc32c
import grpc
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.api_core import exceptions
from google.api_core.retry import AsyncRetry, if_exception_type
from google.cloud.kms_v1 import KeyManagementServiceAsyncClient
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcAsyncIOTransport

from libs import errors, metrics, tracing
from services.credential.secret import Secret
from services.credential.states import Binding, Sealed

SCHEME: Final = 1
_CONTEXT: Final = b"convergence/credential/secret"
_NONCE: Final = 12
_TAG: Final = 16
_KEY: Final = 32
_CALL_SECONDS: Final = 3.0
_RETRY: Final = AsyncRetry(
    predicate=if_exception_type(exceptions.ServiceUnavailable, exceptions.TooManyRequests),
    initial=0.1,
    maximum=1.0,
    timeout=8.0,
)
_PASSING = (
    exceptions.ServiceUnavailable,
    exceptions.DeadlineExceeded,
    exceptions.GatewayTimeout,
    exceptions.TooManyRequests,
    exceptions.InternalServerError,
    exceptions.Cancelled,
    exceptions.RetryError,
)


def kms_client(endpoint: str | None) -> KeyManagementServiceAsyncClient:
    """The Cloud KMS client, or one for a stand-in at ``host:port``; made inside the running loop."""
    # At DEBUG the library logs whole requests, data keys included.
    logging.getLogger("google.cloud.kms_v1").setLevel(logging.INFO)
    if endpoint is None:
        return KeyManagementServiceAsyncClient()
    transport = KeyManagementServiceGrpcAsyncIOTransport(channel=grpc.aio.insecure_channel(endpoint))
    return KeyManagementServiceAsyncClient(transport=transport)


def additional_data(binding: Binding, scheme: int = SCHEME) -> bytes:
    """The canonical encoding of what a secret belongs to: the scheme, then each part behind its length.

    Two bindings have the same encoding only if they are equal. A change of the encoding is a new scheme.
    """
    if scheme != SCHEME:
        raise errors.Internal("SECRET_SCHEME_UNKNOWN", "The secret was sealed by a newer release.")
    parts = (binding.tenant_id, binding.credential_id, binding.provider, binding.kind, binding.version_id)
    encoded = (part.encode() for part in parts)
    return _CONTEXT + struct.pack(">H", scheme) + b"".join(struct.pack(">I", len(part)) + part for part in encoded)


class EnvelopeCipher:
    """Seals, opens and re-wraps secrets. Safe for concurrent use; it caches no key."""

    def __init__(self, kms: KeyManagementServiceAsyncClient, key_name: str) -> None:
        self._kms = kms
        self._key_name = key_name

    async def seal(self, binding: Binding, secret: Secret) -> Sealed:
        """Encrypts under a fresh data key. Raises ``Unavailable(KMS_UNAVAILABLE)`` if KMS does not answer."""
        aad = additional_data(binding)
        key = os.urandom(_KEY)
        nonce = os.urandom(_NONCE)
        ciphertext = nonce + AESGCM(key).encrypt(nonce, secret.reveal(), aad)
        key_version, wrapped = await self._wrap(key, aad)
        return Sealed(ciphertext, wrapped, key_version, SCHEME)

    async def open(self, binding: Binding, sealed: Sealed) -> Secret:
        """Decrypts what was sealed for exactly this binding; raises ``Internal(SECRET_UNREADABLE)`` otherwise."""
        aad = additional_data(binding, sealed.scheme)
        key, _ = await self._unwrap(sealed.wrapped_key, aad)
        return _decrypt(key, sealed.ciphertext, aad)

    async def rewrap(self, binding: Binding, sealed: Sealed) -> Sealed:
        """The same ciphertext with its data key under KMS's primary key version; the very same value if it is already.

        The secret itself is not decrypted.
        """
        aad = additional_data(binding, sealed.scheme)
        key, used_primary = await self._unwrap(sealed.wrapped_key, aad)
        if used_primary:
            return sealed
        key_version, wrapped = await self._wrap(key, aad)
        return Sealed(sealed.ciphertext, wrapped, key_version, sealed.scheme)

    async def primary_version(self) -> str:
        """The name of the KMS key version that wraps now."""
        key = await _answer(
            "get_key", self._kms.get_crypto_key({"name": self._key_name}, retry=_RETRY, timeout=_CALL_SECONDS)
        )
        return str(key.primary.name)

    async def _wrap(self, key: bytes, aad: bytes) -> tuple[str, bytes]:
        request = {
            "name": self._key_name,
            "plaintext": key,
            "plaintext_crc32c": google_crc32c.value(key),
            "additional_authenticated_data": aad,
            "additional_authenticated_data_crc32c": google_crc32c.value(aad),
        }
        response = await _answer("encrypt", self._kms.encrypt(request, retry=_RETRY, timeout=_CALL_SECONDS))
        _require_intact(
            response.verified_plaintext_crc32c
            and response.verified_additional_authenticated_data_crc32c
            and google_crc32c.value(response.ciphertext) == response.ciphertext_crc32c
        )
        if not response.name.startswith(f"{self._key_name}/"):
            raise errors.Internal("KMS_WRONG_KEY", "The key service answered for another key.")
        return response.name, response.ciphertext

    async def _unwrap(self, wrapped: bytes, aad: bytes) -> tuple[bytes, bool]:
        request = {
            "name": self._key_name,
            "ciphertext": wrapped,
            "ciphertext_crc32c": google_crc32c.value(wrapped),
            "additional_authenticated_data": aad,
            "additional_authenticated_data_crc32c": google_crc32c.value(aad),
        }
        response = await _answer("decrypt", self._kms.decrypt(request, retry=_RETRY, timeout=_CALL_SECONDS))
        _require_intact(google_crc32c.value(response.plaintext) == response.plaintext_crc32c)
        if len(response.plaintext) != _KEY:
            raise _unreadable()
        return response.plaintext, response.used_primary


def _decrypt(key: bytes, ciphertext: bytes, aad: bytes) -> Secret:
    if len(ciphertext) < _NONCE + _TAG:
        raise _unreadable()
    nonce, sealed = ciphertext[:_NONCE], memoryview(ciphertext)[_NONCE:]
    opened = bytearray(len(sealed) - _TAG)
    try:
        AESGCM(key).decrypt_into(nonce, sealed, aad, opened)
    except InvalidTag:
        raise _unreadable() from None
    return Secret.taking(opened)


async def _answer(operation: str, call: Awaitable[Any]) -> Any:
    """What KMS answers, its refusals as ours. None of its texts holds a key, but none is public either."""
    try:
        with tracing.span(f"kms.{operation}", "CLIENT"):
            answer = await _translated(call)
    except errors.Error as error:
        metrics.KMS_CALLS.labels(operation, error.reason).inc()
        raise
    metrics.KMS_CALLS.labels(operation, "OK").inc()
    return answer


async def _translated(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except exceptions.InvalidArgument as refused:
        raise _unreadable() from refused
    except exceptions.FailedPrecondition as refused:
        raise errors.Internal(
            "KMS_KEY_UNUSABLE", "The key that wraps this secret is disabled or destroyed."
        ) from refused
    except _PASSING as failure:
        raise errors.Unavailable("KMS_UNAVAILABLE", "The key service did not answer; try again.") from failure
    except exceptions.GoogleAPICallError as refused:
        raise errors.Internal("KMS_REFUSED", "The key service refuses this service.") from refused


def _unreadable() -> errors.Internal:
    metrics.SECRETS_UNREADABLE.inc()
    return errors.Internal("SECRET_UNREADABLE", "The stored secret does not belong where it was found.")


def _require_intact(intact: bool) -> None:
    if not intact:
        raise errors.Unavailable("KMS_CORRUPTED", "Data to or from the key service was damaged on its way; try again.")
