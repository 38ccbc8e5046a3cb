"""Quantities of bytes as users write them ("8Gi"): the one place where such a text becomes a number.

Bounded before it is converted: `1e99999999` is a number that takes minutes and gigabytes to write down.
"""

import re
from fractions import Fraction

MOST_BYTES = 2**63 - 1
"""An int64 of the API server and of CSI."""

_MOST_CHARACTERS = 40
_QUANTITY = re.compile(
    r"\+?(?P<number>[0-9]{1,19}(\.[0-9]{0,9})?|\.[0-9]{1,9})"
    r"((?P<suffix>Ki|Mi|Gi|Ti|Pi|Ei|m|k|M|G|T|P|E)|[eE](?P<power>[+-]?[0-9]{1,2}))?"
)
_FACTORS = {
    "": Fraction(1),
    "m": Fraction(1, 1000),
    **{suffix: Fraction(1000**power) for power, suffix in enumerate("kMGTPE", 1)},
    **{f"{suffix}i": Fraction(1024**power) for power, suffix in enumerate("KMGTPE", 1)},
}


def bytes_of(quantity: str) -> int:
    """The bytes that a Kubernetes quantity says, a part of a byte counted as one. 0 to 2^63 - 1.

    ValueError, with a sentence that repeats at most the beginning of the text, of everything else: no
    quantity, a negative one, one that is too large.
    """
    shown = repr(quantity[:_MOST_CHARACTERS])
    found = _QUANTITY.fullmatch(quantity) if len(quantity) <= _MOST_CHARACTERS else None
    if found is None:
        raise ValueError(f"{shown} is no quantity of bytes; write one such as 8Gi or 500M")
    factor = Fraction(10) ** int(found["power"]) if found["power"] else _FACTORS[found["suffix"] or ""]
    exact = Fraction(found["number"]) * factor
    size = -(-exact.numerator // exact.denominator)
    if size > MOST_BYTES:
        raise ValueError(f"{shown} is more than the {MOST_BYTES} bytes that anything can have; write less")
    return size
