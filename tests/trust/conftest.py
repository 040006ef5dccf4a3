"""Parts of a hub for tests of trust: those of the hub's own tests."""

from tests.cloud.conftest import (  # noqa: F401  # fixtures are found by their names
    clock,
    database,
    hub_rig,
    migrated,
    store,
)
