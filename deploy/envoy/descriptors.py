"""Writes the descriptor set Envoy transcodes by: the public contract out of the committed generated modules.

``google.rpc.Status`` and its details are part of it, or Envoy could not print the details of an error as JSON. The
files come from the same modules the services run with, so no protoc is needed where the stack starts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from convergence.credential.v1 import credential_pb2
from convergence.pipeline_executor.v1 import pipeline_executor_pb2
from convergence.scheduler.v1 import scheduler_pb2
from convergence.tenant.v1 import tenant_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from google.rpc import error_details_pb2, status_pb2

CONTRACTS: tuple[FileDescriptor, ...] = (
    tenant_pb2.DESCRIPTOR,
    credential_pb2.DESCRIPTOR,
    pipeline_executor_pb2.DESCRIPTOR,
    scheduler_pb2.DESCRIPTOR,
)
PUBLIC_SERVICES = (
    "convergence.tenant.v1.TenantService",
    "convergence.credential.v1.CredentialService",
    "convergence.pipeline_executor.v1.PipelineService",
    "convergence.scheduler.v1.ScheduleService",
)


def descriptor_set() -> descriptor_pb2.FileDescriptorSet:
    """Returns the contracts and all they import, each file after those it needs."""
    found: dict[str, FileDescriptor] = {}

    def visit(file: FileDescriptor) -> None:
        if file.name not in found:
            for needed in file.dependencies:
                visit(needed)
            found[file.name] = file

    for file in (*CONTRACTS, status_pb2.DESCRIPTOR, error_details_pb2.DESCRIPTOR):
        visit(file)
    files = [descriptor_pb2.FileDescriptorProto.FromString(file.serialized_pb) for file in found.values()]
    return descriptor_pb2.FileDescriptorSet(file=files)


def write(path: Path) -> None:
    """Writes the descriptor set, replacing the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(descriptor_set().SerializeToString(deterministic=True))
    temporary.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="write the descriptor set of the gateway")
    parser.add_argument("path", type=Path)
    write(parser.parse_args().path)
