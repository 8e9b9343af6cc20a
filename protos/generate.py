"""Regenerates ``protos/gen`` from the ``.proto`` files: messages, typed stubs, gRPC stubs (``make proto``).

Runs offline on what the lock file installs: protoc from grpcio-tools, google's common protos, and the descriptor of
``buf/validate/validate.proto`` that protovalidate carries (it ships no ``.proto``).
"""

from __future__ import annotations

import argparse
import importlib.resources
import shutil
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb

PROTOS = Path(__file__).resolve().parent
VALIDATE = "buf/validate/validate.proto"


def sources() -> list[str]:
    """Every contract file, as protoc names it."""
    return sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "convergence").rglob("*.proto"))


def _validate_descriptors(folder: Path) -> Path:
    """Writes protovalidate's own rules, and the google files they import, as a descriptor set protoc can read."""
    rules = descriptor_pb2.FileDescriptorProto.FromString(bytes(validate_pb.desc().proto.to_binary()))
    rules.ClearField("source_code_info")
    path = folder / "validate.binpb"
    from google.protobuf import duration_pb2, field_mask_pb2, timestamp_pb2  # imported here: only protoc needs them

    files = [
        descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        for module in (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2)
    ]
    path.write_bytes(descriptor_pb2.FileDescriptorSet(file=[*files, rules]).SerializeToString())
    return path


def run_protoc(*arguments: str) -> None:
    """Runs protoc over our import path; raises ``SystemExit`` if it fails."""
    import google  # a namespace package: its paths hold google/api and google/rpc

    include = [str(Path(path).parent) for path in google.__path__]
    include.append(str(importlib.resources.files("grpc_tools") / "_proto"))
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "protoc",
            f"--proto_path={PROTOS}",
            *(f"--proto_path={path}" for path in include),
            f"--descriptor_set_in={_validate_descriptors(Path(folder))}",
            *arguments,
        ]
        if code := protoc.main(command):
            sys.exit(code)


def generate(target: Path) -> None:
    """Writes the Python modules of all contracts into ``target``."""
    target.mkdir(parents=True, exist_ok=True)
    # The plugins lie beside this interpreter, which need not be on PATH.
    plugins = [
        f"--plugin={name}={Path(sys.executable).parent / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    ]
    run_protoc(
        *plugins,
        f"--python_out={target}",
        f"--mypy_out=quiet:{target}",
        *sources(),
        VALIDATE,
    )
    run_protoc(
        *plugins,
        f"--grpc_python_out={target}",
        f"--mypy_grpc_out=quiet,only_async:{target}",
        *(name for name in sources() if "/access/" not in name),
    )


def image(path: Path) -> None:
    """Writes a descriptor set with comments: what buf lints and compares."""
    path.parent.mkdir(parents=True, exist_ok=True)
    run_protoc("--include_imports", "--include_source_info", f"--descriptor_set_out={path}", *sources())


def main() -> None:
    """Entry point of ``make proto``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PROTOS / "gen", help="folder to write the modules to")
    parser.add_argument("--image", type=Path, help="write a descriptor set with comments here instead")
    options = parser.parse_args()
    if options.image:
        image(options.image)
        print(f"wrote {options.image}")
        return
    if options.out == PROTOS / "gen":
        shutil.rmtree(options.out, ignore_errors=True)
    generate(options.out)
    print(f"generated {len(sources())} contracts into {options.out}")


if __name__ == "__main__":
    main()
