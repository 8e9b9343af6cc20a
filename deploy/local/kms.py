"""A small Cloud KMS: the real ``google.cloud.kms.v1`` gRPC API over symmetric keys kept in one file.

The local stack starts it where a deployment has Cloud KMS; the real client library cannot tell the difference for the
calls the platform makes. It keeps Cloud KMS's promises (additional data must match, CRC32C both ways, old key versions
stay readable until destroyed) and none of its protection: whoever reads the key file has the keys. No answer leaves
before the change it reports is on disk.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import fcntl
import json
import os
import re
import signal
import struct
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import google_crc32c
import grpc
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.cloud.kms_v1.types import resources, service
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

SERVICE: Final = "google.cloud.kms.v1.KeyManagementService"
_LIMIT: Final = 64 * 1024
_NONCE: Final = 12
_HEADER: Final = struct.Struct(">4sI")
_MAGIC: Final = b"LKM1"
_LOCATION = re.compile(r"projects/[a-z0-9:.-]{1,100}/locations/[a-z0-9-]{1,63}", re.ASCII)
_ID = re.compile(r"[a-zA-Z0-9_-]{1,63}", re.ASCII)
_KEY = re.compile(rf"({_LOCATION.pattern}/keyRings/{_ID.pattern})/cryptoKeys/({_ID.pattern})", re.ASCII)
_VERSION = re.compile(rf"({_KEY.pattern})/cryptoKeyVersions/([1-9][0-9]{{0,8}})", re.ASCII)
_State = resources.CryptoKeyVersion.CryptoKeyVersionState


class KmsError(Exception):
    """What the call answers instead of a result: a gRPC status and its text."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class _Version:
    created: str
    material: bytes | None = field(repr=False)


@dataclass
class _Key:
    created: str
    primary: int
    versions: dict[int, _Version]


class KeyFile:
    """Key rings, keys and key versions in one JSON file, owned by one process at a time.

    Not thread-safe; the server calls it from its event loop only.
    """

    def __init__(self, path: Path) -> None:
        """Opens or starts the file. Raises ``BlockingIOError`` if another process serves it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._rings: dict[str, str] = {}
            self._keys: dict[str, _Key] = {}
            if path.exists():
                self._load(json.loads(path.read_text("utf-8")))
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Lets another process have the file."""
        os.close(self._lock)

    def ring(self, name: str) -> resources.KeyRing:
        """The key ring of that name."""
        if name not in self._rings:
            raise KmsError(grpc.StatusCode.NOT_FOUND, f"KeyRing {name} not found.")
        return resources.KeyRing(name=name, create_time=datetime.fromisoformat(self._rings[name]))

    def create_ring(self, parent: str, ring_id: str) -> resources.KeyRing:
        """A new, empty key ring; it exists on disk when this returns."""
        _require(bool(_LOCATION.fullmatch(parent)), "parent must be projects/*/locations/*.")
        _require(bool(_ID.fullmatch(ring_id)), "key_ring_id must match [a-zA-Z0-9_-]{1,63}.")
        name = f"{parent}/keyRings/{ring_id}"
        if name in self._rings:
            raise KmsError(grpc.StatusCode.ALREADY_EXISTS, f"KeyRing {name} already exists.")
        self._rings[name] = _now()
        self._save()
        return self.ring(name)

    def key(self, name: str) -> resources.CryptoKey:
        """The crypto key of that name with its primary version."""
        key = self._find(name)
        return resources.CryptoKey(
            name=name,
            purpose=resources.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT,
            create_time=datetime.fromisoformat(key.created),
            primary=self.version(f"{name}/cryptoKeyVersions/{key.primary}") if key.primary else None,
        )

    def create_key(self, ring: str, key_id: str, *, initial_version: bool = True) -> resources.CryptoKey:
        """A new symmetric key; with its first version as the primary unless told otherwise."""
        self.ring(ring)
        _require(bool(_ID.fullmatch(key_id)), "crypto_key_id must match [a-zA-Z0-9_-]{1,63}.")
        name = f"{ring}/cryptoKeys/{key_id}"
        if name in self._keys:
            raise KmsError(grpc.StatusCode.ALREADY_EXISTS, f"CryptoKey {name} already exists.")
        versions = {1: _Version(_now(), AESGCM.generate_key(256))} if initial_version else {}
        self._keys[name] = _Key(_now(), primary=1 if initial_version else 0, versions=versions)
        self._save()
        return self.key(name)

    def ensure_key(self, name: str) -> None:
        """Creates the key of that full name, and its ring, unless they are there."""
        match = _KEY.fullmatch(name)
        _require(match is not None, "A key is named projects/*/locations/*/keyRings/*/cryptoKeys/*.")
        assert match is not None
        ring, key_id = match.groups()
        if ring not in self._rings:
            self.create_ring(*ring.split("/keyRings/"))
        if name not in self._keys:
            self.create_key(ring, key_id)

    def version(self, name: str) -> resources.CryptoKeyVersion:
        """The key version of that name; its key material stays here."""
        _, _, version = self._find_version(name)
        return resources.CryptoKeyVersion(
            name=name,
            state=_State.ENABLED if version.material else _State.DESTROYED,
            algorithm=resources.CryptoKeyVersion.CryptoKeyVersionAlgorithm.GOOGLE_SYMMETRIC_ENCRYPTION,
            protection_level=resources.ProtectionLevel.SOFTWARE,
            create_time=datetime.fromisoformat(version.created),
        )

    def create_version(self, key_name: str) -> resources.CryptoKeyVersion:
        """A new version with fresh material; it is not the primary until it is made so."""
        key = self._find(key_name)
        number = max(key.versions, default=0) + 1
        key.versions[number] = _Version(_now(), AESGCM.generate_key(256))
        self._save()
        return self.version(f"{key_name}/cryptoKeyVersions/{number}")

    def destroy_version(self, name: str) -> resources.CryptoKeyVersion:
        """Erases the version's material at once (Cloud KMS waits for 30 days first)."""
        _, _, version = self._find_version(name)
        if version.material is None:
            raise KmsError(grpc.StatusCode.FAILED_PRECONDITION, f"{name} is destroyed already.")
        version.material = None
        self._save()
        return self.version(name)

    def make_primary(self, key_name: str, version_id: str) -> resources.CryptoKey:
        """Makes an enabled version the one that encrypts."""
        key, number, version = self._find_version(f"{key_name}/cryptoKeyVersions/{version_id}")
        if version.material is None:
            raise KmsError(grpc.StatusCode.FAILED_PRECONDITION, "A destroyed version cannot be the primary.")
        key.primary = number
        self._save()
        return self.key(key_name)

    def seal(self, name: str, plaintext: bytes, aad: bytes) -> tuple[str, bytes]:
        """The name of the version used and the ciphertext, bound to the key's name and the additional data."""
        if _VERSION.fullmatch(name):
            _, number, version = self._find_version(name)
            key_name = name.partition("/cryptoKeyVersions/")[0]
        else:
            key_name, key = name, self._find(name)
            if not key.primary:
                raise KmsError(grpc.StatusCode.FAILED_PRECONDITION, f"{name} has no primary version.")
            number, version = key.primary, key.versions[key.primary]
        if version.material is None:
            raise KmsError(grpc.StatusCode.FAILED_PRECONDITION, f"{key_name} version {number} is not enabled.")
        nonce = os.urandom(_NONCE)
        header = _HEADER.pack(_MAGIC, number)
        sealed = AESGCM(version.material).encrypt(nonce, plaintext, _bound(key_name, number, aad))
        return f"{key_name}/cryptoKeyVersions/{number}", header + nonce + sealed

    def open(self, key_name: str, ciphertext: bytes, aad: bytes) -> tuple[bytes, bool]:
        """The plaintext and whether the primary version had sealed it."""
        key = self._find(key_name)
        refused = KmsError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "Decryption failed: verify that 'name' refers to the correct CryptoKey and that "
            "'additional_authenticated_data' is what was given to Encrypt.",
        )
        if len(ciphertext) < _HEADER.size + _NONCE:
            raise refused
        magic, number = _HEADER.unpack_from(ciphertext)
        if magic != _MAGIC or number not in key.versions:
            raise refused
        material = key.versions[number].material
        if material is None:
            raise KmsError(grpc.StatusCode.FAILED_PRECONDITION, f"{key_name} version {number} is destroyed.")
        nonce, sealed = ciphertext[_HEADER.size :][:_NONCE], ciphertext[_HEADER.size + _NONCE :]
        try:
            plaintext = AESGCM(material).decrypt(nonce, sealed, _bound(key_name, number, aad))
        except InvalidTag:
            raise refused from None
        return plaintext, number == key.primary

    def _find(self, name: str) -> _Key:
        if name not in self._keys:
            raise KmsError(grpc.StatusCode.NOT_FOUND, f"CryptoKey {name} not found.")
        return self._keys[name]

    def _find_version(self, name: str) -> tuple[_Key, int, _Version]:
        key_name, _, number = name.partition("/cryptoKeyVersions/")
        key = self._find(key_name)
        if not number.isdecimal() or int(number) not in key.versions:
            raise KmsError(grpc.StatusCode.NOT_FOUND, f"CryptoKeyVersion {name} not found.")
        return key, int(number), key.versions[int(number)]

    def _load(self, document: dict[str, Any]) -> None:
        self._rings = dict(document["key_rings"])
        for name, key in document["crypto_keys"].items():
            versions = {
                int(number): _Version(v["created"], base64.b64decode(v["material"]) if v["material"] else None)
                for number, v in key["versions"].items()
            }
            self._keys[name] = _Key(key["created"], key["primary"], versions)

    def _save(self) -> None:
        document = {
            "key_rings": self._rings,
            "crypto_keys": {
                name: {
                    "created": key.created,
                    "primary": key.primary,
                    "versions": {
                        str(number): {
                            "created": v.created,
                            "material": base64.b64encode(v.material).decode() if v.material else None,
                        }
                        for number, v in key.versions.items()
                    },
                }
                for name, key in self._keys.items()
            },
        }
        _write_atomically(self._path, json.dumps(document, indent=1).encode())


def _write_atomically(path: Path, content: bytes) -> None:
    fresh = path.with_name(f"{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _bound(key_name: str, number: int, aad: bytes) -> bytes:
    name = key_name.encode()
    return struct.pack(">II", len(name), number) + name + aad


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise KmsError(grpc.StatusCode.INVALID_ARGUMENT, message)


def _checked(what: str, data: bytes, checksum: Any) -> bool:
    """Whether a checksum came and fits; one that does not fit, or too much data, is refused."""
    _require(len(data) <= _LIMIT, f"{what} must be at most {_LIMIT} bytes.")
    if checksum is None:
        return False
    _require(google_crc32c.value(data) == checksum, f"{what}_crc32c does not match {what}.")
    return True


def _encrypt(keys: KeyFile, request: service.EncryptRequest) -> service.EncryptResponse:
    verified = _checked("plaintext", request.plaintext, request.plaintext_crc32c)
    aad_verified = _checked(
        "additional_authenticated_data",
        request.additional_authenticated_data,
        request.additional_authenticated_data_crc32c,
    )
    name, ciphertext = keys.seal(request.name, request.plaintext, request.additional_authenticated_data)
    return service.EncryptResponse(
        name=name,
        ciphertext=ciphertext,
        ciphertext_crc32c=google_crc32c.value(ciphertext),
        verified_plaintext_crc32c=verified,
        verified_additional_authenticated_data_crc32c=aad_verified,
        protection_level=resources.ProtectionLevel.SOFTWARE,
    )


def _decrypt(keys: KeyFile, request: service.DecryptRequest) -> service.DecryptResponse:
    _require(len(request.ciphertext) <= 2 * _LIMIT, "ciphertext is too long.")
    if request.ciphertext_crc32c is not None:
        _require(
            google_crc32c.value(request.ciphertext) == request.ciphertext_crc32c,
            "ciphertext_crc32c does not match ciphertext.",
        )
    _checked(
        "additional_authenticated_data",
        request.additional_authenticated_data,
        request.additional_authenticated_data_crc32c,
    )
    plaintext, used_primary = keys.open(request.name, request.ciphertext, request.additional_authenticated_data)
    return service.DecryptResponse(
        plaintext=plaintext,
        plaintext_crc32c=google_crc32c.value(plaintext),
        used_primary=used_primary,
        protection_level=resources.ProtectionLevel.SOFTWARE,
    )


def _create_key(keys: KeyFile, request: service.CreateCryptoKeyRequest) -> resources.CryptoKey:
    purpose = resources.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT
    _require(request.crypto_key.purpose == purpose, "Only ENCRYPT_DECRYPT keys live here.")
    return keys.create_key(
        request.parent, request.crypto_key_id, initial_version=not request.skip_initial_version_creation
    )


type _Call = Callable[[KeyFile, Any], Any]

# method -> (request type, response type, what it does)
_CALLS: Final[dict[str, tuple[Any, Any, _Call]]] = {
    "Encrypt": (service.EncryptRequest, service.EncryptResponse, _encrypt),
    "Decrypt": (service.DecryptRequest, service.DecryptResponse, _decrypt),
    "GetKeyRing": (service.GetKeyRingRequest, resources.KeyRing, lambda k, r: k.ring(r.name)),
    "CreateKeyRing": (
        service.CreateKeyRingRequest,
        resources.KeyRing,
        lambda k, r: k.create_ring(r.parent, r.key_ring_id),
    ),
    "GetCryptoKey": (service.GetCryptoKeyRequest, resources.CryptoKey, lambda k, r: k.key(r.name)),
    "CreateCryptoKey": (service.CreateCryptoKeyRequest, resources.CryptoKey, _create_key),
    "GetCryptoKeyVersion": (
        service.GetCryptoKeyVersionRequest,
        resources.CryptoKeyVersion,
        lambda k, r: k.version(r.name),
    ),
    "CreateCryptoKeyVersion": (
        service.CreateCryptoKeyVersionRequest,
        resources.CryptoKeyVersion,
        lambda k, r: k.create_version(r.parent),
    ),
    "DestroyCryptoKeyVersion": (
        service.DestroyCryptoKeyVersionRequest,
        resources.CryptoKeyVersion,
        lambda k, r: k.destroy_version(r.name),
    ),
    "UpdateCryptoKeyPrimaryVersion": (
        service.UpdateCryptoKeyPrimaryVersionRequest,
        resources.CryptoKey,
        lambda k, r: k.make_primary(r.name, r.crypto_key_version_id),
    ),
}


def _handler(keys: KeyFile, request: Any, response: Any, call: _Call) -> Any:
    async def answer(message: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return call(keys, message)
        except KmsError as error:
            await context.abort(error.code, str(error))

    behaviour: Callable[..., Awaitable[Any]] = answer
    return grpc.unary_unary_rpc_method_handler(
        behaviour, request_deserializer=request.deserialize, response_serializer=response.serialize
    )


@contextlib.asynccontextmanager
async def running(key_file: Path, listen: str, *, create_key: str | None = None) -> Any:
    """Serves ``key_file`` on ``listen`` (port 0: any) inside the block; yields the bound ``host:port``."""
    keys = KeyFile(key_file)
    try:
        if create_key:
            keys.ensure_key(create_key)
        server = grpc.aio.server()
        handlers = {name: _handler(keys, *call) for name, call in _CALLS.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        status = health.aio.HealthServicer()  # type: ignore[attr-defined]
        for name in ("", SERVICE):
            await status.set(name, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(status, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port(listen)
        await server.start()
        try:
            yield f"{listen.rpartition(':')[0]}:{port}"
        finally:
            await server.stop(grace=1)
    finally:
        keys.close()


async def _serve(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(arguments.key_file, arguments.listen, create_key=arguments.create_key) as address:
        print(f"kms listening on {address}", flush=True)
        await stop.wait()


def main(argv: list[str] | None = None) -> None:
    """Serves until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.kms", description="Cloud KMS for one machine.")
    parser.add_argument("--listen", default="127.0.0.1:0", help="host:port; port 0 takes a free one")
    parser.add_argument("--key-file", type=Path, required=True, help="where the keys live (created, mode 0600)")
    parser.add_argument("--create-key", metavar="NAME", help="full name of a crypto key to create if it is missing")
    arguments = parser.parse_args(argv)
    try:
        asyncio.run(_serve(arguments))
    except BlockingIOError:
        sys.exit(f"{arguments.key_file} is served by another process.")
    except KmsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
