"""Nothing leaves the machine: no process of a profile asks for an address, opens a connection or keeps a report to send."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgebench
from edgebench import privacy
from tests.commands import PROJECT, TIME_LIMIT_S
from tests.conftest import picture
from tests.models import CLASSES, class_file, onnx_file, preprocess_file

# Python's own calls, in every process that finds this folder on its path.
AUDIT = """
import os, sys
ASKED = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto",
         "socket.sendmsg")
def note(event, arguments):
    if event in ASKED:
        with open(os.environ["ASKED_LOG"], "a") as log:
            log.write(f"{event} {arguments[1:]!r} {sys.argv}\\n")
sys.addaudithook(note)
with open(os.environ["ASKED_LOG"] + ".processes", "a") as log:
    log.write(f"{sys.orig_argv[1:3]}\\n")
"""
# Calls of native libraries: the address of the Internet families alone, for local sockets are no way out.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
static void note(const char *call, const char *what) {
  const char *path = getenv("ASKED_LOG");
  FILE *log = path ? fopen(path, "a") : NULL;
  if (log) { fprintf(log, "native %s %s\n", call, what ? what : ""); fclose(log); }
}
int connect(int fd, const struct sockaddr *to, socklen_t size) {
  if (to && (to->sa_family == AF_INET || to->sa_family == AF_INET6)) note("connect", "");
  return ((int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "connect"))(fd, to, size);
}
int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
  note("getaddrinfo", name);
  return ((int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))
          dlsym(RTLD_NEXT, "getaddrinfo"))(name, service, hints, found);
}
"""
NATIVE = "import ctypes; ctypes.CDLL(None).getaddrinfo(b'localhost', None, None, ctypes.byref(ctypes.c_void_p()))"


class Watched:
    """Runs processes that write down every attempt to reach a network, with a home folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.home, self.log = folder / "home", folder / "asked"
        (folder / "hooks").mkdir()
        (folder / "hooks" / "sitecustomize.py").write_text(AUDIT)
        self.home.mkdir()
        kept = {name: value for name, value in os.environ.items()
                if name not in privacy.SWITCHES and not name.startswith("XDG_")}
        self.environment = {
            **kept, "HOME": str(self.home), "ASKED_LOG": str(self.log), "EDGEBENCH_CACHE": str(folder / "cache"),
            "PYTHONPATH": os.pathsep.join([str(folder / "hooks"), str(PROJECT)])}
        self.native = shutil.which("cc") is not None
        if self.native:
            (folder / "shim.c").write_text(SHIM)
            subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "shim.so", folder / "shim.c", "-ldl"], check=True)
            self.environment["LD_PRELOAD"] = str(folder / "shim.so")

    def run(self, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *map(str, arguments)], env=self.environment, cwd=cwd, capture_output=True,
                              text=True, timeout=TIME_LIMIT_S, check=False)

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    @property
    def processes(self) -> str:
        return Path(f"{self.log}.processes").read_text()


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_an_attempt_would_be_seen(watched, tmp_path):
    watched.run("-c", "import socket; socket.getaddrinfo('localhost', 80)", cwd=tmp_path)
    assert any("socket.getaddrinfo" in line for line in watched.asked)
    watched.log.unlink()
    watched.run("-c", NATIVE, cwd=tmp_path)
    assert watched.native == any("native getaddrinfo" in line for line in watched.asked)


def test_a_profile_reaches_for_no_network_and_leaves_no_reports(watched, tmp_path):
    for part, first in (("data", 0), ("calibration", 100)):
        for k, name in enumerate(CLASSES):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(6):
                picture(first + 10 * k + number, 12, 12).save(tmp_path / part / name / f"{number}.png")
    done = watched.run(
        "-m", "edgebench", "profile", onnx_file(tmp_path / "model.onnx"), "--preprocess", preprocess_file(tmp_path),
        "--classes", class_file(tmp_path), "--data", tmp_path / "data", "--calibration-data", tmp_path / "calibration",
        "--recipe", "ort-fp32,openvino-int8", "--budget", "smoke", "--properties", "accuracy",
        "--paired", "14", "--out", tmp_path / "out", cwd=tmp_path)
    assert 0 == done.returncode, done.stderr
    assert 2 == len(list((tmp_path / "out").glob("*/run.json")))
    # The hooks were there in the process of the command and in all others.
    for module in ("edgebench", "edgebench.builder", "edgebench.worker", "edgebench.paired_worker"):
        assert str(["-m", module]) in watched.processes
    assert [] == watched.asked
    assert [] == [path for path in watched.home.rglob("*") if path.is_file() and "edgebench" not in str(path)]


LIBRARY = """
import json, os, sys
import edgebench
from edgebench import pytest_plugin
import onnxruntime, openvino, nncf
from nncf.telemetry import wrapper
import openvino.tools.ovc.telemetry_utils as converter
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print(json.dumps([type(wrapper.telemetry).__name__, converter.tm.__name__, os.environ["ORT_DISABLE_TELEMETRY"]]))
"""


def test_a_program_that_uses_the_library_sends_nothing_either(watched, tmp_path):
    done = watched.run("-c", LIBRARY, onnx_file(tmp_path / "model.onnx"), cwd=tmp_path)
    assert 0 == done.returncode, done.stderr
    assert ["MagicMock", "openvino.tools.ovc.telemetry_stub", "1"] == json.loads(done.stdout)
    assert [] == watched.asked
    assert [] == [path for path in watched.home.rglob("*") if path.is_file()]


def test_what_a_user_asks_for_is_still_downloaded():
    # Offline mode would refuse pretrained weights.
    assert not {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} & privacy.SWITCHES.keys()


def test_switches_win_over_what_was_set_before():
    environment = {"ORT_DISABLE_TELEMETRY": "0", "PATH": "/bin"}
    privacy.switch_off(environment)
    assert ("1", "/bin") == (environment["ORT_DISABLE_TELEMETRY"], environment["PATH"])


def test_every_part_of_the_package_switches_reports_off_first():
    assert edgebench.__name__ == privacy.__package__
    assert privacy.SWITCHES.items() <= dict(os.environ).items()
    assert sys.modules[privacy.REPORTING_PACKAGE] is None
