"""Certificates and keys of a federation: a CA and the server's TLS certificate, and a key pair for each centre.

The CA's key is used once and never written. Private keys are files that only their owner can read.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vfmgl_lib.base.files import write_bytes

CA, CERTIFICATE, KEY = "ca.pem", "server.pem", "server.key"
DAYS = 365


def write_certificates(folder: Path, hosts: list[str], days: int = DAYS) -> None:
    """Writes ca.pem, server.pem and server.key for a server that is reached under these names and addresses."""
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)  # clocks differ
    end = start + datetime.timedelta(days=days)
    ca_key, server_key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "VFMGL federation CA")])

    def builder(name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder().subject_name(name).issuer_name(ca_name).public_key(key.public_key())
        return made.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)

    ca_use = x509.KeyUsage(False, False, False, False, False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False)
    unsigned = builder(ca_name, ca_key).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    unsigned = unsigned.add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
    ca = unsigned.add_extension(ca_use, critical=True).sign(ca_key, hashes.SHA384())
    unsigned = builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])]), server_key)
    unsigned = unsigned.add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
    unsigned = unsigned.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    unsigned = unsigned.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    server = unsigned.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True).sign(ca_key, hashes.SHA384())
    write_bytes(folder / CA, ca.public_bytes(serialization.Encoding.PEM))
    write_bytes(folder / CERTIFICATE, server.public_bytes(serialization.Encoding.PEM))
    _write_private(folder / KEY, server_key, serialization.PrivateFormat.PKCS8)


def write_key_pair(file: Path) -> bytes:
    """Writes a centre's private key to `file` and the public one beside it as `file`.pub; returns the public one.

    Raises: FileExistsError: there is a key already.
    """
    if file.exists():
        raise FileExistsError(f"{file}: is there already, and a key is never overwritten; move it away to make a new one")
    key = ec.generate_private_key(ec.SECP384R1())
    _write_private(file, key, serialization.PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_bytes(file.with_name(f"{file.name}.pub"), public + b"\n")
    return public


def read_public_key(file: Path) -> ec.EllipticCurvePublicKey:
    """Raises: ValueError: not a public key of a NIST curve in OpenSSH's format; names the file."""
    try:
        content = file.read_bytes()
        if b"PRIVATE KEY" in content:
            raise ValueError("it is a private one, which belongs to its centre alone; that centre makes a new pair and sends the .pub file")
        if len(content.strip().splitlines()) > 1:
            raise ValueError("it holds more than one line; a centre has one key")
        key = serialization.load_ssh_public_key(content)
    except (ValueError, OSError, UnsupportedAlgorithm) as error:
        raise ValueError(f"{file}: not a public key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError(f"{file}: must be an elliptic-curve key, as `vfmgl federation key` makes it")
    return key


def read_private_key(file: Path) -> ec.EllipticCurvePrivateKey:
    """Raises: ValueError: not such a private key, or one that others can read; names the file."""
    try:
        if file.stat().st_mode & 0o077:
            raise ValueError(f"{file}: others can read this private key; chmod 600 {file}")
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error
    try:
        key = serialization.load_ssh_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it has a passphrase
        raise ValueError(f"{file}: not a private key without a passphrase: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{file}: must be an elliptic-curve key, as `vfmgl federation key` makes it")
    return key


def certificate_end(file: Path) -> datetime.datetime:
    """When a PEM certificate ends, UTC. Raises: ValueError: not a certificate; names the file."""
    try:
        return x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc
    except (ValueError, OSError) as error:
        raise ValueError(f"{file}: not a PEM certificate: {error}") from error


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write_private(file: Path, key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> None:
    content = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    file.parent.mkdir(parents=True, exist_ok=True)
    # Made with its mode, not narrowed afterwards: at no moment can others read it.
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
