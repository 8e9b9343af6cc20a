"""The local KMS, spoken to by the real Cloud KMS client: what a deployment relies on holds here too."""

import asyncio
import contextlib
import json
import signal
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import google_crc32c
import grpc
import pytest
from google.api_core import exceptions
from google.cloud.kms_v1 import CryptoKey, CryptoKeyVersion, KeyManagementServiceAsyncClient
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcAsyncIOTransport
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local import kms

LOCATION = "projects/p1/locations/global"
RING = f"{LOCATION}/keyRings/ring"
KEY = f"{RING}/cryptoKeys/credentials"
OTHER = f"{RING}/cryptoKeys/other"


@contextlib.asynccontextmanager
async def served(key_file: Path) -> AsyncIterator[KeyManagementServiceAsyncClient]:
    async with (
        kms.running(key_file, "127.0.0.1:0", create_key=KEY) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        transport = KeyManagementServiceGrpcAsyncIOTransport(channel=channel)
        yield KeyManagementServiceAsyncClient(transport=transport)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[KeyManagementServiceAsyncClient]:
    async with served(tmp_path / "keys.json") as it:
        yield it


async def _seal(client: KeyManagementServiceAsyncClient, plaintext: bytes, aad: bytes = b"", name: str = KEY):
    return await client.encrypt({"name": name, "plaintext": plaintext, "additional_authenticated_data": aad})


async def _open(client: KeyManagementServiceAsyncClient, ciphertext: bytes, aad: bytes = b"", name: str = KEY):
    return await client.decrypt({"name": name, "ciphertext": ciphertext, "additional_authenticated_data": aad})


async def test_what_is_sealed_opens_again_with_checksums_both_ways(client):
    request = {
        "name": KEY,
        "plaintext": b"secret",
        "plaintext_crc32c": google_crc32c.value(b"secret"),
        "additional_authenticated_data": b"tenant",
        "additional_authenticated_data_crc32c": google_crc32c.value(b"tenant"),
    }
    sealed = await client.encrypt(request)
    assert sealed.name == f"{KEY}/cryptoKeyVersions/1"
    assert sealed.verified_plaintext_crc32c and sealed.verified_additional_authenticated_data_crc32c
    assert sealed.ciphertext_crc32c == google_crc32c.value(sealed.ciphertext)
    assert b"secret" not in sealed.ciphertext

    opened = await _open(client, sealed.ciphertext, b"tenant")
    assert opened.plaintext == b"secret"
    assert opened.plaintext_crc32c == google_crc32c.value(b"secret")
    assert opened.used_primary


async def test_absent_checksums_are_reported_as_not_verified(client):
    sealed = await _seal(client, b"")
    assert not sealed.verified_plaintext_crc32c
    assert not sealed.verified_additional_authenticated_data_crc32c


@pytest.mark.parametrize(
    "field, data", [("plaintext_crc32c", b"x"), ("additional_authenticated_data_crc32c", b"a"), ("both", b"")]
)
async def test_wrong_checksums_are_refused(client, field, data):
    sealed = await _seal(client, b"x", b"a")
    with pytest.raises(exceptions.InvalidArgument):
        if field == "both":
            await client.decrypt({"name": KEY, "ciphertext": sealed.ciphertext, "ciphertext_crc32c": 1})
        else:
            await client.encrypt({"name": KEY, "plaintext": b"x", "additional_authenticated_data": b"a", field: 1})


@pytest.mark.parametrize("aad", [b"", b"tenant_b", b"tenant_a\0", b"tenant"])
async def test_other_additional_data_does_not_open(client, aad):
    sealed = await _seal(client, b"secret", b"tenant_a")
    with pytest.raises(exceptions.InvalidArgument):
        await _open(client, sealed.ciphertext, aad)


async def test_any_changed_or_missing_byte_does_not_open(client):
    sealed = (await _seal(client, b"secret")).ciphertext
    for at in range(len(sealed)):
        with pytest.raises(exceptions.InvalidArgument):
            await _open(client, sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
    for short in (b"", sealed[:4], sealed[:-1]):
        with pytest.raises(exceptions.InvalidArgument):
            await _open(client, short)


async def test_a_ciphertext_is_bound_to_its_key(client):
    await client.create_crypto_key(
        {"parent": RING, "crypto_key_id": "other", "crypto_key": CryptoKey(purpose="ENCRYPT_DECRYPT")}
    )
    sealed = await _seal(client, b"secret")
    with pytest.raises(exceptions.InvalidArgument):
        await _open(client, sealed.ciphertext, name=OTHER)


async def test_rotation_keeps_old_ciphertexts_readable_until_their_version_is_destroyed(client):
    old = await _seal(client, b"secret")
    version = await client.create_crypto_key_version({"parent": KEY, "crypto_key_version": {}})
    assert (await _seal(client, b"x")).name.endswith("/1"), "a new version encrypts only once it is the primary"
    key = await client.update_crypto_key_primary_version({"name": KEY, "crypto_key_version_id": "2"})
    assert key.primary.name == version.name == (await client.get_crypto_key({"name": KEY})).primary.name

    opened = await _open(client, old.ciphertext)
    assert (opened.plaintext, opened.used_primary) == (b"secret", False)
    assert (await _seal(client, b"x")).name == version.name

    first = f"{KEY}/cryptoKeyVersions/1"
    destroyed = await client.destroy_crypto_key_version({"name": first})
    assert destroyed.state == CryptoKeyVersion.CryptoKeyVersionState.DESTROYED
    with pytest.raises(exceptions.FailedPrecondition):
        await _open(client, old.ciphertext)
    with pytest.raises(exceptions.FailedPrecondition):
        await client.destroy_crypto_key_version({"name": first})
    with pytest.raises(exceptions.FailedPrecondition):
        await client.update_crypto_key_primary_version({"name": KEY, "crypto_key_version_id": "1"})
    assert (await client.get_crypto_key_version({"name": first})).name == first


async def test_key_rings_and_keys_are_created_once(client):
    with pytest.raises(exceptions.NotFound):
        await client.get_key_ring({"name": f"{LOCATION}/keyRings/two"})
    made = await client.create_key_ring({"parent": LOCATION, "key_ring_id": "two", "key_ring": {}})
    assert (await client.get_key_ring({"name": made.name})) == made
    with pytest.raises(exceptions.AlreadyExists):
        await client.create_key_ring({"parent": LOCATION, "key_ring_id": "two", "key_ring": {}})
    with pytest.raises(exceptions.InvalidArgument):
        await client.create_key_ring({"parent": LOCATION, "key_ring_id": "no/slash", "key_ring": {}})
    with pytest.raises(exceptions.AlreadyExists):
        await client.create_crypto_key(
            {"parent": RING, "crypto_key_id": "credentials", "crypto_key": CryptoKey(purpose="ENCRYPT_DECRYPT")}
        )
    with pytest.raises(exceptions.NotFound):
        await _seal(client, b"x", name=OTHER)


async def test_the_plaintext_limit_is_cloud_kms_s(client):
    await _seal(client, b"x" * 64 * 1024)
    with pytest.raises(exceptions.InvalidArgument):
        await _seal(client, b"x" * (64 * 1024 + 1))


async def test_keys_survive_a_restart_in_a_private_file(tmp_path: Path):
    key_file = tmp_path / "deep" / "keys.json"
    async with served(key_file) as client:
        sealed = await _seal(client, b"secret")
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert list(json.loads(key_file.read_text())["crypto_keys"]) == [KEY]
    async with served(key_file) as client:
        assert (await _open(client, sealed.ciphertext)).plaintext == b"secret"


async def test_one_file_has_one_process(tmp_path: Path):
    first = kms.KeyFile(tmp_path / "keys.json")
    with pytest.raises(BlockingIOError):
        kms.KeyFile(tmp_path / "keys.json")
    first.close()
    kms.KeyFile(tmp_path / "keys.json").close()


async def test_the_command_serves_until_sigterm(tmp_path: Path):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.local.kms", "--listen", "127.0.0.1:0"),
        *("--key-file", str(tmp_path / "keys.json"), "--create-key", KEY),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        line = (await process.stdout.readline()).decode().split()
        assert line[:3] == ["kms", "listening", "on"]
        async with grpc.aio.insecure_channel(line[3]) as channel:
            status = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert status.status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
