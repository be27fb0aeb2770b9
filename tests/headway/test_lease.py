"""Leases: who signed, for whom, how long, how often."""

import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.errors import Unauthenticated
from headway.lease import TTL_S, LeaseCheck, LeaseSigner, follow_secrets, read_secret, read_secrets
from headway.watched import LOOK_S

SECRET = b"a secret of the mesh"
OTHER = b"another secret, as long"


class Wall:
    def __init__(self) -> None:
        self.s = 1_000.0

    def __call__(self) -> float:
        return self.s


def pair() -> tuple[LeaseSigner, LeaseCheck, Wall]:
    wall = Wall()
    return LeaseSigner(lambda: [SECRET], wall=wall), LeaseCheck(lambda: [SECRET], wall=wall), wall


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
        check.tenant(LeaseSigner(lambda: [OTHER], wall=wall).sign("acme"), "w1")


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


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (SECRET + b"\n", (SECRET,)),
        (SECRET + b"\r\n\n  " + OTHER + b"\n", (SECRET, OTHER)),
        (b"\x00\xff" * 8 + b"\n" + b"\x01" * 16, (b"\x00\xff" * 8 + b"\n" + b"\x01" * 16,)),
    ],
)
def test_a_file_of_text_has_a_secret_in_each_line(tmp_path: Path, content: bytes, expected: tuple[bytes, ...]) -> None:
    (tmp_path / "secret").write_bytes(content)
    assert read_secrets(tmp_path / "secret") == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes; at least 16"),
        (SECRET + b"\nshort\n", "line 2, has 5 bytes; at least 16"),
        (b"\n".join([SECRET] * 5), "has 5 lines; at most 4"),
    ],
)
def test_a_file_of_secrets_that_is_none_is_refused_and_shows_none(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(ValueError, match=said) as refused:
        read_secrets(tmp_path / "secret")
    assert SECRET.decode() not in str(refused.value)


def test_the_first_secret_signs_and_all_are_good_while_one_takes_anothers_place() -> None:
    """Each step of a rotation, with either side a step ahead of the other."""
    steps = [[SECRET], [SECRET, OTHER], [OTHER, SECRET], [OTHER]]
    for router, worker in [*zip(steps, steps, strict=True), *pairwise(steps)]:
        for here, there in ((router, worker), (worker, router)):
            lease = LeaseSigner(lambda here=here: here).sign("acme")
            assert LeaseCheck(lambda there=there: there).tenant(lease, "w1") == "acme"
    with pytest.raises(Unauthenticated, match="not signed"):
        LeaseCheck(lambda: [OTHER]).tenant(LeaseSigner(lambda: [SECRET]).sign("acme"), "w1")


def test_a_file_that_changes_is_followed_and_a_lease_is_good_once_whatever_signed_it(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    secrets = follow_secrets(path)
    signer, check = LeaseSigner(secrets), LeaseCheck(secrets)
    before = signer.sign("acme")
    path.write_bytes(OTHER + b"\n" + SECRET)
    until_s = time.monotonic() + 60
    while secrets()[0] == SECRET:
        assert time.monotonic() < until_s
        time.sleep(LOOK_S / 20)
    for lease in (before, signer.sign("acme")):
        assert check.tenant(lease, "w1") == "acme"
        with pytest.raises(Unauthenticated, match="used before"):
            check.tenant(lease, "w1")
