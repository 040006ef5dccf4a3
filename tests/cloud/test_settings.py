"""Settings from file and environment."""

from pathlib import Path

import pytest

from edgefleet_cloud.errors import InvalidError
from edgefleet_cloud.settings import load


def test_defaults_need_no_file(tmp_path: Path) -> None:
    settings = load(tmp_path, {})
    assert settings.home == tmp_path
    assert settings.sqlalchemy_url == f"sqlite:///{tmp_path}/hub.db"
    assert (settings.api_port, settings.mqtt_port) == (8443, 8883)
    assert settings.upload_limit_bytes == 1 << 30


def test_the_environment_is_above_the_file(tmp_path: Path) -> None:
    (tmp_path / "hub.toml").write_text('api_port = 9000\npublic_host = "hub.example"\n')
    settings = load(tmp_path, {"EDGEFLEET_API_PORT": "9001", "EDGEFLEET_TICK_S": "0.25"})
    assert (settings.api_port, settings.public_host, settings.tick_s) == (9001, "hub.example", 0.25)


def test_the_environment_can_name_the_home(tmp_path: Path) -> None:
    assert load(None, {"EDGEFLEET_HOME": str(tmp_path / "h")}).home == tmp_path / "h"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("api_port = 0", "api_port"),
        ("api_port = 65536", "api_port"),
        ("api_prot = 8443", "api_prot"),
        ('api_port = "many"', "api_port"),
        ("tick_s = 0", "tick_s"),
        ("api_port = ", "cannot be read as TOML"),
        ("\x00", "cannot be read as TOML"),
    ],
)
def test_what_cannot_be_read_is_refused_and_named(
    tmp_path: Path, content: str, complaint: str
) -> None:
    (tmp_path / "hub.toml").write_text(content)
    with pytest.raises(InvalidError, match=complaint):
        load(tmp_path, {})


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hub.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidError, match=r"hub\.toml cannot be read"):
        load(tmp_path, {})
