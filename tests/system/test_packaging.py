"""What is shipped to devices: the unit, the install script, the Debian package, the container."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGING = REPOSITORY / "packaging"
UNIT = PACKAGING / "edgefleet-agent.service"
TIMEOUT_S = 120

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze: apt install systemd"
)
needs_dpkg = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None, reason="needs dpkg-deb: a Debian or Ubuntu system"
)


def run(*command: str | Path, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        **options,  # type: ignore[call-overload]  # passed on as they are
    )


def ok(*command: str | Path, **options: object) -> str:
    done = run(*command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_wheel(folder: Path, name: str, version: str = "0.1.0", code: str = "") -> Path:
    """Make a wheel without dependencies, as pip reads it (PEP 427)."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    contents = {
        f"{name}/__init__.py": "",
        f"{name}/cli.py": code or f"def main():\n    print('{name} {version}')\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        "Provides-Extra: onnxruntime\nProvides-Extra: litert\nProvides-Extra: server\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\nedgefleet-agent = {name}.cli:main\n",
    }
    record = "".join(f"{member},,\n" for member in [*contents, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in {**contents, f"{info}/RECORD": record}.items():
            archive.writestr(member, text)
    return path


def unit() -> configparser.ConfigParser:
    # Keys may stand several times in a unit; this one has none that does.
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]  # the documented way
    parsed.read(UNIT)
    return parsed


def test_the_unit_restarts_for_ever_and_watches() -> None:
    service = unit()["Service"]
    assert unit()["Unit"]["StartLimitIntervalSec"] == "0"
    assert (service["Type"], service["Restart"]) == ("notify", "always")
    assert int(service["WatchdogSec"]) >= 2 * 60  # twice the longest turn of the engine
    assert service["OOMPolicy"] == "continue"
    assert service["User"] == "edgefleet"


@needs_systemd
def test_systemd_takes_the_unit_and_finds_little_to_expose(tmp_path: Path) -> None:
    text = UNIT.read_text("utf-8")
    # The program is not installed here, nor is its user.
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"(?m)^ExecStart=.*", f"ExecStart={sys.executable} -V", text), "utf-8")
    done = run("systemd-analyze", "verify", "--man=no", copy)
    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert complaints == []
    judged = run("systemd-analyze", "security", "--offline=true", "--threshold=25", copy)
    assert judged.returncode == 0, judged.stdout[-600:]


def install(root: Path, *options: str | Path) -> "subprocess.CompletedProcess[str]":
    python = ("--python", sys.executable)
    return run("sh", PACKAGING / "install.sh", "--root", root, *python, *options)


def test_the_script_installs_updates_and_removes_and_leaves_the_store(tmp_path: Path) -> None:
    wheels, root = tmp_path / "wheels", tmp_path / "root"
    make_wheel(wheels, "edgefleet_agent")
    done = install(root, "--wheels", wheels)
    assert done.returncode == 0, done.stderr
    assert "edgefleet-agent enroll --hub" in done.stdout
    program, store = root / "opt/edgefleet", root / "var/lib/edgefleet"
    assert ok(program / "bin/edgefleet-agent").strip() == "edgefleet_agent 0.1.0"
    assert (root / "etc/systemd/system" / UNIT.name).read_bytes() == UNIT.read_bytes()
    link = root / "usr/local/bin/edgefleet-agent"
    assert link.readlink() == Path("/opt/edgefleet/bin/edgefleet-agent")
    assert store.stat().st_mode & 0o777 == 0o750

    (store / "agent.toml").write_text("heartbeat_s = 5\n")
    make_wheel(wheels, "edgefleet_agent", "0.2.0")
    assert install(root, "--wheels", wheels).returncode == 0
    assert ok(program / "bin/edgefleet-agent").strip() == "edgefleet_agent 0.2.0"
    assert (store / "agent.toml").read_text() == "heartbeat_s = 5\n"

    assert install(root, "--uninstall").returncode == 0
    left = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert left == ["var/lib/edgefleet/agent.toml"]
    assert install(root, "--uninstall", "--purge").returncode == 0
    assert not store.exists()


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        (["--python", "/bin/false"], 1, "is not Python 3.11 or newer"),
        (["--wheels", "/nowhere"], 1, "no folder /nowhere"),
        (["--wheels"], 1, "--wheels needs a value"),
        (["--dance"], 2, "usage: install.sh"),
    ],
)
def test_the_script_says_what_is_wrong(
    tmp_path: Path, options: Sequence[str], code: int, complaint: str
) -> None:
    done = install(tmp_path / "root", *options)
    assert done.returncode == code
    assert complaint in done.stderr
    assert not (tmp_path / "root/opt").exists()


def test_the_configuration_to_begin_with_can_be_used_with_every_line_switched_on(
    tmp_path: Path,
) -> None:
    from edgefleet_agent import config

    text = (PACKAGING / "agent.toml").read_text("utf-8")
    settings = re.findall(r"(?m)^# (\[.*|\w+ = .*)$", text)
    path = tmp_path / "agent.toml"
    path.write_text("\n".join(settings), "utf-8")
    found = config.load(path, environment={})
    assert found.server.listen == "unix:/run/edgefleet/inference.sock"
    assert len(settings) == 8
    path.write_text(text, "utf-8")
    assert config.load(path, environment={}) == config.Config()


@needs_dpkg
def test_the_debian_package_holds_what_it_should(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "edgefleet_agent")
    script = PACKAGING / "build_deb.sh"
    ok("sh", script, "--wheels", tmp_path / "wheels", "--output", tmp_path)
    (package,) = tmp_path.glob("*.deb")
    assert package.name == "edgefleet-agent_0.1.0_all.deb"
    assert ok("dpkg-deb", "--field", package, "Depends").strip() == (
        "python3 (>= 3.11), python3-venv, passwd"
    )
    lines = [line.split() for line in ok("dpkg-deb", "--contents", package).splitlines()]
    held = {line[5]: (line[0], line[1]) for line in lines if not line[5].endswith("/")}
    assert set(held) == {
        "./lib/systemd/system/edgefleet-agent.service",
        "./usr/share/doc/edgefleet-agent/agent.md",
        "./usr/share/doc/edgefleet-agent/copyright",
        "./usr/share/edgefleet/agent.toml",
        "./usr/share/edgefleet/install.sh",
        "./usr/share/edgefleet/wheels/edgefleet_agent-0.1.0-py3-none-any.whl",
    }
    assert held["./usr/share/edgefleet/install.sh"] == ("-rwxr-xr-x", "root/root")
    ok("dpkg-deb", "--control", package, tmp_path / "control")
    scripts = {path.name for path in (tmp_path / "control").iterdir()}
    assert scripts == {"control", "postinst", "prerm", "postrm"}
    for name in scripts - {"control"}:
        ok("sh", "-n", tmp_path / "control" / name)


@pytest.mark.parametrize("name", ["install.sh", "build_deb.sh"])
def test_the_scripts_are_plain_sh_and_executable(name: str) -> None:
    path = PACKAGING / name
    ok("sh", "-n", path)
    assert os.access(path, os.X_OK)


def test_the_container_runs_as_nobody_in_particular_and_names_no_other_registry() -> None:
    lines = (PACKAGING / "Containerfile").read_text("utf-8").splitlines()
    assert [line for line in lines if line.startswith("FROM")] == ["FROM python:3.11-slim"]
    assert "USER edgefleet" in lines
    assert "VOLUME /var/lib/edgefleet" in lines
    (health,) = [line for line in lines if line.startswith("HEALTHCHECK")]
    assert '"edgefleet-agent", "status", "--running"' in health


def test_the_reference_of_settings_is_what_the_code_says() -> None:
    ok(sys.executable, REPOSITORY / "scripts/agent_settings.py", "--check")
