"""What the doctor asks of Google Cloud, with the operator's own permissions and the platform's own settings.

The environment (and ``.env``) are read as every process reads them; the look at the central dataset is the one that
``make setup-bigquery`` ends with. Nothing is changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from services.cli.doctor import Check, Verdict

if TYPE_CHECKING:
    from libs.settings import ServiceSettings

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_PROJECTS = "https://cloudresourcemanager.googleapis.com/v1/projects"
# What whoever sets the platform up needs, and the role that has it.
PERMISSIONS = {
    "bigquery.datasets.create": "roles/bigquery.user",
    "bigquery.jobs.create": "roles/bigquery.jobUser",
    "bigquery.tables.create": "roles/bigquery.dataEditor",
    "bigquery.tables.getData": "roles/bigquery.dataEditor",
    "bigquery.tables.updateData": "roles/bigquery.dataEditor",
}
# What each process's account needs on the project and on the key: step 3 of deploy/README.md.
PROJECT_ROLES = {
    "setup": ("roles/bigquery.user",),
    "tenant": ("roles/bigquery.user",),
    "credential": ("roles/bigquery.jobUser",),
    "pipeline-executor": ("roles/bigquery.jobUser", "roles/bigquery.dataEditor"),
    "scheduler": ("roles/bigquery.jobUser",),
}
KEY_ROLES = {"credential": ("roles/cloudkms.cryptoKeyEncrypterDecrypter", "roles/cloudkms.viewer")}
_ROTATION = "--rotation-period=90d --next-rotation-time=+90d"
_SECONDS = 20.0


def examine(environ: dict[str, str] | None = None, *, projects: str = _PROJECTS) -> Iterator[Check]:
    """Settings, IAM, datasets and tables, the key. ``projects`` is where IAM policies of projects are asked for."""
    from libs.settings import ServiceSettings, SettingsInvalid, load

    try:
        settings = load(ServiceSettings, environ)
    except SettingsInvalid as exc:
        for line in str(exc).splitlines():
            yield Check("settings", "environment", Verdict.FAIL, line, "Set it as .env.example shows.")
        return
    project, place = settings.gcp_project_id, settings.environment
    yield Check(
        "settings", "environment", Verdict.OK, f"project {project}, {place}, datasets in {settings.bigquery_location}"
    )
    if settings.bigquery_endpoint is None:
        yield from _iam(settings, projects)
    else:
        yield Check("iam", "permissions", Verdict.SKIPPED, "the local stack's BigQuery asks for none")
    yield from _datasets(settings)
    yield from _key(settings)


def _session(settings: ServiceSettings) -> Any:
    import google.auth
    from google.auth.transport.requests import AuthorizedSession

    file = settings.google_application_credentials
    if file is not None:
        credentials, _ = google.auth.load_credentials_from_file(str(file), scopes=[_SCOPE])  # type: ignore[no-untyped-call]
    else:
        credentials, _ = google.auth.default(scopes=[_SCOPE])
    return AuthorizedSession(credentials)  # type: ignore[no-untyped-call]


def _iam(settings: ServiceSettings, projects: str) -> Iterator[Check]:
    import google.auth.exceptions
    import requests

    project = settings.gcp_project_id
    try:
        session = _session(settings)
        answer = session.post(
            f"{projects}/{project}:testIamPermissions", json={"permissions": sorted(PERMISSIONS)}, timeout=_SECONDS
        )
        policy = session.post(f"{projects}/{project}:getIamPolicy", json={}, timeout=_SECONDS)
    except google.auth.exceptions.GoogleAuthError as exc:
        fix = "gcloud auth application-default login   (or set GOOGLE_APPLICATION_CREDENTIALS)"
        yield Check("iam", "identity", Verdict.FAIL, f"Google knows nobody here: {exc}", fix)
        return
    except requests.RequestException as exc:
        yield Check(
            "iam", "permissions", Verdict.FAIL, f"no answer from {projects}: {type(exc).__name__}", "Try again."
        )
        return
    if answer.status_code != 200:
        fix = f"gcloud services enable cloudresourcemanager.googleapis.com --project={project}"
        yield Check("iam", "permissions", Verdict.FAIL, f"project {project} answered {answer.status_code}", fix)
    else:
        missing = sorted(set(PERMISSIONS) - set(answer.json().get("permissions", ())))
        needed = sorted({PERMISSIONS[name] for name in missing})
        fix = "; ".join(_grant(project, "user:YOU", role) for role in needed)
        found = f"missing: {', '.join(missing)}" if missing else f"you have all {len(PERMISSIONS)} that setup needs"
        yield Check("iam", "your permissions", Verdict.WARN if missing else Verdict.OK, found, fix)
    if policy.status_code != 200:
        yield Check("iam", "service accounts", Verdict.SKIPPED, "you may not read the project's IAM policy")
        return
    bound = _bindings(policy.json().get("bindings", ()))
    for name, roles in PROJECT_ROLES.items():
        account = _account(project, name)
        lacking = [role for role in roles if account not in bound.get(role, ())]
        fix = "; ".join(_grant(project, account, role) for role in lacking)
        found = f"lacks {', '.join(lacking)}" if lacking else f"has {', '.join(roles)}"
        yield Check("iam", account.removeprefix("serviceAccount:"), Verdict.WARN if lacking else Verdict.OK, found, fix)


def _datasets(settings: ServiceSettings) -> Iterator[Check]:
    from google.auth.exceptions import GoogleAuthError

    from libs import central, errors
    from libs.bigquery import connect

    try:
        warehouse = connect(settings)
    except GoogleAuthError as exc:
        yield Check("bigquery", "dataset tenants", Verdict.FAIL, str(exc), "gcloud auth application-default login")
        return
    try:
        state = asyncio.run(central.look(warehouse))
    except errors.Error as error:
        yield Check(
            "bigquery", "dataset tenants", Verdict.FAIL, error.message, central.advice(error, settings.gcp_project_id)
        )
        return
    finally:
        warehouse.close()
    if state.location is None:
        yield Check("bigquery", "dataset tenants", Verdict.FAIL, f"{state.place} is not there", "make setup-bigquery")
        return
    if state.location.lower() != settings.bigquery_location.lower():
        found = f"{state.place} is in {state.location}, the settings say {settings.bigquery_location}"
        yield Check("bigquery", "location", Verdict.FAIL, found, f"CONVERGENCE_BIGQUERY_LOCATION={state.location}")
    verdict = Verdict.OK if state.complete else Verdict.FAIL
    found, fix = str(state), ""
    if not state.complete:
        found += f"; missing: {', '.join((*state.missing, *state.helpers_missing))}"
        fix = "make setup-bigquery"
    yield Check("bigquery", "dataset tenants", verdict, found, fix)


def _key(settings: ServiceSettings) -> Iterator[Check]:
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    if not settings.kms_key:
        fix = "CONVERGENCE_KMS_KEY=projects/P/locations/us/keyRings/convergence/cryptoKeys/credentials"
        yield Check("kms", "key", Verdict.FAIL, "CONVERGENCE_KMS_KEY is not set", fix)
        return
    name = settings.kms_key
    ring, _, key_id = name.partition("/cryptoKeys/")
    location, _, ring_id = ring.partition("/keyRings/")
    where = f"--keyring={ring_id} --location={location.rpartition('/')[2]}"
    try:
        client = _kms(settings)
        key = client.get_crypto_key(name=name, timeout=_SECONDS, retry=None)
    except exceptions.NotFound:
        fix = f"gcloud kms keys create {key_id} {where} --purpose=encryption {_ROTATION}"
        yield Check("kms", "key", Verdict.FAIL, f"{name} is not there", fix)
        return
    except exceptions.PermissionDenied:
        fix = f"gcloud kms keys add-iam-policy-binding {key_id} {where} --role=roles/cloudkms.viewer --member=user:YOU"
        yield Check("kms", "key", Verdict.WARN, "you may not look at it", fix)
        return
    except (exceptions.GoogleAPICallError, GoogleAuthError) as exc:
        yield Check(
            "kms",
            "key",
            Verdict.FAIL,
            f"no answer: {type(exc).__name__}",
            "Try again; is the API on? gcloud services enable cloudkms.googleapis.com",
        )
        return
    primary = key.primary
    if primary.state.name != "ENABLED":
        fix = f"gcloud kms keys versions enable VERSION --key={key_id} {where}   (never destroy one)"
        yield Check("kms", "key", Verdict.FAIL, f"its primary version is {primary.state.name}", fix)
        return
    yield Check("kms", "key", Verdict.OK, f"version {primary.name.rpartition('/')[2]} wraps")
    if settings.kms_endpoint is not None:
        return
    if not key.rotation_period:
        fix = f"gcloud kms keys update {key_id} {where} {_ROTATION}"
        yield Check("kms", "rotation", Verdict.WARN, "it is never rotated", fix)
    try:
        policy = client.get_iam_policy(request={"resource": name}, timeout=_SECONDS, retry=None)
    except exceptions.GoogleAPICallError:
        yield Check("kms", "access", Verdict.SKIPPED, "you may not read the key's IAM policy")
        return
    bound = {binding.role: set(binding.members) for binding in policy.bindings}
    for who, roles in KEY_ROLES.items():
        account = _account(settings.gcp_project_id, who)
        lacking = [role for role in roles if account not in bound.get(role, ())]
        grant = f"gcloud kms keys add-iam-policy-binding {key_id} {where} --member={account} --role="
        fix = "; ".join(grant + role for role in lacking)
        found = f"{who} lacks {', '.join(lacking)}" if lacking else f"{who} may wrap and open"
        yield Check("kms", "access", Verdict.WARN if lacking else Verdict.OK, found, fix)


def _kms(settings: ServiceSettings) -> Any:
    from google.cloud.kms_v1 import KeyManagementServiceClient
    from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcTransport

    if settings.kms_endpoint is None:
        return KeyManagementServiceClient()
    import grpc

    channel = grpc.insecure_channel(settings.kms_endpoint)
    return KeyManagementServiceClient(transport=KeyManagementServiceGrpcTransport(channel=channel))


def _account(project: str, name: str) -> str:
    return f"serviceAccount:convergence-{name}@{project}.iam.gserviceaccount.com"


def _grant(project: str, member: str, role: str) -> str:
    return f"gcloud projects add-iam-policy-binding {project} --condition=None --member={member} --role={role}"


def _bindings(given: Iterable[dict[str, Any]]) -> dict[str, set[str]]:
    bound: dict[str, set[str]] = {}
    for binding in given:
        bound.setdefault(binding["role"], set()).update(binding.get("members", ()))
    return bound
