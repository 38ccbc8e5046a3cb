"""Pages of a list that may change between two calls: a token is the name that the last page ended with."""

from collections.abc import Mapping
from typing import TypeVar

from kube3fs_csi.serving.errors import Busy, InvalidArgument

T = TypeVar("T")

_PREFIX = "after/"


class TokenUnknown(Busy):
    """The CSI spec's code for it is ABORTED: start the list again."""

    def __init__(self, token: str) -> None:
        super().__init__("")
        self.args = (f"{token[:100]!r} is no token of this driver; start the list again without one",)


def page(items: Mapping[str, T], most: int, token: str) -> tuple[list[T], str]:
    """At most `most` items (0: all) by name, those after `token`, and the token of the next page or ''."""
    if most < 0:
        raise InvalidArgument(f"max_entries is {most}; set it to 0 or more")
    if token and not token.startswith(_PREFIX):
        raise TokenUnknown(token)
    names = [name for name in sorted(items) if name > token.removeprefix(_PREFIX)]
    chosen = names[:most] if most else names
    more = len(chosen) < len(names)
    return [items[name] for name in chosen], f"{_PREFIX}{chosen[-1]}" if more else ""
