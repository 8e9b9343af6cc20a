"""The doctor on the emulator and the local key service: what it finds of BigQuery and Cloud KMS, and the cure."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
from google.cloud.kms_v1 import KeyManagementServiceAsyncClient
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcAsyncIOTransport

from deploy.local import kms
from libs.bigquery import Warehouse
from services.cli import cloud
from services.cli.doctor import Check
from tests.conftest import Emulator

KEY = "projects/my-project/locations/us/keyRings/convergence/cryptoKeys/credentials"


async def examined(**given: str) -> dict[str, Check]:
    """What the doctor says with these settings, by name; it runs a loop of its own, as the command does."""
    environment = {"CONVERGENCE_ENVIRONMENT": "local", "CONVERGENCE_KMS_KEY": KEY, **given}
    checks = await asyncio.to_thread(lambda: list(cloud.examine(environment)))
    return {f"{check.area}: {check.name}": check for check in checks}


async def test_datasets_tables_and_key(central: Warehouse, bigquery_emulator: Emulator, tmp_path: Path) -> None:
    store = {"GCP_PROJECT_ID": central.project_id, "CONVERGENCE_BIGQUERY_ENDPOINT": bigquery_emulator.rest}
    async with kms.running(tmp_path / "keys.json", "127.0.0.1:0", create_key=KEY) as address:
        well = await examined(**store, CONVERGENCE_KMS_ENDPOINT=address)
        assert {check.verdict for check in well.values()} == {"OK", "SKIPPED"}, well
        assert well["bigquery: dataset tenants"].found.startswith("8 of 8 tables: pipeline_execution_queue, ")
        assert well["kms: key"].found == "version 1 wraps"

        central.client.delete_table(f"{central.project_id}.tenants.tenant_usage_quotas")
        central.client.delete_table(f"{central.project_id}.tenants.audit_log")
        missing = KEY.replace("credentials", "none")
        ill = await examined(**store, CONVERGENCE_KMS_ENDPOINT=address, CONVERGENCE_KMS_KEY=missing)
        dataset = ill["bigquery: dataset tenants"]
        assert dataset.verdict == "FAIL" and dataset.found.startswith("7 of 8 tables")
        assert "missing: tenant_usage_quotas, audit_log" in dataset.found and dataset.fix == "make setup-bigquery"
        create = "gcloud kms keys create none --keyring=convergence --location=us --purpose=encryption"
        assert ill["kms: key"].verdict == "FAIL" and ill["kms: key"].fix.startswith(create)

        async with grpc.aio.insecure_channel(address) as channel:
            transport = KeyManagementServiceGrpcAsyncIOTransport(channel=channel)
            client = KeyManagementServiceAsyncClient(transport=transport)
            await client.destroy_crypto_key_version({"name": f"{KEY}/cryptoKeyVersions/1"})
        elsewhere = {**store, "CONVERGENCE_BIGQUERY_LOCATION": "EU", "GCP_PROJECT_ID": "nobodys-project"}
        ill = await examined(**elsewhere, CONVERGENCE_KMS_ENDPOINT=address)
        assert "is not there" in ill["bigquery: dataset tenants"].found
        assert ill["kms: key"].verdict == "FAIL" and "DESTROY" in ill["kms: key"].found
    elsewhere = {**store, "CONVERGENCE_BIGQUERY_LOCATION": "EU"}
    ill = await examined(**elsewhere, CONVERGENCE_KMS_ENDPOINT=address)
    assert ill["bigquery: location"].fix == "CONVERGENCE_BIGQUERY_LOCATION=US"
    assert ill["kms: key"].verdict == "FAIL" and "no answer" in ill["kms: key"].found
