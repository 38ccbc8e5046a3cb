"""What the operator is told from outside: settings and fault points."""

import pytest
from pydantic import ValidationError

from kube3fs_operator import watch
from kube3fs_operator.faults import Faults
from kube3fs_operator.settings import from_environment
from kube3fs_operator.watch import QUIET_SECONDS


def test_settings_come_from_the_environment() -> None:
    """Known variables are read and typed, others are somebody else's."""
    settings = from_environment({"KUBE3FS_PORT": "9000", "KUBE3FS_NAMESPACE": "here", "PATH": "/bin"})
    assert (settings.port, settings.namespace) == (9000, "here")


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "http"), ("PORT", "70000"), ("LOG_LEVEL", "loud")],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    """The error names the field."""
    with pytest.raises(ValidationError, match=name.lower()):
        from_environment({f"KUBE3FS_{name}": value})


@pytest.mark.parametrize("point", ["class", "during:class", "after:lunch"])
def test_an_unknown_fault_point_is_refused(point: str) -> None:
    """A test that misspells its point must not pass by never being killed."""
    with pytest.raises(ValueError, match="write before:STEP or after:STEP"):
        Faults(point)


def test_a_watch_that_died_unnoticed_is_given_up_as_soon_as_on_the_csi_side() -> None:
    """Two bookmarks may be late; nothing of kopf's waits longer for a connection that is gone."""
    settings = watch.settings()
    assert settings.watching.inactivity_timeout == QUIET_SECONDS == 150
    assert settings.watching.connect_timeout is not None
    assert settings.watching.connect_timeout + settings.networking.request_timeout < QUIET_SECONDS


def test_reserved_class_names_are_json() -> None:
    """As the chart writes them; anything else ends the start."""
    assert from_environment({"KUBE3FS_CLASS_NAMES": '{"fast":"storage"}'}).class_names == {"fast": "storage"}
    for wrong in ("fast", '["fast"]', '{"fast":1}'):
        with pytest.raises(ValueError, match=r"class_names|expected"):
            from_environment({"KUBE3FS_CLASS_NAMES": wrong})
