"""Signs in to AWS with a tenant's credential: an access key, or a role that trusts the platform's own identity.

What the process's environment says of AWS is used for that identity alone, when a role is assumed; never to sign, and
never for an address. No text of AWS's failures is kept.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from datetime import UTC, timedelta
from typing import Any, Final

import botocore.config
import botocore.exceptions
import botocore.loaders
import botocore.session

from libs import errors

THROTTLED: Final = "SlowDown|TooManyRequests|ServerBusy|RequestLimitExceeded|Throttling|429 Too Many"
FORMS: Final = "The stored AWS credential is neither an access key nor a role with an external id."
_HOMES = {"aws": "us-east-1", "aws-cn": "cn-north-1", "aws-us-gov": "us-gov-west-1"}
_SESSION = timedelta(hours=1)


def client(
    service: str, region: str, endpoint_url: str | None, key: Mapping[str, Any] | None, *, attempts: int = 4
) -> Any:
    """A client that signs with a key of a user or a session, or with the platform's own identity if None."""
    signing: dict[str, Any] = {}
    if key is not None:
        signing = {
            "aws_access_key_id": key["access_key_id"],
            "aws_secret_access_key": key["secret_access_key"],
            "aws_session_token": key.get("token"),
        }
    config: Any = botocore.config.Config(
        connect_timeout=15,
        read_timeout=30,
        retries={"total_max_attempts": attempts, "mode": "standard"},
        ignore_configured_endpoint_urls=True,
    )
    session: Any = botocore.session.get_session()
    session.register_component("data_loader", _models())
    return session.create_client(service, region, endpoint_url=endpoint_url, config=config, **signing)


@functools.cache
def _models() -> Any:
    """The descriptions of AWS's services, some of them megabytes of JSON: read once, not for each client."""
    return botocore.loaders.create_loader()


def is_role(secret: Mapping[str, Any]) -> bool:
    """Whether the credential is a role; raises ``FailedPrecondition(CREDENTIAL_UNUSABLE)`` if it is no key either."""
    if all(isinstance(secret.get(name), str) for name in ("role_arn", "external_id")):
        return True
    if all(isinstance(secret.get(name), str) for name in ("access_key_id", "secret_access_key")):
        return False
    raise errors.FailedPrecondition("CREDENTIAL_UNUSABLE", FORMS)


def keys(secret: Mapping[str, Any], region: str | None, endpoint_url: str | None) -> dict[str, Any]:
    """What to sign with: the access key itself, without an end, or the keys of a new session of the role.

    Asks STS for a role. Raises ``FailedPrecondition`` (CREDENTIAL_UNUSABLE, CREDENTIAL_REJECTED,
    PLATFORM_IDENTITY_MISSING) and ``Unavailable``.
    """
    if is_role(secret):
        return _assume(secret["role_arn"], secret["external_id"], region, endpoint_url)
    return {
        "access_key_id": secret["access_key_id"],
        "secret_access_key": secret["secret_access_key"],
        "token": secret.get("session_token"),
        "expires_at": None,
    }


def _assume(role_arn: str, external_id: str, region: str | None, endpoint_url: str | None) -> dict[str, Any]:
    region = region or _HOMES.get(role_arn.removeprefix("arn:").partition(":")[0], "us-east-1")
    # A stand-in has no identities: any name serves.
    ours = None if endpoint_url is None else {"access_key_id": "STANDIN", "secret_access_key": "stand-in"}
    failure: errors.Error
    try:
        sts = client("sts", region, endpoint_url or _sts(region), ours)
        try:
            answer = sts.assume_role(
                RoleArn=role_arn,
                RoleSessionName="convergence",
                ExternalId=external_id,
                DurationSeconds=int(_SESSION.total_seconds()),
            )
        finally:
            sts.close()
    except botocore.exceptions.ClientError as exc:
        code = exc.response.get("Error", {}).get("Code", "")
        if re.search(THROTTLED, code) or code.startswith(("Internal", "ServiceUnavailable")):
            failure = errors.Unavailable("SOURCE_THROTTLED", "AWS STS takes no more requests now; try again later.")
        else:
            failure = errors.FailedPrecondition(
                "CREDENTIAL_REJECTED",
                f"AWS does not let us assume the role {role_arn}: let it trust our identity with the "
                "external id that its credential shows.",
            )
    except botocore.exceptions.ParamValidationError:
        failure = errors.FailedPrecondition("CREDENTIAL_UNUSABLE", FORMS)
    except botocore.exceptions.NoCredentialsError:
        failure = errors.FailedPrecondition(
            "PLATFORM_IDENTITY_MISSING", "This platform has no AWS identity to assume roles with: store a key."
        )
    except botocore.exceptions.BotoCoreError:
        failure = errors.Unavailable("SOURCE_UNAVAILABLE", "AWS STS did not answer; try again.")
    else:
        found = answer["Credentials"]
        return {
            "access_key_id": found["AccessKeyId"],
            "secret_access_key": found["SecretAccessKey"],
            "token": found["SessionToken"],
            "expires_at": found["Expiration"].astimezone(UTC),  # obstore takes this zone only
        }
    raise failure


def _sts(region: str) -> str:
    return f"https://sts.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"
