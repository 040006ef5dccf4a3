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


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("EDGEFLEET_AGENT_HEARTBEAT", "; did you mean EDGEFLEET_AGENT_HEARTBEAT_S\\?"),
        ("EDGEFLEET_AGENT_LOGS_KEEPS", "; did you mean EDGEFLEET_AGENT_LOGS_KEEP\\?"),
        ("EDGEFLEET_AGENT_SAMPLES", ""),
    ],
)
def test_an_unknown_environment_variable_is_refused(variable: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable} is no setting of the agent{hint}"):
        config.load(environment={variable: "5"})


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("heartbeats = 5", "; did you mean `heartbeat_s`?"),
        ("[log]", "; did you mean `logs`?"),
        ("[samples]\nconsents = true", "; did you mean `consent`?"),
        ("[maintenance]\nx = 1", "; known here: windows"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(
    tmp_path: Path, text: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(write(tmp_path, text), environment={})
    assert str(caught.value).endswith(hint)


@pytest.mark.parametrize(
    ("variable", "text", "place", "value"),
    [
        ("STORE", "/srv/ef", ("store",), "/srv/ef"),
        ("BOARD", "", ("board",), None),
        ("RUNTIMES", "", ("runtimes",), None),
        ("RUNTIMES", "litert", ("runtimes",), ["litert"]),
        ("SAMPLES_CONSENT", "1", ("samples", "consent"), True),
        ("SAMPLES_REDACT", "site:redact", ("samples", "redact"), "site:redact"),
        ("BUDGETS_FETCH_STALL_S", "0.5", ("budgets", "fetch_stall_s"), 0.5),
        ("NETWORK_LINK", "metered", ("network", "link"), "metered"),
        ("NETWORK_METERED_BYTES_PER_DAY", "0", ("network", "metered_bytes_per_day"), 0),
        (
            "MAINTENANCE_WINDOWS",
            "Sat Sun 02:00-05:00, Mon-Fri 22:00-04:00",
            ("maintenance", "windows"),
            ["Sat Sun 02:00-05:00", "Mon-Fri 22:00-04:00"],
        ),
        ("MAINTENANCE_WINDOWS", "", ("maintenance", "windows"), []),
        ("STORAGE_MAX_BYTES", "1048576", ("storage", "max_bytes"), 1 << 20),
        ("EXECUTION_THREADS", "2", ("execution", "threads"), 2),
        ("EXECUTION_PROVIDERS", "CPUExecutionProvider,", ("execution", "providers"),
         ["CPUExecutionProvider"]),
        ("SERVER_LISTEN", "127.0.0.1:8500", ("server", "listen"), "127.0.0.1:8500"),
        ("BROKER_PORT", "1884", ("broker", "port"), 1884),
        ("BROKER_USERNAME", "", ("broker", "username"), None),
        ("LOGS_JSON", "false", ("logs", "json"), False),
    ],
)  # fmt: skip
def test_a_variable_of_each_kind_overrides_its_setting(
    variable: str, text: str, place: tuple[str, ...], value: object
) -> None:
    found: object = config.load(environment={f"EDGEFLEET_AGENT_{variable}": text})
    for name in place:
        found = getattr(found, name)
    assert found == value


def test_every_setting_can_be_overridden_but_lists_of_tables() -> None:
    required = {"EDGEFLEET_AGENT_SOURCE_PATH": "rows.csv", "EDGEFLEET_AGENT_SOURCE_MODEL": "m"}
    tables = []
    for setting in config.settings():
        default = setting.default
        text = "" if default in (None, []) else str(default)
        if setting.variable in required:
            continue
        if setting.name == "topics":
            with pytest.raises(ConfigError, match=r"can only be given in agent\.toml$"):
                config.load(environment={setting.variable: text})
            tables.append(setting.variable)
        else:
            config.load(environment={**required, setting.variable: text})
    assert tables == ["EDGEFLEET_AGENT_BROKER_TOPICS"]


def test_a_table_that_is_none_is_refused_with_its_place_whatever_the_environment_says(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, "samples = 3")
    with pytest.raises(ConfigError, match=r"Expected `object`, got `int` - at `\$.samples`"):
        config.load(path, environment={"EDGEFLEET_AGENT_SAMPLES_CONSENT": "true"})


def test_a_maintenance_window_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "[maintenance]\nwindows = ['at night']")
    with pytest.raises(ConfigError, match="maintenance window 'at night' cannot be read"):
        config.load(path, environment={})


def test_a_named_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: "):
        config.load(tmp_path / "none.toml", environment={})


@pytest.mark.parametrize(
    ("model", "machine", "board"),
    [
        ("Raspberry Pi 4 Model B Rev 1.5\0", "aarch64", "rpi4"),
        ("Raspberry Pi 5 Model B Rev 1.0\0", "aarch64", "rpi5"),
        ("Raspberry Pi Zero 2 W Rev 1.0\0", "aarch64", "rpi-zero2w"),
        ("Raspberry Pi 3 Model B Rev 1.2\0", "armv7l", "rpi-32bit"),
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
