"""Certificates that a test creates and that nobody else trusts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class Certified:
    """A certificate and its private key."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def certificate_pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        return self.key.private_bytes(pem, form, serialization.NoEncryption()).decode()

    @property
    def settings(self) -> dict[str, str]:
        """The settings for it in a stack's config."""
        return {"tlsCertificate": self.certificate_pem, "tlsKey": self.key_pem}


def certify(  # noqa: PLR0913 -- all but two by name
    name: str,
    by: Certified | None = None,
    *,
    address: str | None = None,
    names: Sequence[str] = (),
    begin: datetime | None = None,
    end: datetime | None = None,
) -> Certified:
    """A certificate signed by an authority, or self-signed; valid for a day from now, unless given otherwise."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin or now - timedelta(hours=1))
        .not_valid_after(end or now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        # Python 3.13 and later require the key extensions of RFC 5280.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key((by.key if by else key).public_key()), False
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=by is None,
                crl_sign=by is None,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    alternatives: list[x509.GeneralName] = [x509.DNSName(each) for each in names]
    if address:
        alternatives.append(x509.IPAddress(ip_address(address)))
    if alternatives:
        made = made.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return Certified(key=key, certificate=made.sign(by.key if by else key, hashes.SHA256()))
