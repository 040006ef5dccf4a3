"""Configuration: defaults, environment, and what is refused."""

from pathlib import Path

import pytest

from edgefleet_agent import config
from edgefleet_agent.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(text, "utf-8")
    return path


def test_everything_has_a_default() -> None:
    settings = config.load(environment={})
    assert settings == config.Config()
    assert settings.samples.consent is False
    assert settings.source is None


def test_a_file_in_the_store_is_read_without_being_named(tmp_path: Path) -> None:
    write(tmp_path, "heartbeat_s = 5\n[samples]\nconsent = true\n")
    settings = config.load(environment={}, overrides={"store": str(tmp_path)})
    assert settings.heartbeat_s == 5.0
    assert settings.samples.consent is True


def test_environment_wins_over_the_file_and_the_command_line_over_both(tmp_path: Path) -> None:
    path = write(tmp_path, 'heartbeat_s = 5\nboard = "rpi4"\n[budgets]\ntrial_timeout_s = 9\n')
    environment = {
        "EDGEFLEET_AGENT_HEARTBEAT_S": "7",
        "EDGEFLEET_AGENT_BOARD": "rpi5",
        "EDGEFLEET_AGENT_BUDGETS_TRIAL_TIMEOUT_S": "12.5",
        "EDGEFLEET_AGENT_SAMPLES_CONSENT": "true",
        "EDGEFLEET_AGENT_RUNTIMES": "litert, onnxruntime",
        "UNRELATED": "x",
    }
    settings = config.load(path, environment=environment, overrides={"board": "rpi3"})
    assert settings.heartbeat_s == 7.0
    assert settings.board == "rpi3"
    assert settings.budgets.trial_timeout_s == 12.5
    assert settings.samples.consent is True
    assert settings.runtimes == ["litert", "onnxruntime"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("heartbeats = 5", "Object contains unknown field `heartbeats`"),
        ("[samples]\nconsents = true", r"unknown field `consents` - at `\$.samples`"),
        ("heartbeat_s = 0", r"Expected `float` > 0.0 - at `\$.heartbeat_s`"),
        ("heartbeat_s = 'soon'", r"Expected `float`"),
        ("[source]\npath = 'x.csv'", "missing required field `model`"),
        ("[source]\npath = 'x'\nmodel = 'm'\nkind = 'camera'", "Invalid enum value 'camera'"),
        ("runtimes = ['tensorrt']", "Invalid enum value 'tensorrt'"),
        ("board = 'toaster'", "unknown board 'toaster'; expected one of generic-arm64, "),
        ("heartbeat_s = ", "is not valid TOML"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=complaint) as caught:
        config.load(path, environment={})
    assert str(path) in str(caught.value)


def test_an_unknown_environment_variable_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown field `heartbeat`"):
        config.load(environment={"EDGEFLEET_AGENT_HEARTBEAT": "5"})


def test_a_named_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: "):
        config.load(tmp_path / "none.toml", environment={})


@pytest.mark.parametrize(
    ("model", "machine", "board"),
    [
        ("Raspberry Pi 4 Model B Rev 1.5\0", "aarch64", "rpi4"),
        ("Raspberry Pi 5 Model B Rev 1.0\0", "aarch64", "rpi5"),
        ("Raspberry Pi Zero 2 W Rev 1.0\0", "aarch64", "rpi-zero2w"),
        ("NVIDIA Jetson Nano Developer Kit\0", "aarch64", "jetson-nano"),
        ("NVIDIA Jetson Orin Nano Developer Kit\0", "aarch64", "jetson-orin-nano"),
        ("Some Other Board\0", "aarch64", "generic-arm64"),
        (None, "x86_64", "generic-x86_64"),
    ],
)
def test_the_board_is_read_off_the_device_tree(
    tmp_path: Path, model: str | None, machine: str, board: str
) -> None:
    path = tmp_path / "model"
    if model is not None:
        path.write_text(model, "utf-8")
    assert config.detect_board(machine, path) == board
