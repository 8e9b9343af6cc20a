"""A certificate authority for a test: certificates as a deployment's have them, and ones that are wrong on purpose."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from libs.tls import Tls, server_name

TRUST_DOMAIN = "convergence"


class Authority:
    """Signs the certificates of one test; files lie below ``directory``."""

    def __init__(self, directory: Path, name: str = "test authority") -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.certificate = directory / "ca.crt"
        built = self._builder(self._name, timedelta(days=10)).public_key(self._key.public_key())
        built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        built = built.add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        built = built.add_extension(usage, critical=True)
        self._write(self.certificate, built.sign(self._key, hashes.SHA256()))

    def issue(
        self,
        peer: str,
        *,
        uri: str | None = None,
        valid: timedelta = timedelta(days=1),
        folder: str | None = None,
        address: str | None = None,
    ) -> Tls:
        """A key and certificate of ``peer`` (or with another ``uri``), valid for ``valid`` from now, past included.

        ``address`` is an IP address that it may also serve at.
        """
        place = self.directory / (folder or peer)
        place.mkdir(exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}/{peer}" if uri is None else uri),
            x509.DNSName(server_name(peer)),
        ]
        if address is not None:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        built = self._builder(x509.Name([]), valid).public_key(key.public_key())
        built = built.add_extension(x509.SubjectAlternativeName(names), critical=True)
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        built = built.add_extension(signer, critical=False)
        self._write(place / "tls.crt", built.sign(self._key, hashes.SHA256()))
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (place / "tls.key").write_bytes(pem)
        return Tls(place / "tls.crt", place / "tls.key", self.certificate, TRUST_DOMAIN)

    def _builder(self, subject: x509.Name, valid: timedelta) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().issuer_name(self._name).subject_name(subject)
        builder = builder.serial_number(x509.random_serial_number())
        return builder.not_valid_before(now - timedelta(days=2)).not_valid_after(now + valid)

    @staticmethod
    def _write(path: Path, certificate: x509.Certificate) -> None:
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def settings_of(tls: Tls) -> dict[str, object]:
    """The fields of ``ServiceSettings`` that name these files."""
    return {"tls_certificate": tls.certificate, "tls_key": tls.key, "tls_authority": tls.authority}
