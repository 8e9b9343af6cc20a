"""Opens a tenant's bucket or container for reading: S3, Google Cloud Storage, Azure Blob storage, by one interface.

Extractors call ``open_store`` with a place and the tenant's opened secret, then list, read and fetch. Listings carry
the etag of each object, and reads take it, so that an object that changes between the two is noticed, never mixed.

Three things must stay so. Only the tenant's own secret signs: what the process's environment says of clouds is never
used, but for the platform's identity that assumes a tenant's AWS role. No address a customer writes is asked, except
on one machine, where storage is stood in for. No text of a storage's failure is kept: it holds addresses, and those may
hold a signature.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Protocol
from urllib.parse import parse_qsl

import botocore.exceptions
import google.auth.exceptions
import google.auth.transport.requests
import obstore
from google.oauth2 import service_account
from obstore import exceptions as obs
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from libs import errors
from services.pipeline_executor.providers import aws_access
from services.pipeline_executor.providers.source import refuse_stand_in
from services.pipeline_executor.run_context import Secret, SourceEndpoints

MOST_OBJECTS = 200_000
_CHUNK = 8 * 2**20
_MOST_READ = 64 * 2**20
_GUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)
_REGION = re.compile(r"[a-z]{2}(-[a-z]{2,12}){1,3}-[0-9]{1,2}", re.ASCII)
_GCS_SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
# What storages say, in the texts that obstore passes on.
_REJECTED = (
    "ExpiredToken|InvalidAccessKeyId|InvalidClientTokenId|SignatureDoesNotMatch|InvalidToken|TokenRefreshRequired"
    "|AuthenticationFailed|failed to authenticate|login\\.microsoftonline|InvalidSecurity|invalid_grant"
)
_DENIED = "AccessDenied|AuthorizationPermissionMismatch|AuthorizationFailure|AllAccessDisabled| 403 |403 Forbidden"
_MISSING = "NoSuchBucket|ContainerNotFound|The specified bucket does not exist"
_ELSEWHERE = "PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocationConstraint|301 Moved"


@dataclass(frozen=True, slots=True)
class Listed:
    """One object as a listing shows it; its path begins at the root of the bucket."""

    path: str
    size: int
    modified: datetime
    etag: str | None = None


class Place(Protocol):
    """Where objects lie, and how its owner gives us access; one of the three below."""

    provider: ClassVar[str]
    reader: ClassVar[str]

    @property
    def endpoint_url(self) -> str | None:
        """Of a stand-in on one machine."""
        ...

    @property
    def where(self) -> str:
        """The place in words."""
        ...

    async def open(self, key: Mapping[str, Any]) -> ObjectStore:
        """Raises ``libs.errors``."""
        ...


# ------------------------------------------------------------------------------------------------- use


async def open_store(place: Place, secret: Secret, endpoints: SourceEndpoints) -> Store:
    """The place, opened with a credential of its provider. Assuming a role asks AWS; nothing else is asked yet.

    Raises ``FailedPrecondition``: CREDENTIAL_UNUSABLE, CREDENTIAL_EXPIRED, CREDENTIAL_REJECTED, SOURCE_INVALID (an
    ``endpoint_url`` in a deployment); ``Unavailable`` if AWS does not answer.
    """
    refuse_stand_in(place.endpoint_url, endpoints)
    return Store(place, await place.open(secret.reveal()))


class Store:
    """A place that is open. Every failure is one of ``libs.errors`` and says what the customer can do about it:

    ``FailedPrecondition``: CREDENTIAL_REJECTED (expired, revoked, mistyped), SOURCE_ACCESS_DENIED, SOURCE_NOT_FOUND,
    SOURCE_INVALID; ``Unavailable``: SOURCE_CHANGED, SOURCE_THROTTLED, SOURCE_UNAVAILABLE.
    """

    def __init__(self, place: Place, store: ObjectStore) -> None:
        self.place = place
        self._store = store

    async def objects(self, prefix: str = "", *, most: int = MOST_OBJECTS) -> list[Listed]:
        """The objects under the prefix, which is a folder's path: ``a/b`` has ``a/b/c``, and not ``a/bc``.

        Raises ``FailedPrecondition(SOURCE_TOO_LARGE)`` if there are more than ``most``.
        """
        found = await self._asked(self._list(prefix.strip("/"), most))
        if len(found) > most:
            raise errors.FailedPrecondition(
                "SOURCE_TOO_LARGE", "There are too many objects to look through: name their folder in the source."
            )
        return found

    async def _list(self, folder: str, most: int) -> list[Listed]:
        found: list[Listed] = []
        async for page in obstore.list(self._store, prefix=f"{folder}/" if folder else None, chunk_size=1000):
            found += [Listed(item["path"], item["size"], item["last_modified"], item["e_tag"]) for item in page]
            if len(found) > most:
                break
        return found

    async def read(self, path: str, *, etag: str | None = None, most: int = _MOST_READ) -> bytes:
        """A small object's content; ``SOURCE_CHANGED`` if it is gone or has another etag by now."""
        found = await self._asked(self._get(path, etag), path)
        if found.meta["size"] > most:
            raise errors.FailedPrecondition("SOURCE_INVALID", f"File {_name(path)} is larger than such a file can be.")
        return bytes(await self._asked(found.bytes_async(), path))

    async def fetch(self, path: str, target: Path, *, etag: str | None = None, size: int | None = None) -> int:
        """Writes the object to a file, a few megabytes in memory at a time; the bytes written.

        Raises ``SOURCE_CHANGED`` if the object is gone, has another etag or is not of this size.
        """
        count = await self._asked(self._fetch(path, target, etag), path)
        if size is not None and count != size:
            raise _changed(path)
        return count

    async def _fetch(self, path: str, target: Path, etag: str | None) -> int:
        count = 0
        found = await self._get(path, etag)
        with target.open("wb") as file:
            async for chunk in found.stream(min_chunk_size=_CHUNK):
                count += len(chunk)
                await asyncio.to_thread(file.write, chunk)
        return count

    async def _get(self, path: str, etag: str | None) -> obstore.GetResult:
        return await obstore.get_async(self._store, path, options={"if_match": etag} if etag else None)

    async def _asked[T](self, answer: Awaitable[T], path: str | None = None) -> T:
        try:
            return await answer
        except (OSError, obs.BaseError) as exc:
            failure = _failure(exc, self.place, path)
        # Outside of the except block, so that nothing chains to a text with a signature in it.
        raise failure


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _changed(path: str) -> errors.Unavailable:
    return errors.Unavailable(
        "SOURCE_CHANGED", f"File {_name(path)} was replaced or removed while the delivery was read; try again."
    )


def _failure(exc: Exception, place: Place, path: str | None) -> errors.Error:
    """What a failure of the storage means; ``path`` is of the one object that was asked for."""
    text = str(exc)
    if "credential provider" in text:
        # The role could not be assumed again: the next try opens the place anew and says why.
        return _unanswered(place)
    if re.search(_REJECTED, text) or isinstance(exc, obs.UnauthenticatedError):
        return _rejected(place)
    if re.search(_MISSING, text):
        return _missing(place)
    if re.search(aws_access.THROTTLED, text):
        return errors.Unavailable(
            "SOURCE_THROTTLED",
            f"{place.provider} storage takes no more requests at this time; try again later.",
            retry_after=timedelta(seconds=30),
        )
    if re.search(_ELSEWHERE, text):
        return errors.FailedPrecondition(
            "SOURCE_INVALID", f"The {place.where} lies in another region than source.region says."
        )
    if isinstance(exc, obs.PermissionDeniedError) or re.search(_DENIED, text):
        return errors.FailedPrecondition(
            "SOURCE_ACCESS_DENIED",
            f"The stored credential may not list and read {place.where}: give it {place.reader} there.",
        )
    if isinstance(exc, FileNotFoundError | obs.NotFoundError | obs.PreconditionError):
        return _missing(place) if path is None else _changed(path)
    if isinstance(exc, obs.InvalidPathError):
        return errors.FailedPrecondition(
            "SOURCE_INVALID", f"The {place.where} holds objects whose names have empty parts (//): name a folder."
        )
    return _unanswered(place)


def _unanswered(place: Place) -> errors.Unavailable:
    return errors.Unavailable(
        "SOURCE_UNAVAILABLE", f"{place.provider} storage did not answer while it was read; try again."
    )


def _rejected(place: Place) -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        "CREDENTIAL_REJECTED",
        f"{place.provider} refuses the stored credential for {place.where}: it is expired, revoked or mistyped. "
        "Store a new one.",
    )


def _missing(place: Place) -> errors.FailedPrecondition:
    return errors.FailedPrecondition("SOURCE_NOT_FOUND", f"There is no {place.where}.")


def _unusable(provider: str, forms: str) -> errors.FailedPrecondition:
    return errors.FailedPrecondition("CREDENTIAL_UNUSABLE", f"The stored {provider} credential is {forms}.")


def _client(endpoint_url: str | None) -> Any:
    return {
        "client_options": {"allow_http": endpoint_url is not None, "timeout": "120s", "connect_timeout": "15s"},
        "retry_config": {"max_retries": 3, "retry_timeout": timedelta(seconds=60)},
    }


# ------------------------------------------------------------------------------------------------- Azure


@dataclass(frozen=True, slots=True)
class AzureContainer:
    """A container; opened with a shared access signature or a service principal's secret."""

    provider: ClassVar[str] = "Azure"
    reader: ClassVar[str] = "the role Storage Blob Data Reader"
    account: str
    container: str
    endpoint_url: str | None = None

    @property
    def where(self) -> str:
        """The place in words."""
        return f"container {self.container} of storage account {self.account}"

    async def open(self, key: Mapping[str, Any]) -> ObjectStore:
        """Raises ``FailedPrecondition``."""
        options: dict[str, Any] = {"account_name": self.account, "container_name": self.container}
        if self.endpoint_url is not None:
            options["endpoint"] = self.endpoint_url
        if isinstance(key.get("sas_token"), str):
            token = key["sas_token"].removeprefix("?")
            _check_alive(token)
            options["sas_key"] = token
        elif all(isinstance(key.get(name), str) for name in ("client_id", "client_secret", "azure_tenant_id")):
            if not _GUID.fullmatch(key["azure_tenant_id"]):
                raise _unusable("Azure", _AZURE_FORMS)
            options |= {
                "client_id": key["client_id"],
                "client_secret": key["client_secret"],
                "tenant_id": key["azure_tenant_id"],
                "authority_host": "https://login.microsoftonline.com",
            }
        else:
            raise _unusable("Azure", _AZURE_FORMS)
        return AzureStore(config=options, **_client(self.endpoint_url))  # type: ignore[arg-type]


_AZURE_FORMS = "neither a service principal's secret nor a shared access signature"


def _check_alive(token: str) -> None:
    ends = [value for name, value in parse_qsl(token) if name == "se"]
    try:
        end = datetime.fromisoformat(ends[0]) if ends else None
    except ValueError:
        raise _unusable("Azure", _AZURE_FORMS) from None
    if end is not None and (end if end.tzinfo else end.replace(tzinfo=UTC)) <= datetime.now(UTC):
        raise errors.FailedPrecondition(
            "CREDENTIAL_EXPIRED", f"The stored shared access signature has expired on {end:%Y-%m-%d}: store a new one."
        )


# ------------------------------------------------------------------------------------------------- Google


@dataclass(frozen=True, slots=True)
class GcsBucket:
    """A bucket; opened with a service account's key. A stand-in is asked without a signature."""

    provider: ClassVar[str] = "Google Cloud"
    reader: ClassVar[str] = "the role Storage Object Viewer"
    bucket: str
    endpoint_url: str | None = None

    @property
    def where(self) -> str:
        """The place in words."""
        return f"bucket {self.bucket}"

    async def open(self, key: Mapping[str, Any]) -> ObjectStore:
        """Raises ``FailedPrecondition``."""
        try:
            signer: Any = service_account.Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
                key, scopes=[_GCS_SCOPE]
            )
        except (ValueError, KeyError, google.auth.exceptions.GoogleAuthError):
            signer = None
        if signer is None:
            raise _unusable(self.provider, "no service account's key")
        if self.endpoint_url is None:
            provider: Any = _google_tokens(signer.with_always_use_jwt_access(True))
        else:
            provider = _no_token
        return GCSStore(
            self.bucket,
            config={"base_url": self.endpoint_url or "https://storage.googleapis.com"},
            credential_provider=provider,
            **_client(self.endpoint_url),
        )


def _google_tokens(signer: Any) -> Callable[[], Awaitable[dict[str, Any]]]:
    """Tokens that the key signs for itself: nobody is asked for them."""

    def made() -> dict[str, Any]:
        signer.refresh(google.auth.transport.requests.Request())
        return {"token": signer.token, "expires_at": signer.expiry.replace(tzinfo=UTC)}

    async def provide() -> dict[str, Any]:
        return await asyncio.to_thread(made)

    return provide


async def _no_token() -> dict[str, Any]:
    return {"token": "stand-in", "expires_at": None}


# ------------------------------------------------------------------------------------------------- AWS


@dataclass(frozen=True, slots=True)
class S3Bucket:
    """A bucket; opened with an access key (of a user or a session), or a role that trusts the platform's identity.

    Without ``region`` S3 is asked where the bucket lies.
    """

    provider: ClassVar[str] = "AWS"
    reader: ClassVar[str] = "s3:ListBucket and s3:GetObject"
    bucket: str
    region: str | None = None
    endpoint_url: str | None = None

    @property
    def where(self) -> str:
        """The place in words."""
        return f"bucket {self.bucket}"

    async def open(self, key: Mapping[str, Any]) -> ObjectStore:
        """Raises ``libs.errors``."""
        if aws_access.is_role(key):
            provide: Any = _Role(self, key)
            await provide()
        else:
            provide = _Key(aws_access.keys(key, self.region, self.endpoint_url))
        region = self.region or await self._home(await provide())
        endpoint = self.endpoint_url or f"https://s3.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"
        # Both names of the address: the environment's would be taken for the one that is left out.
        config: Any = {"endpoint": endpoint, "aws_endpoint_url_s3": endpoint, "region": region}
        return S3Store(self.bucket, config=config, credential_provider=provide, **_client(self.endpoint_url))

    async def _home(self, key: Mapping[str, Any]) -> str:
        if self.endpoint_url is not None:
            return "us-east-1"

        def ask() -> str:
            client = aws_access.client("s3", "us-east-1", None, key)
            try:
                answer = client.head_bucket(Bucket=self.bucket)
            except botocore.exceptions.ClientError as exc:
                answer = exc.response
            finally:
                client.close()
            return str(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region", ""))

        try:
            region = await asyncio.to_thread(ask)
        except botocore.exceptions.BotoCoreError:
            raise errors.Unavailable("SOURCE_UNAVAILABLE", "AWS storage did not answer; try again.") from None
        return region if _REGION.fullmatch(region) else "us-east-1"


class _Key:
    """An access key as obstore asks for it."""

    def __init__(self, key: Mapping[str, Any]) -> None:
        self._key = key

    async def __call__(self) -> Mapping[str, Any]:
        return self._key


class _Role:
    """Session keys of a role, assumed anew before they end."""

    def __init__(self, place: S3Bucket, secret: Mapping[str, Any]) -> None:
        self._place = place
        self._secret = secret
        self._lock = asyncio.Lock()
        self._held: dict[str, Any] | None = None

    async def __call__(self) -> dict[str, Any]:
        async with self._lock:
            if self._held is None or self._held["expires_at"] < datetime.now(UTC) + timedelta(minutes=10):
                place = self._place
                self._held = await asyncio.to_thread(aws_access.keys, self._secret, place.region, place.endpoint_url)
            return self._held
