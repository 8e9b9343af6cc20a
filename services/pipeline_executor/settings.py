"""What the executor reads from the environment, beside what every service reads."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from libs.settings import Address, ServiceSettings


class Settings(ServiceSettings):
    """Settings of the executor; every field has a default that is good for production."""

    service: ClassVar[str] = "pipeline_executor"

    max_runs: int = Field(
        default=16,
        ge=1,
        le=256,
        description="the number of runs this process executes at one time; more are refused as UNAVAILABLE",
        examples=["16"],
    )
    staging_dir: Path = Field(
        default=Path(tempfile.gettempdir()) / "convergence-staging",
        description="the directory for files between extraction and load; each process uses a folder of its own in it",
        examples=["/var/lib/convergence/staging"],
    )
    advertised_address: Address | None = Field(
        default=None,
        description=(
            "the address at which the other replicas reach this process's internal port; unset, it is the port of "
            "CONVERGENCE_INTERNAL_LISTEN on this host's own address"
        ),
        examples=["10.0.0.7:50052"],
    )
