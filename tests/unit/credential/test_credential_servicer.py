"""The rpcs under grpc_testing: what is decoded, what is encoded, and that a secret comes out of one method only."""

import json
from collections.abc import Iterator
from datetime import timedelta

import grpc
import pytest
from convergence.credential.v1 import credential_pb2 as pb
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2

from libs import errors
from libs.pages import Pages
from services.credential.servicer import CredentialAccessServicer, CredentialServicer
from services.credential.states import Status, Verdict
from tests.support.grpc import TestingServer, testing_server
from tests.unit.credential.test_credential_domain import World
from tests.unit.credential.test_credential_schemas import AWS_KEY, SAS, service_account

PUBLIC = pb.DESCRIPTOR.services_by_name["CredentialService"]
ACCESS = pb.DESCRIPTOR.services_by_name["CredentialAccessService"]
RUN = "2f1f2a3e-6c5d-4a9e-9a53-0d4b7d2c9f11"


class Served:
    def __init__(self, world: World, server: TestingServer) -> None:
        self.world = world
        self._server = server

    def call(self, method: str, request):
        service = PUBLIC if method in PUBLIC.methods_by_name else ACCESS
        return self._server.call(service.methods_by_name[method], request)

    def post(self, credentials=None, *, provider="gcp", tenant_id="acme", name="", source=None):
        request = pb.CreateCredentialRequest(
            tenant_id=tenant_id,
            provider=provider,
            credentials=struct(service_account() if credentials is None else credentials),
            source=None if source is None else struct(source),
            name=name,
        )
        return self.call("CreateCredential", request)


def struct(fields) -> Struct:
    made = Struct()
    made.update(fields)
    return made


@pytest.fixture
def served() -> Iterator[Served]:
    world = World()
    servicers = {
        PUBLIC: CredentialServicer(world.credentials, Pages(b"secret"), stand_ins=True, now=world.clock),
        ACCESS: CredentialAccessServicer(world.credentials),
    }
    with testing_server(servicers) as server:
        yield Served(world, server)


def test_storing_answers_with_everything_but_the_secret(served):
    first = served.post(source={"dataset_id": "billing"}).response
    assert (first.tenant_id, first.provider, first.name) == ("acme", "GCP", "default")
    assert first.action == pb.CreateCredentialResponse.CREATED
    assert first.dataset_status == pb.CreateCredentialResponse.TABLES_CREATED
    assert first.status == pb.Credential.VALID
    again = served.post(provider="GCP").response
    assert again.action == pb.CreateCredentialResponse.UPDATED
    assert again.dataset_status == pb.CreateCredentialResponse.EXISTS
    assert again.credential_id == first.credential_id


def test_reading_shows_no_secret(served):
    posted = served.post(source={"dataset_id": "billing"})
    read = served.call(
        "GetCredential", pb.GetCredentialRequest(tenant_id="acme", credential_id=posted.response.credential_id)
    ).response
    assert (read.kind, read.version, read.status) == ("service_account", 1, pb.Credential.VALID)
    assert read.display == "reader@customer-1.iam.gserviceaccount.com"
    assert dict(read.source.fields) == dict(struct({"dataset_id": "billing"}).fields)
    assert read.HasField("create_time") and read.HasField("last_validated_time") and not read.HasField("expire_time")
    listed = served.call("ListCredentials", pb.ListCredentialsRequest(tenant_id="acme")).response
    assert list(listed.credentials) == [read]
    for message in (posted.response, read, listed):
        assert "PRIVATE KEY" not in str(message)


def test_faults_are_named_by_field(served):
    reply = served.post(service_account(private_key=None, colour="blue"))
    assert (reply.code, reply.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "CREDENTIALS_INVALID")
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in reply.status.details)
    assert {v.field for v in bad.field_violations} == {"credentials.private_key", "credentials.colour"}
    assert served.post(provider="ibm").reason == "PROVIDER_UNKNOWN"
    assert served.post(source={"dataset": "x"}).reason == "SOURCE_INVALID"
    assert (
        served.post({"access_key_id": 7.0, "secret_access_key": None}, provider="AWS").reason == "CREDENTIALS_INVALID"
    )
    assert not served.world.store.table.rows


def test_pages_follow_each_other(served):
    for name in ("c", "a", "b"):
        served.post(name=name)
    served.post(AWS_KEY, provider="aws", name="z")
    names, token = [], ""
    while True:
        request = pb.ListCredentialsRequest(tenant_id="acme", page_size=3, page_token=token)
        page = served.call("ListCredentials", request).response
        names += [f"{one.provider}/{one.name}" for one in page.credentials]
        token = page.next_page_token
        if not token:
            break
    assert names == ["AWS/z", "GCP/a", "GCP/b", "GCP/c"]
    only = served.call("ListCredentials", pb.ListCredentialsRequest(tenant_id="acme", provider="aws")).response
    assert [one.name for one in only.credentials] == ["z"]
    forged = pb.ListCredentialsRequest(tenant_id="acme", page_token="x" * 40)
    assert served.call("ListCredentials", forged).reason == "PAGE_TOKEN_INVALID"


def test_a_source_is_checked_against_its_provider(served):
    cid = served.post(AWS_KEY, provider="AWS").response.credential_id

    def patch(source):
        request = pb.UpdateCredentialRequest(tenant_id="acme", credential_id=cid, source=struct(source))
        return served.call("UpdateCredential", request)

    patched = patch({"bucket": "acme-billing", "endpoint_url": "http://127.0.0.1:5000"})
    assert patched.response.source["bucket"] == "acme-billing"
    assert patch({"dataset_id": "d"}).reason == "SOURCE_INVALID"


def test_validating_and_deleting(served):
    cid = served.post().response.credential_id
    served.world.clock.advance(timedelta(minutes=1))
    served.world.google.verdict = Verdict(Status.INVALID, "Google does not accept the key.")
    request = pb.ValidateCredentialRequest(tenant_id="acme", credential_id=cid)
    validated = served.call("ValidateCredential", request).response
    assert (validated.status, validated.status_reason) == (pb.Credential.INVALID, "Google does not accept the key.")
    for _ in range(2):
        deleted = served.call("DeleteCredential", pb.DeleteCredentialRequest(tenant_id="acme", credential_id=cid))
        assert deleted.response.status == pb.Credential.REVOKED
    assert served.call("ValidateCredential", request).reason == "CREDENTIAL_REVOKED"


def test_an_expiry_is_shown(served):
    cid = served.post({"sas_token": SAS}, provider="Azure").response.credential_id
    read = served.call("GetCredential", pb.GetCredentialRequest(tenant_id="acme", credential_id=cid)).response
    assert read.expire_time.ToJsonString() == "2026-01-01T00:00:00Z"
    assert read.kind == "sas"


def test_only_opening_gives_the_secret_and_as_it_was_posted(served):
    key = service_account()
    served.post(key, source={"dataset_id": "billing"})
    check = served.call("CheckCredential", pb.CheckCredentialRequest(tenant_id="acme", provider="gcp")).response
    assert (check.status, check.source["dataset_id"]) == (pb.Credential.VALID, "billing")
    assert served.world.cipher.opened == 0
    request = pb.OpenCredentialRequest(tenant_id="acme", provider="gcp", run_id=RUN, attempt=2)
    opened = served.call("OpenCredential", request).response
    assert json.loads(opened.secret) == key
    assert (opened.kind, opened.credential_id) == ("service_account", check.credential_id)
    assert opened.source["dataset_id"] == "billing"
    event = served.world.trail.events[-1]
    assert (event.action, event.details["run_id"], event.details["attempt"]) == ("credential.open", RUN, "2")


def test_what_may_not_be_opened_says_why(served):
    request = pb.OpenCredentialRequest(tenant_id="acme", provider="gcp", run_id=RUN, attempt=1)
    check = pb.CheckCredentialRequest(tenant_id="acme", provider="gcp")
    for method, message in (("OpenCredential", request), ("CheckCredential", check)):
        reply = served.call(method, message)
        assert (reply.code, reply.reason) == (grpc.StatusCode.NOT_FOUND, "CREDENTIAL_NOT_FOUND")
    cid = served.post().response.credential_id
    served.call("DeleteCredential", pb.DeleteCredentialRequest(tenant_id="acme", credential_id=cid))
    for method, message in (("OpenCredential", request), ("CheckCredential", check)):
        reply = served.call(method, message)
        assert (reply.code, reply.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CREDENTIAL_REVOKED")


@pytest.mark.parametrize(
    "break_it",
    [
        lambda w: setattr(w.cipher, "failure", errors.Internal("SECRET_UNREADABLE", "not public")),
        lambda w: setattr(w.trail, "failure", errors.Unavailable("STORE_BUSY", "later")),
    ],
)
def test_what_goes_wrong_inside_gives_no_secret(served, break_it):
    served.post()
    break_it(served.world)
    request = pb.OpenCredentialRequest(tenant_id="acme", provider="gcp", run_id=RUN, attempt=1)
    reply = served.call("OpenCredential", request)
    assert reply.response is None and reply.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
    assert "PRIVATE KEY" not in str(reply) and "not public" not in reply.details
