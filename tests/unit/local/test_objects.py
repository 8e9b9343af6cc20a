"""The local object stores as the executor reads them and the credential service asks them, by the real clients."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from deploy.local import sample_data
from deploy.local.objects import Keys, Server
from libs import errors
from services.credential.states import Kind, Status
from services.credential.validators import _ask_aws, _ask_azure
from services.pipeline_executor.providers.object_store import AzureContainer, S3Bucket, Store, open_store
from services.pipeline_executor.run_context import Secret, SourceEndpoints

KEYS = Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "samplecustomer",
            base64.b64encode(bytes(64)).decode())  # fmt: skip
LOCAL = SourceEndpoints("http://127.0.0.1:1", "127.0.0.1:1")
LATER, BEFORE = datetime(2099, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    sample_data.deliver(tmp_path / "objects", KEYS.account)
    made = Server(("127.0.0.1", 0), tmp_path / "objects", KEYS)
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def address(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


async def opened(server: Server, kind: str, **changes: Any) -> Store:
    key: Mapping[str, Any]
    if kind == "s3":
        place: Any = S3Bucket(changes.pop("bucket", sample_data.BUCKET), "us-east-1", address(server))
        key = {"access_key_id": KEYS.access_key_id, "secret_access_key": KEYS.secret_access_key, **changes}
    else:
        where = changes.pop("container", sample_data.CONTAINER)
        place = AzureContainer(KEYS.account, where, f"{address(server)}/{KEYS.account}")
        key = {"sas_token": KEYS.sas(LATER), **changes}
    return await open_store(place, Secret(key), LOCAL)


@pytest.mark.parametrize("kind", ["s3", "blob"])
async def test_a_delivery_is_listed_read_and_fetched_by_its_etag(server: Server, kind: str, tmp_path: Path) -> None:
    store = await opened(server, kind)
    found = {item.path: item for item in await store.objects("costs")}
    part = next(item for path, item in found.items() if path.endswith(".csv.gz"))
    manifest = next(item for path, item in found.items() if path.lower().endswith("manifest.json"))
    assert len(found) == 2
    assert part.path.rpartition("/")[2].encode() in await store.read(manifest.path, etag=manifest.etag)
    count = await store.fetch(part.path, tmp_path / "part", etag=part.etag, size=part.size)
    sample = sample_data.AWS_FILE if kind == "s3" else sample_data.AZURE_FILE
    assert (tmp_path / "part").read_bytes() == sample.read_bytes()
    assert count == part.size
    # Seeding again changes nothing; a file that changes is another object.
    sample_data.deliver(server.folder, KEYS.account)
    assert await store.read(manifest.path, etag=manifest.etag)
    [file] = server.folder.rglob(manifest.path.rpartition("/")[2])
    file.write_bytes(b"{}")
    with pytest.raises(errors.Unavailable, match="was replaced or removed"):
        await store.read(manifest.path, etag=manifest.etag)
    with pytest.raises(errors.Unavailable, match="was replaced or removed"):
        await store.read("costs/nothing", etag="x")


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("s3", {"secret_access_key": "x" * 40}, "CREDENTIAL_REJECTED"),
        ("s3", {"access_key_id": "AKIAXXXXXXXXXXXXXXXX"}, "CREDENTIAL_REJECTED"),
        ("s3", {"bucket": "nothere"}, "SOURCE_NOT_FOUND"),
        ("blob", {"sas_token": KEYS.sas(LATER).replace("sp=rl", "sp=rwl")}, "CREDENTIAL_REJECTED"),
        ("blob", {"container": "nothere"}, "SOURCE_NOT_FOUND"),
    ],
)
async def test_it_refuses_as_the_clouds_do(server: Server, kind: str, changes: Any, reason: str) -> None:
    store = await opened(server, kind, **changes)
    with pytest.raises(errors.FailedPrecondition) as caught:
        await store.objects()
    assert caught.value.reason == reason


def test_the_credential_service_finds_its_keys_good_and_others_bad(server: Server) -> None:
    where = {"endpoint_url": address(server)}
    good = {"access_key_id": KEYS.access_key_id, "secret_access_key": KEYS.secret_access_key}
    assert _ask_aws(Kind.ACCESS_KEY, good, where, "").status is Status.VALID
    assert _ask_aws(Kind.ACCESS_KEY, {**good, "secret_access_key": "y" * 40}, where, "").status is Status.INVALID
    container = {"endpoint_url": f"{address(server)}/{KEYS.account}", "container": sample_data.CONTAINER}
    for end, status in ((LATER, Status.VALID), (BEFORE, Status.INVALID)):
        assert _ask_azure(Kind.SAS, {"sas_token": KEYS.sas(end)}, container, "").status is status


def test_no_path_leads_out_of_the_folder(server: Server, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("no")
    for path in ("../../secret.txt", "../../../secret.txt", "../samplecustomer/../../../secret.txt"):
        url = f"{address(server)}/{KEYS.account}/{sample_data.CONTAINER}/{quote(path, safe='')}?{KEYS.sas(LATER)}"
        assert httpx.get(url).status_code == 404
    url = f"{address(server)}/{KEYS.account}/..%2F..?restype=container&comp=list&{KEYS.sas(LATER)}"
    assert httpx.get(url).status_code == 404
