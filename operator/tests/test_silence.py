"""When a node plugin counts as silent: judged by our clock, and only by what we could see."""

import pytest

from kube3fs_operator.api import NodeLease
from kube3fs_operator.silence import POLL_SECONDS, Silence


class Watched:
    """Leases that are looked at every few seconds, with a clock of the test's."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.renewed = {"a": 0, "b": 0}
        self.silence = Silence(lambda: self.now)
        self.changed: list[str] = []

    def wait(self, seconds: float, *speaking: str, blind: bool = False) -> None:
        """So much time passes, in which these nodes renew."""
        end = self.now + seconds
        while self.now < end:
            self.now += POLL_SECONDS
            for node in speaking:
                self.renewed[node] += 1
            if not blind:
                self.look()

    def look(self) -> None:
        leases = [NodeLease(node, f"t{count}", 40) for node, count in self.renewed.items()]
        self.changed += self.silence.observe(leases)

    def silent(self) -> set[str]:
        return {node for node in self.renewed if self.silence.renewed(node) is not None}


@pytest.fixture
def watched() -> Watched:
    found = Watched()
    found.look()
    return found


def test_a_plugin_that_stops_is_silent_within_a_minute_and_the_others_are_not(watched: Watched) -> None:
    """40 s after its last sign, plus one look; not before."""
    watched.wait(35, "a")
    assert watched.silent() == set()
    watched.wait(15, "a")
    assert watched.silent() == {"b"}
    assert watched.changed == ["b"]


def test_one_that_speaks_again_is_believed_at_once(watched: Watched) -> None:
    """The first renewal is enough."""
    watched.wait(60, "a")
    watched.wait(POLL_SECONDS, "a", "b")
    assert watched.silent() == set()
    assert watched.changed == ["b", "b"]


def test_while_we_see_nothing_nobody_falls_silent(watched: Watched) -> None:
    """The API server was away: the nodes could not renew either, and get their time afterwards."""
    watched.wait(120, blind=True)
    watched.look()
    assert watched.silent() == set()
    watched.wait(20)
    assert watched.silent() == set()
    watched.wait(30)
    assert watched.silent() == {"a", "b"}


def test_a_node_without_a_lease_is_not_judged(watched: Watched) -> None:
    """An earlier version has none; that of a node that was removed is gone."""
    watched.wait(60, "a")
    del watched.renewed["b"]
    watched.look()
    assert watched.changed == ["b", "b"]
    assert watched.silence.renewed("b") is None
    assert watched.silence.renewed("never-seen") is None
