"""The providers that can be read, and each one's data sets: this table is the only place that knows them all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from libs.errors import FieldViolation, InvalidArgument
from services.pipeline_executor.providers.aws import AwsExtractor
from services.pipeline_executor.providers.aws_findings import ConfigExtractor, SecurityHubExtractor
from services.pipeline_executor.providers.azure import AzureExtractor
from services.pipeline_executor.providers.azure_findings import DefenderExtractor, PolicyExtractor
from services.pipeline_executor.providers.extraction import Extractor
from services.pipeline_executor.providers.gcp import GcpExtractor
from services.pipeline_executor.providers.gcp_findings import FindingsExtractor
from services.pipeline_executor.providers.prowler import AwsSource, AzureSource, GcpSource, ProwlerExtractor
from services.pipeline_executor.providers.source import check

EXTRACTORS: Mapping[str, Mapping[str, Extractor]] = {
    "aws": {
        "cost_and_usage_report": AwsExtractor(),
        "focus_export": AwsExtractor(),
        "securityhub_findings": SecurityHubExtractor(),
        "config_rules": ConfigExtractor(),
        "prowler": ProwlerExtractor(AwsSource),
    },
    "azure": {
        "cost_export": AzureExtractor(),
        "focus_export": AzureExtractor(),
        "policy_states": PolicyExtractor(),
        "defender_assessments": DefenderExtractor(),
        "prowler": ProwlerExtractor(AzureSource),
    },
    "gcp": {
        "billing_export": GcpExtractor(),
        "focus_export": GcpExtractor(),
        "scc_findings": FindingsExtractor(),
        "prowler": ProwlerExtractor(GcpSource),
    },
}


def check_source(provider: str, datasets: Collection[str], source: Mapping[str, Any]) -> Mapping[str, Any]:
    """What these data sets of a provider take of a source, its fields checked (``source.check``)."""
    extractors = EXTRACTORS.get(provider.lower())
    if extractors is None:
        violation = FieldViolation("provider", f"must be one of {', '.join(sorted(EXTRACTORS))}.")
        raise InvalidArgument("PROVIDER_UNKNOWN", "This provider cannot be read.", field_violations=[violation])
    return check(
        provider.lower(),
        [extractors[name].source for name in datasets],
        [extractor.source for extractor in extractors.values()],
        source,
    )
