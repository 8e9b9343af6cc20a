"""A tenant's storage without one: what a credential must be, and what a storage's refusal means."""

from __future__ import annotations

from typing import Any

import obstore
import pytest
from obstore import exceptions as obs
from obstore.store import MemoryStore

from libs import errors
from services.pipeline_executor.providers import object_store
from services.pipeline_executor.providers.object_store import AzureContainer, GcsBucket, Place, S3Bucket, Store
from services.pipeline_executor.run_context import Secret, SourceEndpoints

S3 = S3Bucket("costs", "eu-west-1")
GCS = GcsBucket("costs")
BLOBS = AzureContainer("acct", "costs")


@pytest.mark.parametrize(
    ("place", "text", "reason"),
    [
        (S3, "400 Bad Request: <Code>ExpiredToken</Code>", "CREDENTIAL_REJECTED"),
        (S3, "403 Forbidden: <Code>InvalidAccessKeyId</Code>", "CREDENTIAL_REJECTED"),
        (S3, "403 Forbidden: <Code>SignatureDoesNotMatch</Code>", "CREDENTIAL_REJECTED"),
        (S3, "403 Forbidden: <Code>AccessDenied</Code>", "SOURCE_ACCESS_DENIED"),
        (S3, "404 Not Found: <Code>NoSuchBucket</Code>", "SOURCE_NOT_FOUND"),
        (S3, "503 Service Unavailable: <Code>SlowDown</Code>", "SOURCE_THROTTLED"),
        (S3, "301 Moved: <Code>PermanentRedirect</Code>", "SOURCE_INVALID"),
        (S3, "External AWS credential provider: it failed", "SOURCE_UNAVAILABLE"),
        (S3, "connection reset", "SOURCE_UNAVAILABLE"),
        (BLOBS, "403: AuthorizationPermissionMismatch", "SOURCE_ACCESS_DENIED"),
        (BLOBS, "404: ContainerNotFound", "SOURCE_NOT_FOUND"),
        (BLOBS, "503: ServerBusy", "SOURCE_THROTTLED"),
        (GCS, "403 Forbidden: does not have storage.objects.list access", "SOURCE_ACCESS_DENIED"),
        (GCS, "429 Too Many Requests", "SOURCE_THROTTLED"),
    ],
)
async def test_a_refusal_is_told_without_its_text(place: Place, text: str, reason: str) -> None:
    class Refusing:
        def __aiter__(self) -> Refusing:
            return self

        async def __anext__(self) -> Any:
            raise obs.GenericError(f"{text} sig=secret")

    store = Store(place, MemoryStore())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(object_store.obstore, "list", lambda *_, **__: Refusing())
        with pytest.raises(errors.Error) as caught:
            await store.objects()
    assert caught.value.reason == reason
    assert caught.value.retryable == (reason in ("SOURCE_THROTTLED", "SOURCE_UNAVAILABLE"))
    assert "secret" not in caught.value.message
    assert caught.value.__cause__ is None and caught.value.__context__ is None


@pytest.mark.parametrize(
    ("place", "key"),
    [
        (S3, {}),
        (S3, {"access_key_id": "AKIA0000000000000000"}),
        (S3, {"role_arn": "arn:aws:iam::123456789012:role/r"}),
        (GCS, {"client_email": "a@b", "private_key": "none", "token_uri": "https://oauth2.googleapis.com/token"}),
        (BLOBS, {"client_id": "a", "client_secret": "b", "azure_tenant_id": "no guid"}),
        (BLOBS, {"sas_token": "sv=1&se=never&sig=x"}),
    ],
)
async def test_a_credential_of_another_kind_is_unusable(place: Place, key: dict[str, Any]) -> None:
    with pytest.raises(errors.FailedPrecondition) as caught:
        await object_store.open_store(place, Secret(key), SourceEndpoints())
    assert caught.value.reason == "CREDENTIAL_UNUSABLE"


async def test_an_address_of_the_customers_is_for_one_machine_only() -> None:
    place = S3Bucket("costs", None, "http://169.254.169.254")
    with pytest.raises(errors.FailedPrecondition) as caught:
        await object_store.open_store(place, Secret({}), SourceEndpoints())
    assert caught.value.reason == "SOURCE_INVALID"


async def test_objects_are_listed_by_folder_and_read_as_they_were_listed(tmp_path: Any) -> None:
    memory = MemoryStore()
    for path in ("a/b/1", "a/b/2", "a/bc/3"):
        obstore.put(memory, path, path.encode())
    store = Store(S3, memory)
    found = {item.path: item for item in await store.objects("/a/b/")}
    assert set(found) == {"a/b/1", "a/b/2"}
    first = found["a/b/1"]
    assert await store.read(first.path, etag=first.etag) == b"a/b/1"
    assert await store.fetch(first.path, tmp_path / "f", etag=first.etag, size=first.size) == 5
    assert (tmp_path / "f").read_bytes() == b"a/b/1"
    obstore.put(memory, "a/b/1", b"other")
    for act in (
        store.read(first.path, etag=first.etag),
        store.fetch(first.path, tmp_path / "f", etag=first.etag),
        store.fetch("a/b/2", tmp_path / "f", size=9),
        store.read("a/b/9"),
    ):
        with pytest.raises(errors.Unavailable) as caught:
            await act
        assert caught.value.reason == "SOURCE_CHANGED"
    for refused, reason in (
        (store.objects(most=1), "SOURCE_TOO_LARGE"),
        (store.read("a/b/2", most=1), "SOURCE_INVALID"),
    ):
        with pytest.raises(errors.FailedPrecondition) as terminal:
            await refused
        assert terminal.value.reason == reason
