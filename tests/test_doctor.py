"""What works on a machine and why the rest does not: boards as small trees, and this machine as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgebench import doctor
from tests import trees
from tests.fake_nvml import Fake


def examined(root: Path, *, tools=None, gpus: Fake | None = None) -> dict[str, doctor.Finding]:
    found = doctor.examine(root, runner=trees.Tools(tools), library=gpus or Fake(driver=False), look_s=0.05)
    return {one.what: one for one in found}


class TestBoards:
    @pytest.mark.parametrize("board", trees.BOARDS, ids=lambda one: one.name)
    def test_every_board_is_recognised_with_its_evidence(self, board, tmp_path):
        found = examined(trees.grow(tmp_path, board.files), tools=board.tools)
        device = found["device"]
        assert (True, board.device) == (device.works, device.detail.partition(":")[0])
        if board.module:
            assert f"module {board.module} (" in device.detail

    @pytest.mark.parametrize("board", [one for one in trees.BOARDS if one.device.startswith("jetson")], ids=lambda one: one.name)
    def test_a_jetson_tells_its_software_and_power_mode(self, board, tmp_path):
        found = examined(trees.grow(tmp_path, board.files), tools=board.tools)["JetPack"]
        assert f"JetPack {board.jetpack}, L4T {board.l4t}, power mode {board.power_mode or 'unknown'}" == found.detail

    def test_an_orin_tells_which_sensors_work_and_what_would_give_throttling_away(self, tmp_path):
        found = examined(trees.grow(tmp_path, trees.ORIN_NANO_JP6.files))
        assert found["power"].works
        assert found["power"].detail.startswith("total by ina3221/VDD_IN, scope module; ")
        assert "cpu-thermal" in found["temperatures"].detail
        assert "cv0-thermal: " in found["temperatures"].detail, "a sensor that is off is named with the reason"
        assert "17000000.gpu" in found["clocks"].detail
        assert "over-current counters (oc1, oc2, oc3)" in found["throttle evidence"].detail

    def test_a_raspberry_pi_tells_that_its_flags_can_be_read(self, tmp_path):
        found = examined(trees.grow(tmp_path, trees.PI.files), tools=trees.PI.tools)
        assert "total by pmic/estimate, scope board" in found["power"].detail
        assert "get_throttled" in found["throttle evidence"].detail

    def test_a_pi_without_its_tool_says_so(self, tmp_path):
        found = examined(trees.grow(tmp_path, trees.PI.files))["power"]
        assert not found.works
        assert "vcgencmd is not installed" in found.detail
        assert "--meter FILE" in found.detail


class TestPlainMachines:
    def test_a_machine_without_any_sensor_says_why(self, tmp_path):
        found = examined(tmp_path)
        assert (True, "cpu") == (found["device"].works, found["device"].detail.partition(":")[0])
        assert "RAPL: the kernel shows no intel-rapl zone" in found["power"].detail
        assert {"power": False, "temperatures": False, "clocks": False, "throttle evidence": False} == {
            what: found[what].works for what in ("power", "temperatures", "clocks", "throttle evidence")}
        assert "only the latencies themselves would tell" in found["throttle evidence"].detail

    def test_energy_counters_that_only_root_may_read_say_so(self, tmp_path, monkeypatch):
        trees.grow(tmp_path, trees.X86.files)
        for path in tmp_path.glob("sys/class/powercap/*/energy_uj"):
            trees.forbid(monkeypatch, path)
            break
        found = examined(tmp_path)["power"]
        assert "only root may read it" in found.detail

    def test_a_gpu_is_recognised_by_its_name_and_its_sensors_are_read(self, tmp_path):
        found = examined(tmp_path, gpus=Fake())
        assert "l4: " in found["device"].detail
        assert "GPU NVIDIA L4 (NVML)" in found["device"].detail
        assert (True, "NVIDIA L4") == (found["GPU by NVML"].works, found["GPU by NVML"].detail)
        assert "total by nvml/0/energy, scope" in found["power"].detail
        assert "nvml/0" in found["throttle evidence"].detail

    def test_a_gpu_that_no_file_describes_is_told_with_what_to_do(self, tmp_path):
        found = examined(tmp_path, gpus=Fake(names=("Future GPU",)))
        assert "Future GPU" in found["GPU by NVML"].detail
        assert found["device"].detail

    def test_without_a_driver_there_is_a_reason_for_each_thing_that_needs_one(self, tmp_path):
        found = examined(tmp_path)
        assert "NVML does not start" in found["GPU by NVML"].detail
        if not found["CUDA"].works:
            assert not found["backend tensorrt_rtx"].works
            assert "CUDA" in found["CUDA"].detail or "driver" in found["CUDA"].detail

    def test_this_machine_as_it_is(self):
        found = {one.what: one for one in doctor.examine(look_s=0.05)}
        assert {"device", "power", "temperatures", "clocks", "throttle evidence", "GPU by NVML", "CUDA", "backend onnxruntime",
                "backend tensorrt", "extra loadgen", "cache folder"} <= set(found)
        assert all(one.detail for one in found.values())
