"""The local object stores: reads of S3 and Azure Blob storage over a folder, and STS's "who am I", in their protocols.

``python -m deploy.local.objects --listen H:P --folder D --keys FILE`` runs until SIGTERM; ``make up`` starts it, so
that a stack has customers on AWS and Azure without either cloud. ``D/s3/<bucket>/…`` and
``D/blob/<account>/<container>/…`` are plain files: put a delivery there and run a pipeline. Requests are believed by
their signature (Signature Version 4, shared access signature) and by nothing else. It only reads, and lists a whole
folder in one page.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit
from xml.sax.saxutils import escape

ACCOUNT_ID = "123456789012"
_SAS_VERSION = "2022-11-02"
_CHUNK = 1 << 20
_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True)
class Keys:
    """The one AWS key and the one storage account's key that are accepted."""

    access_key_id: str
    secret_access_key: str
    account: str
    account_key: str

    def sas(self, expires: datetime) -> str:
        """A signature to read and list the whole account's blobs until then."""
        fields = {"sv": _SAS_VERSION, "sp": "rl", "ss": "b", "srt": "sco", "se": f"{expires:%Y-%m-%dT%H:%M:%SZ}"}
        return urlencode({**fields, "sig": self.sas_signature(fields)})

    def sas_signature(self, fields: Mapping[str, str]) -> str:
        """What the account's key makes of the fields of a signature."""
        names = ("sp", "ss", "srt", "st", "se", "sip", "spr", "sv")
        signed = [self.account, *(fields.get(name, "") for name in names), "", ""]
        digest = hmac.new(base64.b64decode(self.account_key), "\n".join(signed).encode(), hashlib.sha256).digest()
        return base64.b64encode(digest).decode()

    def aws_signature(self, scope: str, to_sign: str) -> str:
        """What the AWS key makes of a request; ``scope`` is day/region/service/aws4_request."""
        key = f"AWS4{self.secret_access_key}".encode()
        for part in scope.split("/"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        return hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()


class Refused(Exception):
    """An answer other than the object: status, the protocol's code, and what it says."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Server(ThreadingHTTPServer):
    """Serves the folder."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], folder: Path, keys: Keys) -> None:
        super().__init__(address, _Handler)
        self.folder, self.keys = folder.resolve(), keys


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line of the log would hold a signature."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        try:
            if "sig" in query:
                self._blob(url.path, query)
            else:
                self._check_aws(url.path, url.query, body)
                self._s3(url.path, query | dict(parse_qsl(body.decode())))
        except Refused as refused:
            self._error(refused)
        except OSError:
            self.close_connection = True  # the client has gone, or a file has

    # --- AWS ---------------------------------------------------------------------------------------------------------

    def _s3(self, path: str, query: Mapping[str, str]) -> None:
        if query.get("Action") == "GetCallerIdentity":
            arn = f"arn:aws:iam::{ACCOUNT_ID}:user/sample"
            self._xml(
                f"<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>{arn}</Arn><UserId>SAMPLE</UserId>"
                f"<Account>{ACCOUNT_ID}</Account></GetCallerIdentityResult></GetCallerIdentityResponse>"
            )
            return
        bucket, _, key = unquote(path).lstrip("/").partition("/")
        home = self._home("s3", bucket)
        if home is None:
            raise Refused(404, "NoSuchBucket", "The specified bucket does not exist")
        if key:
            self._object(home, key, "NoSuchKey")
            return
        items = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>{_iso(file)}</LastModified>"
            f"<ETag>&quot;{_etag(file)}&quot;</ETag><Size>{file.stat().st_size}</Size></Contents>"
            for name, file in _files(home, query.get("prefix", ""))
        )
        self._xml(
            f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{escape(bucket)}</Name>'
            f"<IsTruncated>false</IsTruncated>{items}</ListBucketResult>"
        )

    def _check_aws(self, path: str, query: str, body: bytes) -> None:
        """Signature Version 4: the canonical request is made anew and must have the signature that came with it."""
        algorithm, _, rest = self.headers.get("Authorization", "").partition(" ")
        given = dict(item.strip().partition("=")[::2] for item in rest.split(","))
        access_key_id, _, scope = given.get("Credential", "").partition("/")
        if algorithm != _ALGORITHM or not hmac.compare_digest(access_key_id, self.server.keys.access_key_id):
            raise Refused(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist.")
        names = given.get("SignedHeaders", "")
        headers = "".join(f"{name}:{' '.join(self.headers.get(name, '').split())}\n" for name in names.split(";"))
        pairs = sorted((quote(k, safe="-_.~"), quote(v, safe="-_.~")) for k, v in parse_qsl(query, True))
        payload = self.headers.get("x-amz-content-sha256") or hashlib.sha256(body).hexdigest()
        request = [self.command, path or "/", "&".join(f"{k}={v}" for k, v in pairs), headers, names, payload]
        digest = hashlib.sha256("\n".join(request).encode()).hexdigest()
        to_sign = "\n".join([_ALGORITHM, self.headers.get("x-amz-date", ""), scope, digest])
        signature = self.server.keys.aws_signature(scope, to_sign)
        if not hmac.compare_digest(signature, given.get("Signature", "")):
            raise Refused(403, "SignatureDoesNotMatch", "The request signature we calculated does not match.")

    # --- Azure -------------------------------------------------------------------------------------------------------

    def _blob(self, path: str, query: Mapping[str, str]) -> None:
        keys = self.server.keys
        account, _, rest = unquote(path).lstrip("/").partition("/")
        container, _, name = rest.partition("/")
        ends = query.get("se", "")
        if (
            account != keys.account
            or not hmac.compare_digest(query["sig"], keys.sas_signature(query))
            or ends < f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        ):
            raise Refused(403, "AuthenticationFailed", "The signature is not valid.")
        home = self._home("blob", f"{account}/{container}")
        if home is None or not container:
            raise Refused(404, "ContainerNotFound", "The specified container does not exist.")
        if name:
            self._object(home, name, "BlobNotFound")
            return
        items = "".join(
            f"<Blob><Name>{escape(found)}</Name><Properties><Last-Modified>{_rfc(file)}</Last-Modified>"
            f"<Etag>{_etag(file)}</Etag><Content-Length>{file.stat().st_size}</Content-Length>"
            "<Content-Type>application/octet-stream</Content-Type><BlobType>BlockBlob</BlobType></Properties></Blob>"
            for found, file in _files(home, query.get("prefix", ""))
        )
        self._xml(
            f'<EnumerationResults ContainerName="{escape(container)}"><Blobs>{items}</Blobs><NextMarker/>'
            "</EnumerationResults>"
        )

    # --- both --------------------------------------------------------------------------------------------------------

    def _home(self, kind: str, name: str) -> Path | None:
        home = (self.server.folder / kind / name).resolve()
        inside = home.is_relative_to(self.server.folder / kind)
        return home if inside and home.is_dir() and home != self.server.folder / kind else None

    def _object(self, home: Path, name: str, missing: str) -> None:
        file = (home / name).resolve()
        if not file.is_relative_to(home) or not file.is_file():
            raise Refused(404, missing, "The specified object does not exist.")
        wanted = self.headers.get("If-Match", "").strip('"')
        if wanted and wanted != _etag(file):
            raise Refused(412, "PreconditionFailed", "The object is another one by now.")
        with file.open("rb") as content:
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(file.stat().st_size))
            self.send_header("Last-Modified", _rfc(file))
            self.send_header("ETag", f'"{_etag(file)}"')
            self.send_header("x-ms-blob-type", "BlockBlob")
            self.end_headers()
            while self.command != "HEAD" and (chunk := content.read(_CHUNK)):
                self.wfile.write(chunk)

    def _error(self, refused: Refused) -> None:
        text = f"<Error><Code>{refused.code}</Code><Message>{refused}</Message></Error>"
        self._xml(text, refused.status, {"x-ms-error-code": refused.code})

    def _xml(self, text: str, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        body = b'<?xml version="1.0" encoding="utf-8"?>' + text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _files(home: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    for file in sorted(home.rglob("*")):
        name = file.relative_to(home).as_posix()
        if file.is_file() and name.startswith(prefix):
            yield name, file


def _etag(file: Path) -> str:
    found = file.stat()
    return f"0x{found.st_mtime_ns:X}{found.st_size:08X}"


def _modified(file: Path) -> datetime:
    return datetime.fromtimestamp(file.stat().st_mtime, UTC)


def _iso(file: Path) -> str:
    return f"{_modified(file):%Y-%m-%dT%H:%M:%S.000Z}"


def _rfc(file: Path) -> str:
    return format_datetime(_modified(file), usegmt=True)


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.objects", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--listen", required=True, help="host:port")
    parser.add_argument("--folder", type=Path, required=True, help="folder with s3/<bucket> and blob/<account>")
    parser.add_argument("--keys", type=Path, required=True, help="JSON file of the accepted keys")
    args = parser.parse_args()
    host, _, port = args.listen.rpartition(":")
    server = Server((host, int(port)), args.folder, Keys(**json.loads(args.keys.read_text())))

    def stop(signum: int, _: FrameType | None) -> None:
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(f"objects listening on {args.listen}", flush=True)
    server.serve_forever()
    sys.exit(0)


if __name__ == "__main__":
    main()
