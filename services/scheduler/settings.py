"""What the scheduler reads from the environment, beside what every service reads."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from libs.settings import ServiceSettings


class Settings(ServiceSettings):
    """Settings of the scheduler; every field has a default that is good for production."""

    service: ClassVar[str] = "scheduler"

    claim_batch: int = Field(
        default=100,
        ge=1,
        le=1_000,
        description="the number of queue rows claimed with one statement",
        examples=["100"],
    )
    start_parallelism: int = Field(
        default=32,
        ge=1,
        le=256,
        description="the number of runs started at the executor at one time by one call of process-queue",
        examples=["32"],
    )
