"""Each compliance API as a tenant sees it: a stand-in that lists findings, the credential and the source for it, and
findings of every kind that it has, in the provider's own form, with what must become of them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.pipeline_executor.providers import paging
from services.pipeline_executor.providers.extraction import Scope
from tests.support import cloud_apis
from tests.support.billing import service_account_key
from tests.support.certificates import Authority
from tests.support.cloud_apis import Item, Listing
from tests.support.compliance import Planted

PROVIDERS = {
    "securityhub_findings": "aws",
    "config_rules": "aws",
    "policy_states": "azure",
    "defender_assessments": "azure",
    "scc_findings": "gcp",
}
DATASETS = tuple(PROVIDERS)
ACCOUNT = "123456789012"
SUBSCRIPTION = "0b06d9ea-afe6-4779-bd59-30e5c2d9d13f"
ROLE = {"role_arn": f"arn:aws:iam::{ACCOUNT}:role/convergence", "external_id": "cvg-0001"}
KEY = {"access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": "s" * 40}
PRINCIPAL = {
    "client_id": "11111111-2222-3333-4444-555555555555",
    "client_secret": "a-good-secret",
    "azure_tenant_id": "99999999-8888-7777-6666-555555555555",
}
_DEFINITION = "404c3081-a854-4457-ae30-26a93ef643f9"
RULE: Item = {
    "ConfigRule": {
        "ConfigRuleName": "encrypted-volumes",
        "ConfigRuleArn": f"arn:aws:config:eu-west-1:{ACCOUNT}:config-rule/config-rule-a1b2c3",
        "ConfigRuleId": "config-rule-a1b2c3",
        "Description": "Checks if attached EBS volumes are encrypted.",
        "Source": {"Owner": "AWS", "SourceIdentifier": "ENCRYPTED_VOLUMES"},
        "ConfigRuleState": "ACTIVE",
    },
    "Compliance": {"ComplianceType": "NON_COMPLIANT", "ComplianceContributorCount": {"CappedCount": 1}},
}
KIND: Item = {
    "id": "/providers/Microsoft.Security/assessmentMetadata/4da35fc9-c9e7-4960-aec9-797fe7d9051d",
    "name": "4da35fc9-c9e7-4960-aec9-797fe7d9051d",
    "properties": {
        "displayName": "Secure transfer to storage accounts should be enabled",
        "severity": "High",
        "description": "Secure transfer accepts requests over secure connections only.",
        "remediationDescription": "Turn on secure transfer.",
        "categories": ["Data"],
    },
}


@dataclass
class Served:
    """One API that lists, under ``scope``, what is put there."""

    dataset: str
    provider: str
    scope: str
    secret: Mapping[str, Any] = field(repr=False)
    source: Mapping[str, Any]
    listing: Listing

    @property
    def pipeline(self) -> str:
        """The template that reads it."""
        return f"{self.provider}/compliance/{self.dataset}"

    def fill(self, items: Sequence[Item], size: int = 3) -> None:
        """Lists the items, so many on a page."""
        pages = [items[start : start + size] for start in range(0, len(items), size)]
        self.listing.pages[self.scope] = list(pages)

    def many(self, count: int) -> list[Item]:
        """So many findings, of all statuses."""
        return [_MAKERS[self.dataset](number) for number in range(count)]

    def asked(self) -> list[int]:
        """The pages of its scope that were asked for, in order."""
        return [page for scope, page in self.listing.asked if scope == self.scope]


@contextlib.contextmanager
def serving(dataset: str, folder: Path) -> Iterator[Served]:
    """A stand-in of the API that has the data set."""
    listing = Listing()
    match dataset:
        case "securityhub_findings":
            with cloud_apis.security_hub(listing) as address:
                source = {"regions": ["eu-west-1"], "endpoint_url": address}
                yield Served(dataset, "aws", "eu-west-1", ROLE, source, listing)
        case "config_rules":
            listing.pages["rules"] = [[RULE]]
            with cloud_apis.aws_config(listing) as address:
                source = {"region": "eu-west-1", "endpoint_url": address}
                yield Served(dataset, "aws", "encrypted-volumes", KEY, source, listing)
        case "policy_states" | "defender_assessments":
            listing.pages["metadata"] = [[{"name": "other"}], [KIND]]
            authority = Authority(folder / "tls")
            with pytest.MonkeyPatch.context() as patch, cloud_apis.resource_manager(listing, authority) as address:
                patch.setenv("REQUESTS_CA_BUNDLE", str(authority.certificate))
                source = {"subscription_ids": [SUBSCRIPTION.upper()], "endpoint_url": address}
                yield Served(dataset, "azure", SUBSCRIPTION, PRINCIPAL, source, listing)
        case "scc_findings":
            with cloud_apis.security_center(listing) as address:
                source = {"parent": "organizations/123", "endpoint_url": address}
                yield Served(dataset, "gcp", "organizations/123", service_account_key("acme-prod"), source, listing)


# ------------------------------------------------------------------------------------------------- findings


def asff(number: int, status: str = "", **changes: Any) -> Item:
    """A finding of Security Hub."""
    account, region = ACCOUNT, "eu-west-1"
    status = status or ("PASSED", "FAILED", "WARNING", "NOT_AVAILABLE")[number % 4]
    made: dict[str, Any] = {
        "SchemaVersion": "2018-10-08",
        "Id": f"arn:aws:securityhub:{region}:{account}:security-control/S3.8/finding/{number:08d}",
        "ProductArn": f"arn:aws:securityhub:{region}::product/aws/securityhub",
        "ProductName": "Security Hub",
        "CompanyName": "AWS",
        "Region": region,
        "GeneratorId": "security-control/S3.8",
        "AwsAccountId": account,
        "AwsAccountName": "production",
        "Types": ["Software and Configuration Checks/Industry and Regulatory Standards"],
        "FirstObservedAt": "2025-11-01T03:00:00.000Z",
        "LastObservedAt": "2025-11-17T03:04:05.678Z",
        "CreatedAt": "2025-11-01T03:00:00.000Z",
        "UpdatedAt": "2025-11-17T03:05:00.000Z",
        "Severity": {"Label": "HIGH", "Normalized": 70, "Original": "HIGH"},
        "Title": "S3 general purpose buckets should block public access",
        "Description": "This control checks whether the bucket blocks public access.",
        "Remediation": {
            "Recommendation": {"Text": "See the documentation.", "Url": "https://docs.aws.amazon.com/console/S3.8"}
        },
        "Resources": [{"Type": "AwsS3Bucket", "Id": f"arn:aws:s3:::bucket-{number}", "Region": region}],
        "Compliance": {
            "Status": status,
            "SecurityControlId": "S3.8",
            "RelatedRequirements": ["NIST.800-53.r5 AC-3(7)", "PCI DSS v4.0.1/1.4.4"],
            "AssociatedStandards": [
                {"StandardsId": "standards/aws-foundational-security-best-practices/v/1.0.0"},
                {"StandardsId": "standards/pci-dss/v/4.0.1"},
            ],
        },
        "WorkflowState": "NEW",
        "Workflow": {"Status": "NEW"},
        "RecordState": "ACTIVE",
        # What no client library knows.
        "NewHere": {"π": 1.1, "none": None},
    }
    return {**made, **changes}


def evaluation(number: int, status: str = "", **changes: Any) -> Item:
    """What a rule of AWS Config makes of a resource."""
    resource = {"ResourceType": "AWS::EC2::Volume", "ResourceId": f"vol-{number:08x}", "EvaluationMode": "DETECTIVE"}
    return {
        "EvaluationResultIdentifier": {
            "EvaluationResultQualifier": {"ConfigRuleName": "encrypted-volumes", **resource},
            "OrderingTimestamp": 1763337600.123,
        },
        "ComplianceType": status or ("COMPLIANT", "NON_COMPLIANT", "NOT_APPLICABLE")[number % 3],
        "ResultRecordedTime": 1763348645.5,
        "ConfigRuleInvokedTime": 1763348644.9,
        **changes,
    }


def policy_state(number: int, status: str = "", **changes: Any) -> Item:
    """How a resource stands to a policy."""
    group = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/Data"
    return {
        "@odata.id": None,
        "timestamp": "2025-11-17T04:00:00.1234567Z",
        "resourceId": f"{group}/providers/Microsoft.Storage/storageAccounts/Acme{number}",
        "policyAssignmentId": f"/subscriptions/{SUBSCRIPTION}/providers/microsoft.authorization/policyassignments/cis",
        "policyDefinitionId": f"/providers/microsoft.authorization/policydefinitions/{_DEFINITION}",
        "effectiveParameters": "",
        "isCompliant": status == "Compliant",
        "subscriptionId": SUBSCRIPTION,
        "resourceType": "Microsoft.Storage/storageAccounts",
        "resourceLocation": "westeurope",
        "resourceGroup": "Data",
        "policyAssignmentName": "cis",
        "policyDefinitionName": _DEFINITION,
        "policyDefinitionAction": "audit",
        "policyDefinitionCategory": "storage",
        "policySetDefinitionId": "/providers/microsoft.authorization/policysetdefinitions/cis_azure_2.0.0",
        "policySetDefinitionName": "CIS_Azure_2.0.0",
        "policyDefinitionReferenceId": "secureTransferToStorageAccountMonitoring",
        "policyDefinitionGroupNames": ["CIS_Azure_2.0.0_3.1"],
        "complianceState": status
        or ("Compliant", "NonCompliant", "Exempt", "Conflict", "Unknown", "Error")[number % 6],
        "complianceReasonCode": "",
        "newHere": True,
        **changes,
    }


def assessment(number: int, code: str = "", **properties: Any) -> Item:
    """What Defender for Cloud says of a resource."""
    resource = (
        f"/subscriptions/{SUBSCRIPTION}/resourceGroups/Data/providers/Microsoft.Storage/storageAccounts/a{number}"
    )
    return {
        "type": "Microsoft.Security/assessments",
        "id": f"{resource}/providers/Microsoft.Security/assessments/{KIND['name']}",
        "name": KIND["name"],
        "properties": {
            "resourceDetails": {"Source": "Azure", "Id": resource},
            "displayName": KIND["properties"]["displayName"],
            "status": {
                "code": code or ("Healthy", "Unhealthy", "NotApplicable")[number % 3],
                "firstEvaluationDate": "2025-11-01T03:00:00Z",
                "statusChangeDate": "2025-11-02T03:00:00Z",
            },
            "additionalData": {"subAssessmentsLink": "…"},
            **properties,
        },
    }


def scc(number: int, status: str = "", **changes: Any) -> Item:
    """A finding of Security Command Center, with its resource, in the JSON of its API."""
    name = f"projects/4711/sources/5/locations/global/findings/{number:06d}"
    resource = f"//storage.googleapis.com/acme-{number}"
    finding: dict[str, Any] = {
        "name": f"organizations/123/sources/5/locations/global/findings/{number:06d}",
        "canonicalName": name,
        "parent": "organizations/123/sources/5/locations/global",
        "resourceName": resource,
        "state": status or ("ACTIVE", "INACTIVE")[number % 2],
        "category": "PUBLIC_BUCKET_ACL",
        "externalUri": "https://console.cloud.google.com/storage/browser",
        "eventTime": "2025-11-17T04:00:00.123456Z",
        "createTime": "2025-11-01T04:00:00Z",
        "severity": "HIGH",
        "mute": "UNMUTED",
        "findingClass": "MISCONFIGURATION",
        "description": "Storage buckets should not be publicly accessible.",
        "nextSteps": "Remove allUsers.",
        "compliances": [
            {"standard": "cis", "version": "1.2", "ids": ["5.1"]},
            {"standard": "pci", "version": "3.2.1", "ids": ["1.2.1", "7.1"]},
        ],
        "parentDisplayName": "Security Health Analytics",
    }
    return {
        "finding": {**finding, **changes},
        "resource": {
            "name": resource,
            "displayName": f"acme-{number}",
            "type": "google.cloud.storage.Bucket",
            "cloudProvider": "GOOGLE_CLOUD_PLATFORM",
            "service": "storage.googleapis.com",
            "location": "europe-west1",
            "gcpMetadata": {
                "project": "//cloudresourcemanager.googleapis.com/projects/4711",
                "projectDisplayName": "acme-prod",
                "organization": "organizations/123",
            },
        },
    }


_MAKERS: Mapping[str, Callable[[int], Item]] = {
    "securityhub_findings": asff,
    "config_rules": evaluation,
    "policy_states": policy_state,
    "defender_assessments": assessment,
    "scc_findings": scc,
}


@dataclass(frozen=True)
class Golden:
    """A record, and the columns that must become of it."""

    item: Item
    becomes: Mapping[str, Any]


_S3 = {
    "check_uid": "S3.8", "account_uid": ACCOUNT, "region": "eu-west-1", "severity": "HIGH", "service": "s3",
    "standards": ["AWS Foundational Security Best Practices v1.0.0", "NIST.800-53.r5", "PCI DSS v4.0.1"],
    "requirements": ["NIST.800-53.r5/AC-3(7)", "PCI DSS v4.0.1/1.4.4"], "cloud_partition": "aws", "variant": None,
    "observed_at": "2025-11-17 03:04:05.678",
}  # fmt: skip
_VOLUME = {
    "check_uid": "encrypted-volumes", "account_uid": ACCOUNT, "region": "eu-west-1", "severity": "UNKNOWN",
    "service": "ec2", "standards": [], "requirements": [], "variant": "AWS::EC2::Volume",
    "controls": ["ENCRYPTED_VOLUMES", "encrypted-volumes"], "observed_at": "2025-11-17 03:04:05.5",
}  # fmt: skip
_POLICY = {
    "check_uid": _DEFINITION, "account_uid": SUBSCRIPTION, "region": "westeurope",
    "severity": "UNKNOWN", "service": "Microsoft.Storage", "standards": ["CIS_Azure_2.0.0"],
    "requirements": ["CIS_Azure_2.0.0/CIS_Azure_2.0.0_3.1"], "observed_at": "2025-11-17 04:00:00.123456",
    "title": "secureTransferToStorageAccountMonitoring",
}  # fmt: skip
_ASSESSED = {
    "check_uid": KIND["name"], "account_uid": SUBSCRIPTION, "region": None, "severity": "HIGH",
    "service": "Microsoft.Storage", "resource_type": "Microsoft.Storage/storageAccounts", "standards": [],
    "remediation": "Turn on secure transfer.",
}  # fmt: skip
_BUCKET = {
    "check_uid": "PUBLIC_BUCKET_ACL", "account_uid": "4711", "account_name": "acme-prod", "region": "europe-west1",
    "severity": "HIGH", "service": "storage", "standards": ["cis-1.2", "pci-3.2.1"],
    "requirements": ["cis-1.2/5.1", "pci-3.2.1/1.2.1", "pci-3.2.1/7.1"], "organization_uid": "123",
    "observed_at": "2025-11-17 04:00:00.123456",
}  # fmt: skip


def _stands(status: str, state: str, suppression: str | None = None) -> Mapping[str, Any]:
    return {"status": status, "state": state, "suppression": suppression}


def _bare(result: Item) -> Item:
    """The API's JSON leaves out what is empty or unspecified."""
    left = {name: value for name, value in result["finding"].items() if name not in ("severity", "compliances")}
    return {**result, "finding": left}


_SUPPRESSED: dict[str, Any] = {"Workflow": {"Status": "SUPPRESSED"}}
_PER_STANDARD = "arn:aws:securityhub:::ruleset/cis-aws-foundations-benchmark/v/1.2.0/rule/2.1"
_CIS = {"Status": "FAILED", "AssociatedStandards": [{"StandardsId": "ruleset/cis-aws-foundations-benchmark/v/1.2.0"}]}
_EXEMPT: dict[str, Any] = {"status": {"code": "NotApplicable", "cause": "Exempt", "description": "Waived until May"}}

GOLDEN: Mapping[str, Sequence[Golden]] = {
    "securityhub_findings": [
        Golden(asff(1, "PASSED"), {**_S3, **_stands("PASS", "PASSED"), "resource_uid": "arn:aws:s3:::bucket-1"}),
        Golden(asff(2, "FAILED"), {**_S3, **_stands("FAIL", "OPEN"), "resource_name": "bucket-2"}),
        Golden(asff(3, "WARNING"), {**_S3, **_stands("WARNING", "UNDECIDED")}),
        Golden(asff(4, "NOT_AVAILABLE"), {**_S3, **_stands("UNKNOWN", "UNDECIDED")}),
        Golden(asff(5, "FAILED", **_SUPPRESSED), {**_S3, **_stands("FAIL", "MUTED", "MUTED")}),
        Golden(
            asff(6, GeneratorId=_PER_STANDARD, Compliance=_CIS, Severity={"Label": "LOW"}),
            {
                **_stands("FAIL", "OPEN"), "check_uid": _PER_STANDARD, "severity": "LOW", "variant": None,
                "standards": ["CIS AWS Foundations Benchmark v1.2.0"], "requirements": [], "service": None,
            },
        ),
    ],
    "config_rules": [
        Golden(evaluation(1, "COMPLIANT"), {**_VOLUME, **_stands("PASS", "PASSED"), "resource_uid": "vol-00000001"}),
        Golden(
            evaluation(2, "NON_COMPLIANT", Annotation="It is not encrypted."),
            {**_VOLUME, **_stands("FAIL", "OPEN"), "status_detail": "It is not encrypted."},
        ),
        Golden(evaluation(3, "NOT_APPLICABLE"), {**_VOLUME, **_stands("UNKNOWN", "UNDECIDED")}),
        Golden(evaluation(4, "INSUFFICIENT_DATA"), {**_VOLUME, **_stands("UNKNOWN", "UNDECIDED")}),
    ],
    "policy_states": [
        Golden(policy_state(1, "Compliant"), {**_POLICY, **_stands("PASS", "PASSED")}),
        Golden(policy_state(2, "NonCompliant"), {**_POLICY, **_stands("FAIL", "OPEN"), "resource_name": "Acme2"}),
        Golden(policy_state(3, "Exempt"), {**_POLICY, **_stands("WARNING", "EXEMPT", "EXEMPT")}),
        Golden(policy_state(4, "Conflict"), {**_POLICY, **_stands("WARNING", "UNDECIDED")}),
        Golden(policy_state(5, "Unknown"), {**_POLICY, **_stands("UNKNOWN", "UNDECIDED")}),
        Golden(policy_state(6, "Error"), {**_POLICY, **_stands("UNKNOWN", "UNDECIDED")}),
        # The same resource and definition under another assignment, outside of any initiative.
        Golden(
            policy_state(
                2, "Compliant", policyAssignmentId="/other", policySetDefinitionId=None, policySetDefinitionName=None,
                policyDefinitionReferenceId=None, policyDefinitionGroupNames=None, resourceLocation="",
            ),
            {
                **_stands("PASS", "PASSED"), "variant": "/other|", "standards": [], "requirements": [], "region": None,
                "title": _DEFINITION,
            },
        ),
    ],
    "defender_assessments": [
        Golden(assessment(1, "Healthy"), {**_ASSESSED, **_stands("PASS", "PASSED"), "resource_name": "a1"}),
        Golden(assessment(2, "Unhealthy"), {**_ASSESSED, **_stands("FAIL", "OPEN")}),
        Golden(assessment(3, "NotApplicable"), {**_ASSESSED, **_stands("UNKNOWN", "UNDECIDED")}),
        Golden(
            assessment(4, **_EXEMPT),
            {**_ASSESSED, **_stands("UNKNOWN", "EXEMPT", "EXEMPT"), "status_detail": "Waived until May"},
        ),
        Golden(
            assessment(5, "Unhealthy", resourceDetails={"Source": "OnPremise"}),
            {**_ASSESSED, **_stands("FAIL", "OPEN"), "resource_name": "a5"},
        ),
    ],
    "scc_findings": [
        Golden(scc(1, "ACTIVE"), {**_BUCKET, **_stands("FAIL", "OPEN"), "resource_name": "acme-1"}),
        Golden(scc(2, "INACTIVE"), {**_BUCKET, **_stands("PASS", "PASSED")}),
        Golden(scc(3, "ACTIVE", mute="MUTED"), {**_BUCKET, **_stands("FAIL", "MUTED", "MUTED")}),
        Golden(
            _bare(scc(4, "ACTIVE")),
            {**_stands("FAIL", "OPEN"), "severity": "UNKNOWN", "standards": [], "requirements": []},
        ),
        # Another finding of the same category and resource.
        Golden(scc(5, "ACTIVE", resourceName="//storage.googleapis.com/acme-1"), _stands("FAIL", "OPEN")),
    ],
}  # fmt: skip


def scan(dataset: str, items: Sequence[Item]) -> Planted:
    """What the reader of an API leaves of findings, for runs that need no wire."""
    rows, places = [], set()
    for item in items:
        match dataset:
            case "securityhub_findings":
                scope, place, status, body = "eu-west-1", (ACCOUNT, "eu-west-1"), item["Compliance"]["Status"], item
            case "config_rules":
                scope, place, status = "eu-west-1", (ACCOUNT, "eu-west-1"), item["ComplianceType"]
                body = {**RULE, "EvaluationResult": item}
            case "policy_states":
                scope, place, status, body = SUBSCRIPTION, (SUBSCRIPTION, ""), item["complianceState"], item
            case "defender_assessments":
                scope, place, status = SUBSCRIPTION, (SUBSCRIPTION, ""), item["properties"]["status"]["code"]
                body = {"assessment": item, "metadata": KIND}
            case _:
                scope, place, status, body = "organizations/123", ("4711", ""), item["finding"]["state"], item
        rows.append({"scope": scope, "status": status, "read_at": datetime.now(UTC), "record": json.dumps(body)})
        places.add(place)
    statuses = [str(row["status"]) for row in rows]
    return Planted(rows, statuses, [Scope(account, region) for account, region in sorted(places)], paging.SCHEMA)
