"""What the credential process reads from its environment, beside what every process reads."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from libs.settings import ServiceSettings


class Settings(ServiceSettings):
    """Settings of the credential service."""

    service: ClassVar[str] = "credential"

    kms_key: str = Field(
        pattern=r"^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$",
        description="the full name of the Cloud KMS key that wraps the tenants' credentials",
        examples=["projects/my-project-123/locations/us/keyRings/convergence/cryptoKeys/credentials"],
    )
    offboarding_poll_seconds: float = Field(
        default=60.0,
        ge=0.1,
        le=3_600,
        description="the time between two questions to tenant who is leaving, in seconds",
        examples=["60"],
    )
    upkeep_seconds: float = Field(
        default=900.0,
        ge=1,
        le=86_400,
        description="the time between two rounds of re-wrapping, destroying and asking providers again, in seconds",
        examples=["900"],
    )
