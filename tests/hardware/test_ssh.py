"""Boards over SSH: against a real sshd of our own, on this machine."""

import getpass
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgefleet_hardware import ssh
from edgefleet_hardware.cases import Case, Expected, Limits
from edgefleet_hardware.errors import TargetUnavailableError
from edgefleet_hardware.runtimes import Runtime

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
ROWS = np.arange(12, dtype=np.float32).reshape(1, 4, 3)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ssh.Connection]:
    """An sshd that lets this user in by key, and the client's configuration to reach it."""
    if SSHD is None:
        pytest.skip("sshd is not installed (scripts/system_packages.sh)")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
        )
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        # /home may be another's: the board's home is a folder of the test.
        f"SetEnv HOME={folder}/home\n"
    )
    (folder / "home").mkdir()
    public = (folder / "host.pub").read_text().split()[:2]
    (folder / "known").write_text(f"[127.0.0.1]:{port} {' '.join(public)}\n")
    (folder / "config").write_text(
        f"Host board stranger\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
        f"  IdentityFile {folder}/user\n  IdentitiesOnly yes\n"
        f"Host board\n  UserKnownHostsFile {folder}/known\n"
        f"Host stranger\n  UserKnownHostsFile {folder}/nobody\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    daemon = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except ConnectionRefusedError:
            assert daemon.poll() is None, daemon.stderr and daemon.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    yield ssh.Connection("board", folder / "config", sys.executable)
    daemon.terminate()
    daemon.communicate()


def doubling(times: float = 2.0) -> bytes:
    """A model that multiplies its rows."""
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "doubling",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor("factor", onnx.TensorProto.FLOAT, [1], [times])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def case(name: str, data: bytes) -> Case:
    expected = Expected({"y": ROWS * 2}, {"y": 1e-6}, rows=4)
    return Case(name, "onnx", data, inputs={"x": ROWS}, expected=expected, limits=Limits(20.0))


def test_a_board_is_asked_what_it_has_and_runs_cases_with_times_and_memory(
    host: ssh.Connection,
) -> None:
    (target,) = [
        one for one in ssh.targets(host, [], "rpi4", 2) if one.about.runtime == "onnxruntime"
    ]
    assert target.about.version == onnxruntime.__version__
    assert target.about.board == "rpi4"
    assert not target.about.is_emulated
    right, wrong, broken = target.run(
        [case("right", doubling()), case("wrong", doubling(3)), case("broken", b"no model")]
    )
    assert (right.kind, wrong.kind, broken.kind) == ("right", "wrong", "refused")
    assert right.latency_us is not None
    assert 0 < right.latency_us.p50 <= right.latency_us.p90 <= right.latency_us.p99
    assert (len(right.loads), len(wrong.loads), len(broken.loads)) == (2, 2, 0)
    assert right.memory_peak_bytes is not None
    assert right.memory_peak_bytes > 10 << 20


def test_nothing_of_a_run_is_left_on_the_board(host: ssh.Connection) -> None:
    before = set(Path("/tmp").glob("tmp.*"))
    target = ssh.targets(host, [Runtime("onnxruntime", onnxruntime.__version__)])[0]
    target.run([case("right", doubling())])
    assert set(Path("/tmp").glob("tmp.*")) == before


def test_an_unknown_host_key_is_refused_without_a_question(host: ssh.Connection) -> None:
    with pytest.raises(TargetUnavailableError, match=r"stranger: cannot be reached: .*[Hh]ost key"):
        ssh.targets(ssh.Connection("stranger", host.config, host.python), [])


def test_a_board_without_the_interpreter_says_so(host: ssh.Connection) -> None:
    with pytest.raises(TargetUnavailableError, match=r"ended with code 127: .*python9"):
        ssh.targets(ssh.Connection("board", host.config, "python9"), [])


def test_a_command_that_does_not_end_is_given_up(host: ssh.Connection) -> None:
    begun = time.monotonic()
    with pytest.raises(TargetUnavailableError, match=r"board: no answer within 0\.5 s"):
        host.run("sleep 60", limit_s=0.5)
    assert time.monotonic() - begun < 30


def test_a_board_that_cannot_be_reached_is_no_result() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(TargetUnavailableError, match="cannot be reached"):
        ssh.Connection(f"ssh://127.0.0.1:{port}").run("true")


def archive(name: str, data: bytes = b"{}", kind: bytes = tarfile.REGTYPE) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size, member.type = len(data) if kind == tarfile.REGTYPE else 0, kind
        member.linkname = "/etc/passwd"
        tar.addfile(member, io.BytesIO(data))
    return made.getvalue()


@pytest.mark.parametrize(
    "sent",
    [
        archive("../answers.jsonl"),
        archive("/answers.jsonl"),
        archive("on_target.py"),
        archive("answers.jsonl", kind=tarfile.SYMTYPE),
        archive("0.out.npz", kind=tarfile.LNKTYPE),
        archive("x.out.npz"),
    ],
)
def test_files_that_nobody_asked_for_are_refused(sent: bytes, tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailableError, match="nobody asked for"):
        ssh._unpack(sent, tmp_path, "board")
    assert list(tmp_path.rglob("*")) == []


def test_an_archive_that_is_cut_off_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailableError, match="not whole"):
        ssh._unpack(archive("answers.jsonl", b"{}" * 2000)[:700], tmp_path, "board")


@pytest.mark.parametrize(
    ("before", "after", "slowed"),
    [
        (b"throttled=0x0", b"throttled=0x0", False),
        (b"throttled=0x50000", b"throttled=0x50000", False),  # long ago
        (b"throttled=0x50000", b"throttled=0x50005", True),  # now
        (b"throttled=0x0", b"throttled=0x20000", True),  # in between
        (b"", b"", False),  # no Raspberry Pi
        (b"vcgencmd: no", b"=zz", False),
    ],
)
def test_a_board_that_slowed_itself_down_in_the_run_is_known_by_its_firmware(
    before: bytes, after: bytes, slowed: bool
) -> None:
    assert ssh._slowed(before, after) == slowed
