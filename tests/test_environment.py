"""What is observed, from folder trees written like the kernel writes /proc and /sys."""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from edgebench import environment
from edgebench.observed import MemoryTaken
from tests import trees

X86 = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse2 avx avx2 avx512f avx512_vnni avx_vnni amx_bf16 amx_tile amx_int8
vmx flags\t: vnmi preemption_timer

processor\t: 1
vendor_id\t: GenuineIntel
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse2 avx avx2 avx512f avx512_vnni avx_vnni amx_bf16 amx_tile amx_int8
"""
ARM = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp asimdrdm asimddp i8mm bf16
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd0b

Revision\t: c04170
Serial\t\t: 10000000abcdef01
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""


def tree(root: Path, **files: str) -> Path:
    """Write files below `root`; a double underscore in a name stands for a slash, a single dot for itself."""
    places = {"cpuinfo": "proc/cpuinfo", "meminfo": "proc/meminfo", "status": "proc/self/status",
              "quota": "sys/fs/cgroup/cpu.max", "governor": "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"}
    for name, text in files.items():
        path = root / places[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def eight_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


class TestCpu:
    def test_name_and_features_of_an_x86_processor(self, tmp_path):
        found = environment.observe({}, root=tree(tmp_path, cpuinfo=X86))
        assert "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz" == found.cpu
        assert {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8"} == set(found.cpu_features)

    def test_name_and_features_of_an_arm_processor(self, tmp_path):
        found = environment.observe({}, root=tree(tmp_path, cpuinfo=ARM))
        assert "Raspberry Pi 5 Model B Rev 1.0" == found.cpu
        assert {"asimddp", "i8mm", "bf16"} == set(found.cpu_features)

    def test_features_are_whole_words(self, tmp_path):
        # avx512_bf16 is not bf16, and avx512f says nothing about avx512_vnni.
        root = tree(tmp_path, cpuinfo="model name\t: X\nflags\t\t: avx512_bf16 avx512fp16 xavx2\n")
        assert ("avx512_bf16",) == environment.cpu_features(root)

    def test_without_cpuinfo_there_are_no_features_but_still_a_name(self, tmp_path):
        found = environment.observe({}, root=tmp_path)
        assert () == found.cpu_features
        assert found.cpu

    @pytest.mark.parametrize(("features", "expected"), [
        (("avx512_bf16",), True), (("amx_bf16", "avx2"), True), (("asimddp", "bf16"), True),
        (("avx2", "avx512f", "avx512_vnni", "amx_int8"), False), ((), False)])
    def test_bf16_is_supported_exactly_where_an_instruction_for_it_is_there(self, features, expected):
        assert expected is environment.supports_bf16(features)


@pytest.mark.usefixtures("eight_cpus")
class TestUsableCpus:
    @pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
    def test_quota_of_cgroup_version_1(self, tmp_path, folder):
        trees.grow(tmp_path, {f"sys/fs/cgroup/{folder}/cpu.cfs_{name}_us": value
                              for name, value in (("quota", "250000"), ("period", "100000"))})
        assert (2.5, 2) == (environment.cpu_limit(tmp_path), environment.usable_cpus(tmp_path))
        trees.grow(tmp_path, {f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us": "-1"})
        assert (None, 8) == (environment.cpu_limit(tmp_path), environment.usable_cpus(tmp_path))

    @pytest.mark.parametrize(("quota", "expected"), [
        ("200000 100000\n", 2), ("150000 100000\n", 1), ("50000 100000\n", 1), ("1600000 100000\n", 8),
        ("max 100000\n", 8), ("300000 50000\n", 6)])
    def test_quota_of_the_container_caps_the_affinity(self, tmp_path, quota, expected):
        assert expected == environment.usable_cpus(tree(tmp_path, quota=quota))

    def test_affinity_alone_counts_where_there_is_no_quota(self, tmp_path):
        assert 8 == environment.usable_cpus(tmp_path)

    def test_affinity_below_the_quota_wins(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
        assert 1 == environment.usable_cpus(tree(tmp_path, quota="400000 100000"))


class TestObserve:
    def test_reads_everything_that_is_there(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
        monkeypatch.setattr(os, "cpu_count", lambda: 16)
        monkeypatch.setattr(environment, "busy_cpus", lambda root: 1.5)
        root = tree(tmp_path, cpuinfo=X86, meminfo="MemTotal:       32768 kB\nMemFree:        1 kB\n",
                    quota="300000 100000", governor="powersave\n")
        found = environment.observe({"onnxruntime": "1.23"}, root=root, load_before=0.25)
        assert (16, 3, 32768 * 1024, "powersave", 0.25, 1.5) == (
            found.cpus_online, found.cpus_usable, found.memory_bytes, found.governor, found.load_before,
            found.load_after)

    def test_clocks_and_limits(self, tmp_path, monkeypatch):
        monkeypatch.setattr(environment, "busy_cpus", lambda root: 0.0)
        files = {**trees.ORIN_NANO_JP6.files, "sys/class/devfreq/17000000.gpu/min_freq": "918000000",
                 "sys/fs/cgroup/memory.max": "4294967296", "sys/fs/cgroup/cpu.max": "150000 100000"}
        found = environment.observe({}, root=trees.grow(tmp_path, files))
        assert ("schedutil", "nvhost_podgov", "CPU not pinned, GPU pinned", 1.5, 2**32) == (
            found.governor, found.gpu_governor, found.clocks, found.cpu_limit, found.memory_limit_bytes)

    @pytest.mark.parametrize(("file", "text", "expected"), [
        ("memory.max", "max", None), ("memory/memory.limit_in_bytes", "9223372036854771712", None),
        ("memory/memory.limit_in_bytes", "1048576", 2**20)])
    def test_memory_limit_of_a_container(self, tmp_path, file, text, expected):
        assert expected == environment.memory_limit_bytes(trees.grow(tmp_path, {f"sys/fs/cgroup/{file}": text}))

    def test_memory_taken_is_the_fall_between_two_moments(self, tmp_path):
        text = "MemTotal: 8000 kB\nMemFree: 1 kB\nMemAvailable: {} kB\nCmaTotal: {} kB\nCmaFree: {} kB\n"
        looks = [environment.free_memory(tree(tmp_path, meminfo=text.format(*numbers))) for numbers in (
            (6000, 512, 500), (4500, 512, 420), (5000, 0, 0))]
        assert MemoryTaken(available_bytes=1500 * 1024, contiguous_bytes=80 * 1024) == looks[0].less(looks[1])
        assert MemoryTaken(available_bytes=-500 * 1024, contiguous_bytes=None) == looks[1].less(looks[2])
        nothing = environment.free_memory(tmp_path / "none")
        assert MemoryTaken(available_bytes=None, contiguous_bytes=None) == looks[0].less(nothing)

    def test_what_is_missing_is_none_never_zero(self, tmp_path):
        found = environment.observe({}, root=tmp_path)
        assert (None, None, None) == (found.memory_bytes, found.governor, found.load_before)

    def test_packages_hold_the_runtime_and_what_decodes_images(self, tmp_path):
        packages = environment.observe({"openvino": "2026.4"}, root=tmp_path).packages
        assert {"openvino": "2026.4", "numpy": version("numpy"), "pillow": version("pillow")} == packages

    def test_busy_cpus_are_the_time_in_use_between_two_readings(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "cpu_count", lambda: 4)
        file = tmp_path / "proc" / "stat"
        file.parent.mkdir()
        # user nice system idle iowait irq softirq steal: 100 of 400 jiffies in use, waiting for disks not counted.
        file.write_text("cpu  10 0 10 500 20 0 0 0 0 0\ncpu0 1 1 1 1\n")

        def sleep(seconds):
            file.write_text("cpu  60 20 20 780 40 5 5 10 0 0\n")

        monkeypatch.setattr(environment.time, "sleep", sleep)
        assert pytest.approx(4 * 100 / 400) == environment.busy_cpus(tmp_path)

    def test_load_is_none_on_systems_that_do_not_tell(self, tmp_path):
        assert environment.busy_cpus(tmp_path, seconds=0) is None
        assert environment.observe({}, root=tmp_path).load_after is None

    def test_this_machine_can_be_observed(self):
        found = environment.observe({})
        assert f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}" in found.python
        assert 1 <= found.cpus_usable <= found.cpus_online
        assert found.hostname
        assert found.os.startswith(os.uname().sysname)


class TestPeakMemory:
    def test_is_the_high_water_mark_in_bytes(self, tmp_path):
        status = "Name:\tpython\nVmPeak:\t  999999 kB\nVmHWM:\t   51234 kB\nVmRSS:\t   40000 kB\n"
        assert 51234 * 1024 == environment.peak_memory_bytes(tree(tmp_path, status=status))

    @pytest.mark.parametrize("status", ["", "Name:\tpython\nVmRSS:\t   40000 kB\n"])
    def test_is_none_where_the_kernel_does_not_tell(self, tmp_path, status):
        assert environment.peak_memory_bytes(tree(tmp_path, status=status)) is None
        assert environment.peak_memory_bytes(tmp_path / "nowhere") is None

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc on this system")
    def test_rises_when_this_process_takes_more_memory(self):
        text = Path("/proc/self/status").read_text()
        if "VmHWM" not in text:
            pytest.skip("this kernel shows no VmHWM")
        before = int(re.search(r"VmHWM:\s+(\d+)", text).group(1)) * 1024
        block = bytearray(os.urandom(1) * (64 << 20))
        after = environment.peak_memory_bytes()
        assert after >= before
        resident = int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024
        assert len(block) < resident <= after
