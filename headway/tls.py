"""A server's certificates: checked when they are read, and read anew when their files change, without a restart."""

import ssl
from pathlib import Path
from typing import Any

import grpc

from headway.config import ServiceConfig
from headway.watched import Watched


class CertificateError(ValueError):
    """Certificate, key or authority cannot be used; names the setting and the file."""


class ServerCertificates:
    """What connections that come from now on are shown; those that stand keep what they were shown."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        """With `client_ca`, clients must show certificates that it signed. Raises `CertificateError` and OSError."""
        paths = (cert, key, *([client_ca] if client_ca is not None else []))
        self._watched = Watched("tls_cert, tls_key, tls_client_ca", paths, lambda: _read(cert, key, client_ca))
        self._mutual = client_ca is not None
        self._shown = self._watched.value()

    @classmethod
    def from_config(cls, config: ServiceConfig) -> "ServerCertificates | None":
        """None where the service speaks no TLS. Raises as the constructor."""
        if config.tls_cert is None or config.tls_key is None:
            return None
        return cls(config.tls_cert, config.tls_key, config.tls_client_ca)

    def credentials(self) -> grpc.ServerCredentials:
        """For one port. gRPC asks again before each handshake, in threads of its own."""
        changed: Any = self._changed  # may give None, which the stubs do not know: nothing has changed
        return grpc.dynamic_ssl_server_credentials(self._shown, changed, self._mutual)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        now = self._watched.value()
        if now is self._shown:
            return None
        self._shown = now
        return now


def _read(cert: Path, key: Path, client_ca: Path | None) -> grpc.ServerCertificateConfiguration:
    pair = (key.read_bytes(), cert.read_bytes())
    ca = client_ca.read_bytes() if client_ca is not None else None
    check_pair(cert, key, settings=("tls_cert", "tls_key"))
    if client_ca is not None:
        check_authority(client_ca, setting="tls_client_ca")
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=ca)


def check_pair(cert: Path, key: Path, *, settings: tuple[str, str]) -> None:
    """Raises `CertificateError` with the names of the two settings unless the key is the certificate's. Blocks."""

    def no_password() -> str:
        raise CertificateError(f"{settings[1]}: {key} is encrypted; give it without a password")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, no_password)
    except ssl.SSLError as error:
        raise CertificateError(f"{' and '.join(settings)}: {cert} and {key} are not a pair: {error.reason}") from error


def check_authority(path: Path, *, setting: str) -> None:
    """Raises `CertificateError` with the setting's name for a file without a certificate. Blocks."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except ssl.SSLError as error:
        raise CertificateError(f"{setting}: {path} holds no certificate: {error.reason}") from error
