"""Which tests go to one process, and Ctrl-C: started in the background, a test run may ignore it,
and so would every program it starts; the tests that send it to a program need it heard."""

import signal

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a file share what its fixtures made, so one process runs them all; those of
    ``test_scripts.py`` share nothing and fill the gaps at the end."""
    for item in items:
        if item.path.name != "test_scripts.py":
            item.add_marker(pytest.mark.xdist_group(item.path.name))
