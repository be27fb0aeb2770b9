"""Leases: who signed, for whom, how long, how often."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.errors import Unauthenticated
from headway.lease import TTL_S, LeaseCheck, LeaseSigner, read_secret

SECRET = b"a secret of the mesh"


class Wall:
    def __init__(self) -> None:
        self.s = 1_000.0

    def __call__(self) -> float:
        return self.s


def pair() -> tuple[LeaseSigner, LeaseCheck, Wall]:
    wall = Wall()
    return LeaseSigner(SECRET, wall=wall), LeaseCheck(SECRET, wall=wall), wall


def test_a_lease_names_the_tenant_once_for_as_long_as_it_is_good() -> None:
    signer, check, wall = pair()
    lease = signer.sign("acme", ["w1", "w2"])
    assert check.tenant(lease, "w1") == "acme"
    with pytest.raises(Unauthenticated, match="used before"):
        check.tenant(lease, "w1")
    late = signer.sign("acme")
    wall.s += TTL_S
    with pytest.raises(Unauthenticated, match="ran out"):
        check.tenant(late, "w1")
    assert check.tenant(signer.sign("zeta"), "any") == "zeta"
    assert len(check._used) == 1  # what ran out is forgotten


def test_a_lease_for_others_or_by_others_is_refused() -> None:
    signer, check, wall = pair()
    with pytest.raises(Unauthenticated, match="another worker"):
        check.tenant(signer.sign("acme", ["w1"]), "w2")
    with pytest.raises(Unauthenticated, match="not signed"):
        check.tenant(LeaseSigner(b"another secret, as long", wall=wall).sign("acme"), "w1")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_changed_lease_is_refused(data: st.DataObject) -> None:
    signer, check, _ = pair()
    lease = bytearray(signer.sign("acme", ["w1"]))
    place = data.draw(st.integers(0, len(lease) - 1))
    lease[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Unauthenticated):
        check.tenant(bytes(lease), "w1")


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=3000))
def test_bytes_that_are_no_lease_are_refused(junk: bytes) -> None:
    with pytest.raises(Unauthenticated):
        pair()[1].tenant(junk, "w1")


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("short\n")
    with pytest.raises(ValueError, match="5 bytes; at least 16"):
        read_secret(tmp_path / "secret")
