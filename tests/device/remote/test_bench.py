"""Work on another machine through a real sshd on loopback, with a Python that has numpy and ONNX Runtime only."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from onnxdistill import compress
from onnxdistill.device.costs.deviceprofile import remembered_profile
from onnxdistill.device.costs.layers import read_exported
from onnxdistill.device.packages import runtime_distributions
from onnxdistill.device.places import Here
from onnxdistill.device.profiling.trace import trace
from onnxdistill.device.remote.bench import remote_bench
from onnxdistill.device.remote.place import There
from onnxdistill.device.remote.profile import remote_profile
from onnxdistill.device.session import SessionSettings
from onnxdistill.device.verdicts import Slo
from onnxdistill.errors import (
    FallbackError,
    MissingPackageError,
    ModelFileError,
    OutputError,
    ProviderError,
    UsageError,
)
from tests.device.costs.models import network
from tests.device.remote.files import externalize, script

SSHD = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
needs_sshd = pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="there is no OpenSSH server here")

# Packages that ONNX Runtime needs, which is itself installed by one of several names.
NEEDED = ("numpy", "flatbuffers", "packaging", "protobuf")
NOISE = 'echo Welcome; printf "no end of line"; echo more >&2; eval "$SSH_ORIGINAL_COMMAND"'


@dataclass(frozen=True)
class Device:
    """What the sshd leads to.

    Attributes:
        python: With numpy and ONNX Runtime.
        bare: With neither.
        tmp: Where temporary folders are made.
        ssh: The client, with a configuration that has the aliases `device`, `noisy` and more.
    """

    python: Path
    bare: Path
    tmp: Path
    ssh: tuple[str, ...]

    @property
    def target(self) -> str:
        return f"device:{self.python}"

    def processes(self, word: str) -> list[int]:
        """Those that run its Python with a word in their arguments."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
                if command.startswith(str(self.python)) and word in command:
                    found.append(int(folder.name))
        return found

    def is_clean(self) -> bool:
        """Whether nothing is left, now or a little later."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if not any(self.tmp.iterdir()) and not self.processes(""):
                return True
            time.sleep(0.05)
        return False


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp("remote")
    (tmp := folder / "tmp").mkdir()
    for name in ("venv", "bare"):
        venv.create(folder / name, with_pip=False)
    python = folder / "venv/bin/python"
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    for name in (*runtime_distributions(), *NEEDED):
        link_package(name, packages)
    with sshd(folder, tmp) as config:
        yield Device(python, folder / "bare/bin/python", tmp, ("ssh", "-F", str(config)))


def link_package(name: str, place: Path) -> None:
    """Lets another Python import a package that is installed here."""
    package = metadata.distribution(name)
    tops = {file.parts[0] for file in package.files or ()} - {".."}  # programs are elsewhere
    assert tops, f"nothing says which files {name} has"
    for top in tops:
        (place / top).symlink_to(str(package.locate_file(top)))


@contextlib.contextmanager
def sshd(folder: Path, tmp: Path) -> Iterator[Path]:
    """Runs one as the current user, with keys of its own; gives the configuration of a client."""
    for name in ("host", "device", "noisy", "sftp", "stranger"):
        generate = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(generate, check=True, capture_output=True)
    public = {name: (folder / f"{name}.pub").read_text() for name in ("host", "device", "noisy", "sftp")}
    escaped = NOISE.replace('"', '\\"')
    (folder / "authorized_keys").write_text(
        f'{public["device"]}command="{escaped}" {public["noisy"]}command="echo sftp connections only" {public["sftp"]}'
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public['host']}")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\n"
        f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nSetEnv TMPDIR={tmp}\n"
    )
    common = f"HostName 127.0.0.1\nPort {port}\nIdentitiesOnly yes\nIdentityAgent none\n"
    known = f"UserKnownHostsFile {folder}/known_hosts\n"
    hosts = [
        f"Host {name}\n{common}{known}IdentityFile {folder}/{name}\n"
        for name in ("device", "noisy", "sftp", "stranger")
    ]
    hosts.append(f"Host unknown\n{common}UserKnownHostsFile {folder}/none\nIdentityFile {folder}/device\n")
    hosts.append("Host closed\nHostName 127.0.0.1\nPort 1\n")
    (config := folder / "ssh_config").write_text("".join(hosts))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it as root, and Debian makes it when the service starts
    log = os.open(folder / "sshd.log", os.O_WRONLY | os.O_CREAT)
    server = subprocess.Popen(
        [str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")],
        stdout=subprocess.DEVNULL,
        stderr=log,
    )
    try:
        _wait_for(port, server, folder / "sshd.log")
        yield config
    finally:
        server.terminate()
        server.wait()
        os.close(log)


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)):
                return
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)


@needs_sshd
def test_the_same_benchmark_there(device: Device, make_model: Callable[..., Path]) -> None:
    for package in ("click", "rich", "onnx", "torch", "onnxdistill"):
        alone = subprocess.run([device.python, "-c", f"import {package}"], capture_output=True, check=False, cwd="/")
        assert alone.returncode == 1, package
    odd = externalize(make_model("an odd 'folder' $(false)/small.onnx"), "weights/w.bin")
    models = {"small": odd, "large": make_model("large.onnx", width=64)}
    phases: dict[str, list[tuple[float, float]]] = {}
    result = remote_bench(
        device.target,
        models,
        {
            "seconds": 0.5,
            "batch": [1, 2],
            "shapes": {"x": (1, 3, 8, 8)},
            "inputs": {"x": np.ones((4, 3, 8, 8), np.float32)},
            "slo": Slo(50.0, 1e6),
            "check_outputs": False,
            "provider_options": {"cpu": {}},
        },
        on_progress=lambda phase, done, total: phases.setdefault(phase, []).append((done, total)),
        ssh=device.ssh,
    )
    assert [case.name for case in result.cases] == [
        f"{model}, batch {batch}" for model in ("small", "large") for batch in (1, 2)
    ]
    assert {case.model: case.path for case in result.cases} == {name: str(path) for name, path in models.items()}
    assert result.cases[0].size_bytes == odd.stat().st_size + (odd.parent / "weights/w.bin").stat().st_size
    assert result.cases[1].inputs == {"x": (2, 3, 8, 8)}
    assert [verdict.outcome for verdict in result.verdicts] == ["met"] * 4
    assert result.host.usable_cpus == len(os.sched_getaffinity(0))
    assert all(case.memory is not None for case in result.cases)
    assert list(phases) == ["send", "load", "time", "memory"]
    done, total = phases["send"][-1]
    assert done == total > sum(path.stat().st_size for path in models.values())
    assert device.is_clean()


@needs_sshd
def test_a_login_that_prints(device: Device, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXDISTILL_SSH", shlex.join(device.ssh))
    result = remote_bench(f"noisy:{device.python}", {"model": make_model()}, {"runs": 5})
    assert result["model"].latency_ms.count == 5


@needs_sshd
def test_an_earlier_result(device: Device, make_model: Callable[..., Path]) -> None:
    models = {"model": make_model()}
    earlier = remote_bench(device.target, models, {"seconds": 0.3}, ssh=device.ssh)
    result = remote_bench(device.target, models, {"seconds": 0.3, "earlier": earlier}, ssh=device.ssh)
    assert result["model"].compared_with == "earlier model"
    elsewhere = replace(earlier, host=replace(earlier.host, cpu="another"))
    with pytest.raises(UsageError, match=r"^On device: The earlier benchmark ran on another machine: its processor"):
        remote_bench(device.target, models, {"earlier": elsewhere}, ssh=device.ssh)


@needs_sshd
def test_neither_onnxruntime_nor_onnx_is_needed_here(device: Device, make_model: Callable[..., Path]) -> None:
    code = (
        "import pathlib, sys\n"
        "for name in ('onnxruntime', 'onnx', 'torch'): sys.modules[name] = None\n"
        "from onnxdistill.device.remote.bench import remote_bench\n"
        f"model = pathlib.Path({str(make_model())!r})\n"
        f"result = remote_bench({device.target!r}, {{'m': model}}, {{'runs': 7}}, ssh={device.ssh!r})\n"
        "print(len(result['m'].every_ms()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("7\n", "")


@needs_sshd
def test_errors_of_the_benchmark_there(
    device: Device, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(model: Path, **options: object) -> None:
        remote_bench(device.target, {"model": model}, options, ssh=device.ssh)

    with pytest.raises(UsageError, match=r"^On device: A batch has at least 1 item, and 0 were asked for\.$"):
        run(make_model(), batch=0)
    with pytest.raises(FallbackError, match=r"^On device: The installed ONNX Runtime has no execution provider 'cuda'"):
        run(make_model(), provider="cuda")
    monkeypatch.chdir(tmp_path)
    Path("bad.onnx").write_text("no model")
    with pytest.raises(ModelFileError, match=r"^On device: bad\.onnx is a text file and not an ONNX model"):
        run(Path("bad.onnx"))
    assert device.is_clean()


@needs_sshd
def test_what_is_missing_there(device: Device, make_model: Callable[..., Path], tmp_path: Path) -> None:
    def run(python: object) -> None:
        remote_bench(f"device:{python}", {"model": make_model()}, {"runs": 5}, ssh=device.ssh)

    with pytest.raises(
        UsageError, match=r"^There is no Python python9 on device: .*python9.*not found\. Name the path"
    ):
        run("python9")
    with pytest.raises(
        MissingPackageError,
        match=rf"^On device: The Python at {device.bare} does not have numpy and onnxruntime\. "
        rf"Run there: {device.bare} -m pip install numpy onnxruntime\.",
    ):
        run(device.bare)
    old = f"exec {device.python} -c \"import sys; sys.version_info = (3, 9); sys.version = '3.9.2 (x)'; $2\""
    with pytest.raises(UsageError, match=r"old on device is Python 3\.9\.2, and 3\.11 or newer is needed\."):
        run(script(tmp_path / "old", old))
    with pytest.raises(OutputError, match=r"^On device: The benchmark cannot be set up in .*: File too large\."):
        run(script(tmp_path / "small", f'ulimit -f 20; exec {device.python} "$@"'))
    with pytest.raises(UsageError, match=r"^What came from device is no answer to a benchmark: hello\. Check"):
        run(script(tmp_path / "other", "echo hello"))
    assert device.is_clean()


@needs_sshd
def test_no_room_there(device: Device, make_model: Callable[..., Path]) -> None:
    model = externalize(make_model(), "w.bin")
    total = max(shutil.disk_usage(place).total for place in (device.tmp, Path.home()))
    os.truncate(model.parent / "w.bin", total + 10**9)  # takes no room itself
    with pytest.raises(OutputError, match=r"^On device: There is no room for [\d,.]+ MB in .* Free space there\.$"):
        remote_bench(device.target, {"model": model}, {}, ssh=device.ssh)


@needs_sshd
@pytest.mark.parametrize(
    ("alias", "message"),
    [
        ("closed", r"ssh cannot connect to closed: .*Connection refused\. Check that this works: ssh closed true\."),
        ("stranger", r"ssh cannot connect to stranger: .*Permission denied \(publickey\)\. .*ssh-copy-id stranger"),
        ("unknown", r"ssh cannot connect to unknown: Host key verification failed\. Log in once"),
        ("sftp", r"What came from sftp is no answer to a benchmark: sftp connections only\. "),
    ],
)
def test_no_way_in(device: Device, make_model: Callable[..., Path], alias: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        remote_bench(f"{alias}:{device.python}", {"model": make_model()}, {}, ssh=device.ssh)


@needs_sshd
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, r"^The benchmark was killed on device \(SIGKILL\); most likely its memory did not suffice\."),
        (signal.SIGILL, r"^ONNX Runtime crashed on device \(SIGILL\)\."),
    ],
)
def test_a_benchmark_that_is_killed(
    device: Device, make_model: Callable[..., Path], number: signal.Signals, message: str
) -> None:
    def on_progress(phase: str, _done: float, _total: float) -> None:
        if phase == "time":
            for runner in device.processes("onnxdistill.device.remote.runner"):
                os.kill(runner, number)

    with pytest.raises(UsageError, match=message):
        remote_bench(device.target, {"model": make_model()}, {"seconds": 60}, on_progress, ssh=device.ssh)
    assert device.is_clean()


@needs_sshd
@pytest.mark.parametrize("when", ["send", "load", "time"])
def test_an_interruption_ends_it_there(device: Device, make_model: Callable[..., Path], when: str) -> None:
    def on_progress(phase: str, _done: float, _total: float) -> None:
        if phase == when:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remote_bench(device.target, {"model": make_model()}, {"seconds": 60}, on_progress, ssh=device.ssh)
    assert device.is_clean()


@needs_sshd
def test_a_connection_that_breaks(device: Device, make_model: Callable[..., Path]) -> None:
    def on_progress(phase: str, _done: float, _total: float) -> None:
        if phase == "time":
            for receiver in device.processes("stdin.buffer"):
                os.kill(_session_of(receiver), signal.SIGKILL)

    with pytest.raises(UsageError, match=r"^The benchmark on device ended without a result: .*closed.*\. Try again"):
        remote_bench(device.target, {"model": make_model()}, {"seconds": 60}, on_progress, ssh=device.ssh)
    assert device.is_clean()


@needs_sshd
def test_a_machine_that_shuts_down(device: Device, make_model: Callable[..., Path]) -> None:
    def on_progress(phase: str, _done: float, _total: float) -> None:
        if phase == "time":
            for receiver in device.processes("stdin.buffer"):
                os.kill(receiver, signal.SIGTERM)

    with pytest.raises(UsageError, match=r"^The benchmark on device ended without a result, and nothing says why"):
        remote_bench(device.target, {"model": make_model()}, {"seconds": 60}, on_progress, ssh=device.ssh)
    assert device.is_clean()


def _session_of(process: int) -> int:
    """The sshd that a process was started by, maybe through a shell."""
    while not Path(f"/proc/{process}/comm").read_text().startswith("sshd"):
        status = Path(f"/proc/{process}/status").read_text().splitlines()
        process = next(int(line.split()[1]) for line in status if line.startswith("PPid:"))
    return process


def test_no_ssh_here(make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^The program /none/ssh cannot be started: No such file or directory\."):
        remote_bench("device", {"model": make_model()}, {}, ssh=["/none/ssh"])
    monkeypatch.setenv("ONNXDISTILL_SSH", "ssh 'open")
    with pytest.raises(UsageError, match="ONNXDISTILL_SSH does not read: No closing quotation"):
        remote_bench("device", {"model": make_model()}, {})


@needs_sshd
def test_all_that_a_student_is_made_by_is_measured_there(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXDISTILL_CACHE", str(tmp_path / "cache"))
    wide, narrow = network(tmp_path / "wide.onnx", 64), network(tmp_path / "narrow.onnx", 8)
    there, settings = There(device.target, ssh=device.ssh), SessionSettings()
    assert there.host.usable_cpus == len(os.sched_getaffinity(0))
    assert there.key == f"elsewhere {device.target} {Here().key}"
    assert there.compare(wide, narrow, settings, until="close").low > 1
    feeds = {"x": np.zeros((1, 3, 16, 16), np.float32)}
    traced, here = there.trace(wide, feeds, settings), trace(wide, feeds, settings)
    assert [node.op_type for node in traced.nodes] == [node.op_type for node in here.nodes]
    timed = there.bench({"m": wide}, seconds=0.2, on_progress=lambda *_: None)
    assert timed.cases[0].path == str(wide)
    layers = read_exported(wide, feeds).layers
    said: list[str] = []
    first = there.profile(layers, settings, 16, said.append)
    assert {layer.kind for layer in layers} == first.surfaces.keys()
    assert any(text.startswith("measuring float32 ") for text in said)
    # What is known is sent, and not measured again; nor by another process.
    said.clear()
    again = There(device.target, ssh=device.ssh).profile(layers, settings, 16, said.append)
    assert again.surfaces == first.surfaces
    assert said == []
    # But not what another machine with the same facts has measured.
    assert remembered_profile(there.host, settings, "another one") is None
    assert remembered_profile(there.host, settings, "") is None
    assert device.is_clean()
    with pytest.raises(ProviderError, match=r"^On device: "):
        there.check(SessionSettings(provider="cuda"))


@needs_sshd
def test_a_student_for_another_machine(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is timed here, where the tests run, although that is the same machine."""

    def here(*_: object, **__: object) -> None:
        pytest.fail("this machine was asked")

    for name in ("bench", "compare", "trace", "profile_device"):
        monkeypatch.setattr(f"onnxdistill.device.places.{name}", here)
    monkeypatch.setenv("ONNXDISTILL_SSH", shlex.join(device.ssh))
    monkeypatch.setenv("ONNXDISTILL_CACHE", str(tmp_path / "cache"))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "there"\n[data]\nsource = "digits"\ncalibration = 64\n[teacher]\nnetwork = "digits-resnet"\n'
        "[teacher.train]\nepochs = 1\nlearning_rate = 0.1\n[bench]\nseconds = 0.2\n[prune]\nratio = 0.5\n"
    )
    report = compress(recipe, out=tmp_path / "run", overrides=[f"bench.remote={device.target}"])
    assert any(note.startswith("Latencies are of another machine, ") for note in report.notes)
    assert report.recipe["bench"]["remote"] == device.target
    assert [row.stage for row in report.rows if row.applied] == ["teacher", "prune"]
    assert device.is_clean()
    with pytest.raises(UsageError, match="stranger"):
        compress(recipe, out=tmp_path / "other", overrides=["bench.remote=stranger"])


@needs_sshd
def test_the_profile_of_a_machine(device: Device, tmp_path: Path) -> None:
    phases: list[str] = []
    profile = remote_profile(
        device.target,
        {"m": network(tmp_path / "m.onnx", 16)},
        {"step": 16, "precisions": ["int8"]},
        on_progress=lambda phase, _done, _total: phases.append(phase),
        ssh=device.ssh,
    )
    assert len(profile.surfaces) == 5
    assert profile.host.usable_cpus == len(os.sched_getaffinity(0))
    assert phases[0] == "send"
    assert "int8 5x5 depthwise on 8x8" in phases
    assert device.is_clean()
    with pytest.raises(UsageError, match=r"^On device: Widths are multiples of at least 1"):
        remote_profile(device.target, {"m": tmp_path / "m.onnx"}, {"step": 0}, ssh=device.ssh)
