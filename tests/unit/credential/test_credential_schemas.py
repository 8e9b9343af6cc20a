"""What may come in as a credential or a source: faults are named by field, and no value is ever repeated."""

import functools
import json
import traceback
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from libs import errors
from services.credential.schemas import GOOGLE_TOKEN_URI, parse_credentials, parse_source
from services.credential.states import Kind, Provider

NOW = datetime(2025, 11, 17, 12, tzinfo=UTC)
GUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
AWS_KEY = {"access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": "canary/K7MDENG+bPxRfiCYEXAMPLEKEY0123456"}
PRINCIPAL = {"client_id": GUID, "client_secret": "canary~secret.of-azure", "azure_tenant_id": GUID}
SAS = "sv=2024-11-04&ss=b&srt=co&sp=rl&se=2026-01-01T00%3A00%3A00Z&spr=https&sig=canary%2Bsignature%3D"


def pem(key) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


@functools.cache
def rsa_pem(bits: int = 2048) -> str:
    return pem(rsa.generate_private_key(65537, bits))


def service_account(**changes) -> dict:
    key = {
        "type": "service_account",
        "project_id": "customer-1",
        "private_key_id": "0123456789abcdef",
        "private_key": rsa_pem(),
        "client_email": "reader@customer-1.iam.gserviceaccount.com",
        "client_id": "123456789012345678901",
        "auth_uri": "https://accounts.google.com/o/oauth2/auth",
        "token_uri": GOOGLE_TOKEN_URI,
        "auth_provider_x509_cert_url": "https://www.googleapis.com/oauth2/v1/certs",
        "client_x509_cert_url": "https://www.googleapis.com/robot/v1/metadata/x509/reader%40customer-1.iam",
        "universe_domain": "googleapis.com",
    }
    return {name: value for name, value in (key | changes).items() if value is not None}


def fault(provider: Provider, given: dict) -> errors.InvalidArgument:
    with pytest.raises(errors.InvalidArgument) as refused:
        parse_credentials(provider, given, NOW)
    assert refused.value.reason == "CREDENTIALS_INVALID"
    assert refused.value.__cause__ is None and refused.value.__context__ is None
    return refused.value


def fields(error: errors.InvalidArgument) -> set[str]:
    return {violation.field for violation in error.field_violations}


def test_a_service_account_key_as_downloaded():
    draft = parse_credentials(Provider.GCP, service_account(), NOW)
    assert (draft.kind, draft.display) == (Kind.SERVICE_ACCOUNT, "reader@customer-1.iam.gserviceaccount.com")
    assert draft.secret.fields() == service_account()
    assert draft.expire_time is None


def test_access_that_was_granted_needs_no_key():
    draft = parse_credentials(Provider.GCP, {"type": "granted_access"}, NOW)
    assert (draft.kind, draft.display, draft.expire_time) == (Kind.GRANTED_ACCESS, "granted access", None)
    assert draft.secret.fields() == {"type": "granted_access"}
    assert fields(fault(Provider.GCP, {"type": "granted_access", "private_key": rsa_pem()})) == {
        "credentials.private_key"
    }


@pytest.mark.parametrize("optional", ["client_id", "auth_uri", "auth_provider_x509_cert_url", "universe_domain"])
def test_what_a_service_account_key_can_do_without(optional):
    assert optional not in parse_credentials(Provider.GCP, service_account(**{optional: None}), NOW).secret.fields()


@pytest.mark.parametrize(
    "missing", ["type", "project_id", "private_key_id", "private_key", "client_email", "token_uri"]
)
def test_a_missing_field_is_named(missing):
    refused = fault(Provider.GCP, service_account(**{missing: None}))
    assert fields(refused) == {f"credentials.{missing}"}
    assert f"credentials.{missing} is missing" in refused.message


def test_all_faults_are_named_at_once():
    refused = fault(Provider.GCP, service_account(private_key=None, client_email=None, colour="blue"))
    assert fields(refused) == {"credentials.private_key", "credentials.client_email", "credentials.colour"}


@pytest.mark.parametrize(
    "field, value",
    [
        ("token_uri", "https://evil.example/token"),
        ("token_uri", "http://169.254.169.254/latest"),
        ("token_uri", GOOGLE_TOKEN_URI + "/"),
        ("token_uri", GOOGLE_TOKEN_URI + "\n"),
        ("token_uri", "https://oauth2.googleapis.com@evil.example/token"),
        ("auth_uri", "https://evil.example/auth"),
        ("auth_provider_x509_cert_url", "file:///etc/passwd"),
        ("client_x509_cert_url", "https://www.googleapis.com/robot/v1/metadata/x509/../../x?y=z"),
        ("client_x509_cert_url", "https://evil.example/robot/v1/metadata/x509/a"),
        ("universe_domain", "evil.example"),
        ("type", "authorized_user"),
        ("type", "external_account"),
        ("type", 7),
        ("project_id", "UPPER"),
        ("project_id", "customer-1\n"),
        ("project_id", "p`; DROP TABLE x"),
        ("client_email", "nobody"),
        ("client_email", "a@b\r\nHost: evil"),
        ("private_key", ""),
        ("private_key", "canary-not-a-key"),
        ("private_key", ["canary"]),
        ("private_key", {"canary": "canary"}),
        ("private_key", True),
        ("private_key", 12.5),
        ("private_key", "canary" * 10_000),
    ],
)
def test_a_bad_value_is_named_and_not_repeated(field, value):
    refused = fault(Provider.GCP, service_account(**{field: value}))
    assert fields(refused) == {f"credentials.{field}"}
    assert "canary" not in refused.message and "evil" not in refused.message


@pytest.mark.parametrize("key", [lambda: pem(ec.generate_private_key(ec.SECP256R1())), lambda: rsa_pem()[:-200]])
def test_a_private_key_must_be_rsa_and_whole(key):
    assert fields(fault(Provider.GCP, service_account(private_key=key()))) == {"credentials.private_key"}


def test_an_old_token_address_is_replaced_by_the_pinned_one():
    old = service_account(token_uri="https://accounts.google.com/o/oauth2/token")
    assert parse_credentials(Provider.GCP, old, NOW).secret.fields()["token_uri"] == GOOGLE_TOKEN_URI


def test_aws_access_keys():
    draft = parse_credentials(Provider.AWS, AWS_KEY, NOW)
    assert (draft.kind, draft.display, draft.expire_time) == (Kind.ACCESS_KEY, "…MPLE", None)
    assert draft.secret.fields() == AWS_KEY


def test_an_aws_session_ends_within_36_hours():
    session = AWS_KEY | {"access_key_id": "ASIAIOSFODNN7EXAMPLE", "session_token": "canary" * 20}
    assert parse_credentials(Provider.AWS, session, NOW).expire_time == NOW + timedelta(hours=36)
    del session["session_token"]
    assert fields(fault(Provider.AWS, session)) == {"credentials.session_token"}


def test_an_aws_role_gets_its_external_id_from_us():
    role = {"role_arn": "arn:aws:iam::123456789012:role/convergence/Billing.Reader"}
    draft = parse_credentials(Provider.AWS, role, NOW)
    assert (draft.kind, draft.display) == (Kind.ROLE, role["role_arn"])
    refused = fault(Provider.AWS, role | {"external_id": "chosen-by-me"})
    assert refused.message == "credentials.external_id is issued by us and not given."


@pytest.mark.parametrize(
    "arn",
    [
        "arn:aws:iam::123:role/x",
        "arn:aws:iam::123456789012:user/x",
        "arn:aws:sts::123456789012:assumed-role/x/y",
        "arn:aws:iam::123456789012:role/",
        "arn:aws:iam::123456789012:role/x\n",
        "arn:evil:iam::123456789012:role/x",
        "arn:aws:iam::١٢٣٤٥٦٧٨٩٠١٢:role/x",
        "arn:aws:iam::123456789012:role/ü",
    ],
)
def test_a_role_is_named_by_its_arn(arn):
    assert fields(fault(Provider.AWS, {"role_arn": arn})) == {"credentials.role_arn"}


def test_azure_service_principals():
    draft = parse_credentials(Provider.AZURE, PRINCIPAL, NOW)
    assert (draft.kind, draft.display) == (Kind.SERVICE_PRINCIPAL, GUID)
    assert fields(fault(Provider.AZURE, PRINCIPAL | {"authority": "https://evil.example"})) == {"credentials.authority"}
    for tenant in ("evil.example", "../" + GUID, GUID + "/x", "common"):
        assert fields(fault(Provider.AZURE, PRINCIPAL | {"azure_tenant_id": tenant})) == {"credentials.azure_tenant_id"}


@pytest.mark.parametrize("token", [SAS, "?" + SAS])
def test_azure_shared_access_signatures_end_when_they_say(token):
    draft = parse_credentials(Provider.AZURE, {"sas_token": token}, NOW)
    assert (draft.kind, draft.expire_time) == (Kind.SAS, datetime(2026, 1, 1, tzinfo=UTC))
    assert draft.secret.fields() == {"sas_token": SAS}


@pytest.mark.parametrize(
    "token",
    [
        "https://acme.blob.core.windows.net/?" + SAS,
        SAS.replace("sp=rl", "sp=w"),
        SAS.replace("sp=rl", "sp=r"),
        SAS.replace("&sig=canary%2Bsignature%3D", ""),
        SAS.replace("2026", "2024"),
        SAS.replace("2026-01-01", "soon"),
        SAS + "&sig=second",
        SAS + "&restype=container",
        "canary",
        "&&&",
    ],
)
def test_a_signature_that_would_not_do_is_refused(token):
    refused = fault(Provider.AZURE, {"sas_token": token})
    assert fields(refused) == {"credentials.sas_token"}
    assert "canary" not in refused.message


@pytest.mark.parametrize("provider", Provider)
def test_nothing_at_all_names_what_is_missing(provider):
    assert all("is missing" in violation.description for violation in fault(provider, {}).field_violations)


@pytest.mark.parametrize("name", ["canary/looks+like=a-secret", "canary" * 6, "x y", "ключ", "", "a\nb"])
def test_a_field_name_that_could_be_a_secret_is_not_repeated(name):
    refused = fault(Provider.AWS, AWS_KEY | {name: "x"})
    assert fields(refused) == {"credentials.(a name not shown)"}


_json = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
_known = st.sampled_from([*service_account(private_key="x"), *AWS_KEY, *PRINCIPAL, "role_arn", "sas_token"])


@given(st.sampled_from(Provider), st.dictionaries(_known | st.text(max_size=40), _json, max_size=8))
def test_whatever_comes_in_is_a_draft_or_an_invalid_argument(provider, given_fields):
    try:
        parse_credentials(provider, given_fields, NOW)
    except errors.InvalidArgument as refused:
        assert refused.field_violations
        for value in given_fields.values():
            if isinstance(value, str) and len(value) > 12:
                assert value not in "".join(traceback.format_exception(refused))


def test_sources():
    whole = {
        "project_id": "customer-1",
        "dataset_id": "billing",
        "table_id": "gcp_billing_export_v1_A",
        "location": "US",
        "parent": "organizations/123456",
        "bucket": "acme-scans",
        "prowler_prefix": "security/scans",
    }
    assert parse_source(Provider.GCP, whole, stand_ins=False) == whole
    assert parse_source(Provider.GCP, {}, stand_ins=False) == {}
    aws: dict[str, object] = {
        "bucket": "acme-billing",
        "prefix": "exports/daily",
        "export_name": "focus",
        "region": "eu-central-1",
        "prowler_prefix": "security/scans",
    }
    aws["regions"] = ["eu-central-1", "us-east-1"]
    assert parse_source(Provider.AWS, aws, stand_ins=False) == aws
    azure: dict[str, object] = {
        "storage_account": "acme",
        "container": "exports",
        "directory": "daily",
        "export_name": "focus",
        "prowler_prefix": "security/scans",
    }
    azure["subscription_ids"] = ["0b06d9ea-afe6-4779-bd59-30e5c2d9d13f"]
    assert parse_source(Provider.AZURE, azure, stand_ins=False) == azure


@pytest.mark.parametrize(
    "provider, given_source, named",
    [
        (Provider.GCP, {"table_id": "t"}, "dataset_id"),
        (Provider.GCP, {"dataset_id": "d`; --"}, "dataset_id"),
        (Provider.GCP, {"dataset_id": None, "table": "t"}, "table"),
        (Provider.GCP, {"location": "us/../x"}, "location"),
        (Provider.GCP, {"endpoint_url": "file:///x"}, "endpoint_url"),
        (Provider.GCP, {"parent": "organizations/1/sources/-"}, "parent"),
        (Provider.AWS, {"regions": ["eu-west-1", "evil.example"]}, "regions"),
        (Provider.AWS, {"regions": "eu-west-1"}, "regions"),
        (Provider.AZURE, {"subscription_ids": ["../x"]}, "subscription_ids"),
        (Provider.AWS, {"region": "evil.example/x"}, "region"),
        (Provider.AWS, {"bucket": "a/../b"}, "bucket"),
        (Provider.AZURE, {"storage_account": "acme.evil.example#"}, "storage_account"),
        (Provider.AZURE, {"container": "UPPER"}, "container"),
    ],
)
def test_a_bad_source_is_named(provider, given_source, named):
    with pytest.raises(errors.InvalidArgument) as refused:
        parse_source(provider, given_source, stand_ins=True)
    assert refused.value.reason == "SOURCE_INVALID"
    assert f"source.{named}" in fields(refused.value)


@pytest.mark.parametrize("provider", list(Provider))
def test_stand_ins_are_for_the_local_stack(provider):
    stand_in = {"endpoint_url": "http://127.0.0.1:10000/devstoreaccount1"}
    assert parse_source(provider, stand_in, stand_ins=True) == stand_in
    with pytest.raises(errors.InvalidArgument):
        parse_source(provider, stand_in, stand_ins=False)
    for bad in ("file:///etc/passwd", "http://user@host/", "http://", "http://h/?q", "http://h:99999/", "gopher://h"):
        with pytest.raises(errors.InvalidArgument):
            parse_source(provider, {"endpoint_url": bad}, stand_ins=True)


def test_the_secret_is_canonical_json():
    content = parse_credentials(Provider.AWS, dict(reversed(AWS_KEY.items())), NOW).secret.reveal()
    assert content == json.dumps(AWS_KEY, sort_keys=True, separators=(",", ":")).encode()
