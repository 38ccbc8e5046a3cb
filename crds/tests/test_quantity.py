"""Quantities: what users may write, and numbers that nobody should convert."""

import time

import pytest

from kube3fs_crds import bytes_of

GOOD = {
    "0": 0,
    "1": 1,
    "8Gi": 8 << 30,
    "500M": 500_000_000,
    "1.5Gi": 3 << 29,
    ".5Ki": 512,
    "+1Ki": 1024,
    "1.": 1,
    "1e3": 1000,
    "1E3": 1000,
    "1E": 10**18,
    "1500m": 2,
    "1e-9": 1,
    "9223372036854775807": 2**63 - 1,
    "7Ei": 7 << 60,
}
HOSTILE = [
    "", " ", " 1", "1 ", "1\n", "-1", "-0", "+-1", "0x10", "1_000", "NaN", "nan", "Infinity", "-inf", "1e",
    "e1", "1Ki1", "1KiB", "1ki", "1e1Ki", "1e99999999", "1e-99999999", "1e100", "1E+999", "9" * 5000,
    "0." + "9" * 5000, "9" * 20, "9223372036854775808", "8Ei", "1e19", "10E", "\u0661\u0662", "\uff11\uff12",
    "1\u0661", "\u00b2", "1,5", "1.2.3", ".", "+", "Ki", "1\0", "1" + "\0" * 100, "1e99", "0e99Ki",
    str(2**64), "1n", "1u",
]  # fmt: skip


@pytest.mark.parametrize(("text", "size"), GOOD.items())
def test_a_quantity_is_read_as_kubernetes_reads_it(text: str, size: int) -> None:
    """Suffixes of two and ten, exponents, fractions; a part of a byte is a byte."""
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", HOSTILE, ids=[f"hostile-{number}" for number in range(len(HOSTILE))])
def test_what_is_no_size_is_refused_at_once(text: str) -> None:
    """With a short sentence, in no time, whatever it is."""
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"is no quantity of bytes|is more than the") as refused:
        bytes_of(text)
    assert time.monotonic() - start < 1
    assert len(str(refused.value)) < 300
