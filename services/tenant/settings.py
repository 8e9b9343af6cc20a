"""What the tenant process reads from its environment, beside what every process reads."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, SecretStr

from libs.settings import Address, ServiceSettings


class Settings(ServiceSettings):
    """Settings of the tenant service."""

    service: ClassVar[str] = "tenant"

    admin_api_key: SecretStr = Field(
        validation_alias="ADMIN_API_KEY",
        description="the platform admin's API key, at least 16 characters; make one with `openssl rand -hex 24`",
        examples=["(48 random hex digits)"],
    )
    authz_listen: Address = Field(
        default="0.0.0.0:50053",
        description="the address of the HTTP endpoint that the gateway asks who a request is from",
        examples=["0.0.0.0:50053"],
    )

    @property
    def key_environment(self) -> Literal["live", "test"]:
        """The word in this environment's API keys; a key of the other kind is malformed here."""
        return "live" if self.environment == "prod" else "test"
