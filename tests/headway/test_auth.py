import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.auth import OPEN_TENANT, Authenticator, KeyFileError, KeyRing, ListedKey, load_keys
from headway.config import ServiceConfig
from headway.errors import Unauthenticated
from headway.yaml_file import YamlFileError


def _sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _listed(key: str, expires_s: float | None = None) -> ListedKey:
    return ListedKey(_sha(key), expires_s)


def _bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


def _certificate(*names: bytes) -> dict[str, tuple[bytes, ...]]:
    return {"x509_common_name": names}


def _keys() -> KeyRing:
    return KeyRing({"acme": [_listed("k1"), _listed("k2")], "zeta": [_listed("k3")]})


def test_a_key_names_its_tenant() -> None:
    authenticator = Authenticator(_keys())
    assert [authenticator.tenant(_bearer(key), {}) for key in ("k1", "k2", "k3")] == ["acme", "acme", "zeta"]


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ((), "no API key"),
        (_bearer("k4"), "not known"),
        (_bearer(_sha("k1")), "not known"),
        (_bearer("k1") + _bearer("k1"), "given once"),
        ((("authorization", "k1"),), "Bearer KEY"),
        ((("authorization", "Basic k1"),), "Bearer KEY"),
        ((("authorization", b"Bearer k1"),), "Bearer KEY"),
        (_bearer("k1 k1"), "Bearer KEY"),
        (_bearer("k" * 600), "Bearer KEY"),
        ((("tenant", "acme"),), "no API key"),
    ],
)
def test_anything_but_a_known_key_is_refused_without_showing_it(
    metadata: tuple[tuple[str, str | bytes], ...], said: str
) -> None:
    with pytest.raises(Unauthenticated, match=said) as refused:
        Authenticator(_keys()).tenant(metadata, _certificate(b"acme"))
    assert "k4" not in str(refused.value)


def test_a_certificate_counts_only_where_tls_verified_it() -> None:
    assert Authenticator(mutual_tls=True).tenant((), _certificate(b"acme")) == "acme"
    assert Authenticator().tenant((), _certificate(b"acme")) == OPEN_TENANT


def test_a_key_decides_before_a_certificate() -> None:
    authenticator = Authenticator(_keys(), mutual_tls=True)
    assert authenticator.tenant(_bearer("k3"), _certificate(b"acme")) == "zeta"
    assert authenticator.tenant((), _certificate(b"acme")) == "acme"
    with pytest.raises(Unauthenticated, match="not known"):
        authenticator.tenant(_bearer("wrong"), _certificate(b"acme"))


@pytest.mark.parametrize("names", [(), (b"acme", b"zeta"), (b"",), (b"ACME!",), (b"\xff\xfe",), (b"a" * 64,)])
def test_a_certificate_without_one_plain_name_is_refused(names: tuple[bytes, ...]) -> None:
    with pytest.raises(Unauthenticated, match="common name"):
        Authenticator(mutual_tls=True).tenant((), _certificate(*names))


def test_the_open_service_has_one_tenant_whatever_is_sent() -> None:
    assert Authenticator.from_config(ServiceConfig()).tenant(_bearer("any"), {}) == OPEN_TENANT


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.sets(st.text("ab01", min_size=1, max_size=6))))
def test_each_key_finds_its_own_tenant_and_no_other(tenants: dict[str, set[str]]) -> None:
    owner: dict[str, str] = {}
    shared = False
    for tenant, keys in tenants.items():
        shared = shared or any(owner.setdefault(key, tenant) != tenant for key in keys)
    listed = {tenant: [_listed(key) for key in keys] for tenant, keys in tenants.items()}
    if shared:
        with pytest.raises(KeyFileError, match="in common"):
            KeyRing(listed)
        return
    ring = KeyRing(listed)
    assert all(ring.tenant(key) == tenant for key, tenant in owner.items())
    assert ring.tenant("another") is None


def test_a_key_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f"acme:\n  - {_sha('k1')}\nzeta: [{_sha('k2')}]\n")
    authenticator = Authenticator.from_config(ServiceConfig(api_keys=file))
    assert authenticator.tenant(_bearer("k2"), {}) == "zeta"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no tenant"),
        ("acme: []", "tenant acme: must have a list"),
        ("acme: secret", "tenant acme: must have a list"),
        ("acme: [secret]", "tenant acme, entry 1: not a SHA-256 digest"),
        ("acme: [1234]", "tenant acme, entry 1: not a SHA-256 digest"),
        (f"acme: [{_sha('a').upper()}]", "lower-case"),
        (f"A b: [{_sha('a')}]", "tenant 'A b': must be"),
        (f"a: [{_sha('a')}]\nb: [{_sha('a')}]", "tenants a and b have a key in common"),
        ("acme: [{sha256: secret, expires: 2027-01-31}]", "tenant acme, entry 1: not a SHA-256 digest"),
        ("acme: [{expires: 2027-01-31}]", "tenant acme, entry 1: must have sha256"),
        (f"acme: [{{sha256: {_sha('a')}, expire: 2027-01-31}}]", "tenant acme, entry 1: .* nothing else"),
        (f"acme: [{{sha256: {_sha('a')}, expires: soon}}]", "tenant acme, entry 1: expires must be a day or a time"),
        (f"acme: [{{sha256: {_sha('a')}, expires: 1893456000}}]", "expires must be a day or a time"),
        (f"acme: [{{sha256: {_sha('a')}, expires: 2027-01-31T12:00:00}}]", "expires needs a zone"),
        (f"acme: [{_sha('a')}, {{sha256: {_sha('a')}, expires: 2027-01-31}}]", "listed twice"),
    ],
)
def test_a_wrong_key_file_names_the_tenant_and_shows_no_secret(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(KeyFileError, match=said) as refused:
        load_keys(file)
    assert str(refused.value).startswith(f"{file}: ")
    assert "secret" not in str(refused.value)


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(YamlFileError, match=r"keys\.yaml: cannot be read"):
        load_keys(tmp_path / "keys.yaml")


def test_a_day_that_there_is_not_is_a_mistake_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f"acme: [{{sha256: {_sha('a')}, expires: 2027-02-30}}]\n")
    with pytest.raises(YamlFileError, match=r"keys\.yaml: day"):
        load_keys(file)


def test_an_expired_key_is_refused_and_says_when_while_others_of_the_tenant_serve(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, now_s = tmp_path / "keys.yaml", [1801439999.0]  # 2027-01-31T23:59:59Z
    entries = [
        f"{{sha256: {_sha('day')}, expires: 2027-02-01}}",
        f"{{sha256: {_sha('time')}, expires: 2027-02-01T02:00:00+02:00}}",
        _sha("ever"),
    ]
    file.write_text(f"acme: [{', '.join(entries)}]\n")
    authenticator = Authenticator(load_keys(file, wall=lambda: now_s[0]))
    assert [authenticator.tenant(_bearer(key), {}) for key in ("day", "time", "ever")] == ["acme"] * 3
    assert "expired" not in caplog.text
    now_s[0] += 1
    for key in ("day", "time"):
        with pytest.raises(Unauthenticated, match="expired at 2027-02-01T00:00:00Z") as refused:
            authenticator.tenant(_bearer(key), {})
        assert refused.value.metadata == {"expired": "2027-02-01T00:00:00Z"}
    assert authenticator.tenant(_bearer("ever"), {}) == "acme"
    load_keys(file, wall=lambda: now_s[0])
    assert "tenant acme has 2 expired keys" in caplog.text


def test_an_expired_key_is_not_made_good_by_a_certificate() -> None:
    authenticator = Authenticator(KeyRing({"acme": [_listed("old", 0.0)]}), mutual_tls=True)
    with pytest.raises(Unauthenticated, match="expired"):
        authenticator.tenant(_bearer("old"), _certificate(b"acme"))
