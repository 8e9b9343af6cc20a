"""Mutual TLS between the platform's processes: what this one shows, whom it trusts, and who the other side is.

``libs.grpc_server``, ``libs.grpc_client`` and the tenant's authentication endpoint use it; without certificates in the
settings, as in the local stack, tokens take its place. A process is who its certificate's one SPIFFE id says,
``spiffe://<trust domain>/<peer>``; clients hold the server's DNS name against the peer they mean to call. Keep it so
that a renewed certificate is taken up without a restart: files are read again when they have changed.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

SPIFFE = "spiffe://"


class TlsInvalid(Exception):
    """The files do not make an identity; the text says which and why, and holds nothing of a key."""


@dataclass(frozen=True, slots=True)
class Tls:
    """The PEM files of one process's identity. Safe to share; nothing is read before it is asked for."""

    certificate: Path
    key: Path
    authority: Path
    trust_domain: str

    def check(self, peer: str, now: datetime | None = None) -> None:
        """Raises ``TlsInvalid`` unless the files are there, belong together, are valid ``now`` and are ``peer``'s."""
        chain, key, authority = (self._read(path) for path in (self.certificate, self.key, self.authority))
        try:
            own, _ = x509.load_pem_x509_certificates(chain)[0], x509.load_pem_x509_certificates(authority)
            public = load_pem_private_key(key, None).public_key()
        except (ValueError, TypeError) as exc:
            raise TlsInvalid(
                f"{self.certificate}, {self.key} and {self.authority} must be PEM, without a password"
            ) from exc
        if own.public_key() != public:
            raise TlsInvalid(f"{self.key} is not the key of {self.certificate}")
        now = now or datetime.now(UTC)
        if not own.not_valid_before_utc <= now <= own.not_valid_after_utc:
            raise TlsInvalid(
                f"{self.certificate} is valid from {own.not_valid_before_utc} to {own.not_valid_after_utc} only"
            )
        if (found := self._peer_in(_uris(own))) != peer:
            raise TlsInvalid(f"{self.certificate} must be of {self.uri(peer)}; it is of {found or 'nobody here'}")
        if server_name(peer) not in _dns_names(own):
            raise TlsInvalid(f"{self.certificate} must hold the DNS name {server_name(peer)}, by which clients know it")

    def uri(self, peer: str) -> str:
        """The SPIFFE id of a peer."""
        return f"{SPIFFE}{self.trust_domain}/{peer}"

    def version(self) -> tuple[int, ...]:
        """Changes when a file does."""
        return tuple(path.stat().st_mtime_ns for path in (self.certificate, self.key, self.authority))

    def peer_of(self, auth_context: Mapping[str, Iterable[bytes]]) -> str:
        """The peer that a gRPC call's connection has proved to be; empty for nobody of this trust domain."""
        # Set by gRPC only if the certificate has exactly one URI, and that is a SPIFFE id.
        return self._peer_in([value.decode("latin-1") for value in auth_context.get("peer_spiffe_id") or ()])

    def peer_of_certificate(self, certificate: Mapping[str, Any] | None) -> str:
        """As ``peer_of``, for what ``ssl`` tells of a verified certificate (``getpeercert``)."""
        names = (certificate or {}).get("subjectAltName", ())
        return self._peer_in([value for kind, value in names if kind == "URI"])

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials of one port that speaks to nobody without a certificate of ours; each port needs its own."""
        version, first = self.version(), self._server_configuration()

        def renewed() -> Any:
            # Asked at each handshake, in a thread of gRPC's; what cannot be read leaves the last one in force.
            nonlocal version
            try:
                if (now := self.version()) == version:
                    return None
                found = self._server_configuration()
            except (OSError, TlsInvalid):
                return None
            version = now
            return found

        return grpc.dynamic_ssl_server_credentials(first, renewed, require_client_authentication=True)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Credentials of a channel, of the files as they are now."""
        return grpc.ssl_channel_credentials(
            root_certificates=self._read(self.authority),
            private_key=self._read(self.key),
            certificate_chain=self._read(self.certificate),
        )

    def server_context(self) -> ssl.SSLContext:
        """The same for a server that is not gRPC; ``load_cert_chain`` on it takes up renewed files."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.authority)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def _server_configuration(self) -> Any:
        return grpc.ssl_server_certificate_configuration(
            [(self._read(self.key), self._read(self.certificate))], root_certificates=self._read(self.authority)
        )

    def _peer_in(self, uris: list[str]) -> str:
        prefix = self.uri("")
        if len(uris) != 1 or not uris[0].startswith(prefix):
            return ""
        peer = uris[0].removeprefix(prefix)
        return peer if peer.isidentifier() else ""

    @staticmethod
    def _read(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as exc:
            raise TlsInvalid(f"{path} cannot be read: {exc.strerror}") from exc


def server_name(peer: str) -> str:
    """The DNS name a peer's certificate holds: names of hosts have no underscore."""
    return peer.replace("_", "-")


def _uris(certificate: x509.Certificate) -> list[str]:
    names = _alternative_names(certificate)
    return names.get_values_for_type(x509.UniformResourceIdentifier) if names else []


def _dns_names(certificate: x509.Certificate) -> list[str]:
    names = _alternative_names(certificate)
    return names.get_values_for_type(x509.DNSName) if names else []


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
