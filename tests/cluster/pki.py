"""Keys, certificates and tokens of one cluster, made with openssl."""

import secrets
from base64 import b64encode
from pathlib import Path

from tests.cluster import spec as s
from tests.cluster.components import kubeconfig, kubeconfig_path
from tests.cluster.shell import run
from tests.cluster.spec import Spec

_DAYS = "365"
_NAMES = [
    f"DNS:{name}" for name in ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
]
_ADDRESSES = [f"IP:{ip}" for ip in ("127.0.0.1", s.FIRST.address, s.API_SERVICE)]
# RFC 5280 demands these, and Python from 3.13 on (ssl.VERIFY_X509_STRICT) does too.
_CA = ("-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature")
_LEAF = "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid"


def make(spec: Spec) -> None:
    """Write spec.folder/pki and spec.folder/kubeconfigs: a CA, what it signed, a token for each user."""
    pki = spec.folder / "pki"
    pki.mkdir(mode=0o700)
    _openssl(
        pki,
        "req",
        "-x509",
        *_new_key("ca.key"),
        "-days",
        _DAYS,
        "-subj",
        "/CN=kube3fs",
        *_CA,
        "-out",
        "ca.crt",
    )
    names = ",".join([*_NAMES, "DNS:kubernetes.default.svc.cluster.local", *_ADDRESSES])
    _signed(pki, "apiserver", "/CN=kube-apiserver", f"subjectAltName={names}")
    # What the API server shows to kubelets and to extension API servers.
    _signed(pki, "client", "/O=system:masters/CN=kube-apiserver-client", "extendedKeyUsage=clientAuth")
    _openssl(pki, "genrsa", "-out", "sa.key", "2048")
    _users(spec, pki)


def _users(spec: Spec, pki: Path) -> None:
    ca = b64encode((pki / "ca.crt").read_bytes()).decode()
    Path(kubeconfig_path(spec, "admin")).parent.mkdir(mode=0o700)
    tokens = []
    for name, (user, group) in s.users(spec).items():
        token = secrets.token_hex(16)
        tokens.append(f'{token},{user},{name},"{group}"\n')
        config = kubeconfig(f"https://{s.FIRST.address}:{s.API_PORT}", ca, token)
        Path(kubeconfig_path(spec, name)).write_text(config)
    (pki / "tokens.csv").write_text("".join(tokens))


def _signed(pki: Path, name: str, subject: str, extension: str) -> None:
    _openssl(pki, "req", *_new_key(f"{name}.key"), "-subj", subject, "-out", f"{name}.csr")
    (pki / f"{name}.ext").write_text(f"{extension}\n{_LEAF}")
    ca = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", _DAYS)
    _openssl(pki, "x509", "-req", "-in", f"{name}.csr", *ca, "-extfile", f"{name}.ext", "-out", f"{name}.crt")


def _new_key(path: str) -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path)


def _openssl(pki: Path, *argv: str) -> None:
    run(["openssl", *argv], cwd=pki, timeout=30)
