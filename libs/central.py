"""The central dataset ``tenants``: whether all that belongs into it is there, and what to do where it is not.

``deploy/setup_bigquery_datasets.py`` brings it up and ends with this look; the command line's ``doctor`` takes the same
look and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from libs import errors, tables
from libs.bigquery import Warehouse
from libs.tenancy import CENTRAL_DATASET


@dataclass(frozen=True, slots=True)
class Central:
    """What was found. ``location`` is None where there is no dataset at all."""

    place: str
    location: str | None
    found: tuple[str, ...]
    missing: tuple[str, ...]
    helpers_found: tuple[str, ...]
    helpers_missing: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """True if nothing is missing."""
        return self.location is not None and not self.missing and not self.helpers_missing

    def __str__(self) -> str:
        """``8 of 8 tables: …``"""
        return f"{len(self.found)} of {len(self.found) + len(self.missing)} tables: {', '.join(self.found) or 'none'}"


async def look(warehouse: Warehouse) -> Central:
    """Reads what is there, by name; raises ``libs.errors`` if BigQuery does not let us."""
    dataset = await warehouse.get_dataset(CENTRAL_DATASET)
    present = set(await warehouse.list_tables(CENTRAL_DATASET)) if dataset else set()
    central = [schema.name for schema in tables.group("central")]
    helpers = [schema.name for schema in tables.group("helper")]
    return Central(
        f"{warehouse.project_id}.{CENTRAL_DATASET}",
        dataset.location if dataset else None,
        tuple(name for name in central if name in present),
        tuple(name for name in central if name not in present),
        tuple(name for name in helpers if name in present),
        tuple(name for name in helpers if name not in present),
    )


def advice(error: errors.Error, project_id: str) -> str:
    """What somebody who runs the platform does about an error of the store."""
    if error.reason == "STORE_ACCESS_DENIED":
        grant = f"gcloud projects add-iam-policy-binding {project_id} --member=serviceAccount:SERVICE_ACCOUNT --role="
        return (
            "BigQuery answered 403. The account that runs this needs bigquery.datasets.create, bigquery.tables.create "
            f"and bigquery.jobs.create:\n  {grant}roles/bigquery.dataEditor\n  {grant}roles/bigquery.jobUser"
        )
    if error.reason == "STORE_OBJECT_MISSING" and error.__cause__ is not None:
        return (
            f"BigQuery answered 404 in project {project_id}. Is GCP_PROJECT_ID right, and the API on?\n"
            f"  gcloud services enable bigquery.googleapis.com --project={project_id}"
        )
    if isinstance(error, errors.Unavailable):
        return f"{error.message} Is CONVERGENCE_BIGQUERY_ENDPOINT right? For the local stack, `make up` starts it."
    return error.message
