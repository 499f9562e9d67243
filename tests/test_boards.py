"""Recognition of boards, modules, GPUs and CPUs, declared against observed, and the catalogue's facts."""

from __future__ import annotations

import re

import pytest

from edgebench import boards, catalog
from edgebench.boards import choose, declared_vs_observed, recognise
from edgebench.device import Device, Peak, Rail, TotalPower
from edgebench.errors import CannotMeasure, ExitCode, UsageError
from edgebench.record import decode
from tests import trees
from tests.trees import BOARDS, JETSONS, grow

DEVICES = catalog.devices()
EVERY = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
JETSON = pytest.mark.parametrize("board", JETSONS, ids=lambda board: board.name)
EACH = pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: device.id)


def seen(board, root, **options):
    return recognise(grow(root, board.files), DEVICES, **options)


class TestRecognition:
    @EVERY
    def test_the_first_match_is_the_device_and_has_evidence(self, board, tmp_path):
        found = seen(board, tmp_path)
        assert board.device == found.matches[0].device
        assert all(one.value and one.source for one in found.matches[0].evidence)
        assert found.matches[0].evidence

    @EVERY
    def test_module_releases_and_power_mode(self, board, tmp_path):
        found = seen(board, tmp_path)
        assert (board.module, board.l4t, board.jetpack, board.power_mode) == (
            found.module, found.l4t, found.jetpack, found.power_mode)
        assert (board in JETSONS) == found.jetson

    @EVERY
    def test_auto_takes_it_and_nothing_contradicts(self, board, tmp_path):
        found = seen(board, tmp_path)
        device = choose("auto", found, DEVICES)
        assert board.device == device.id
        assert () == declared_vs_observed(device, found)

    @JETSON
    def test_jetson_takes_it(self, board, tmp_path):
        assert board.device == choose("jetson", seen(board, tmp_path), DEVICES).id

    def test_the_tool_is_asked_for_the_power_mode(self, tmp_path):
        tools = trees.Tools({("nvpmodel", "-q"): "NV Power Mode: 15W\n0\n"})
        assert "15W" == seen(trees.ORIN_NANO_JP6, tmp_path, runner=tools).power_mode

    def test_all_sources_of_the_part_number_are_evidence(self, tmp_path):
        files = {**trees.ORIN_NANO_JP6.files, "sys/bus/i2c/devices/0-0050/eeprom": trees.eeprom("699-13767-0005-300 W.1")}
        found = recognise(grow(tmp_path, files), DEVICES)
        assert 4 == len(found.modules)
        assert {"P3767-0005"} == {one.value for one in found.modules}

    @pytest.mark.parametrize("kept", ["eeprom", "sku", "compatible", "tnspec"])
    def test_each_source_alone_suffices(self, kept, tmp_path):
        files = {"eeprom": {"sys/bus/i2c/devices/0-0050/eeprom": trees.eeprom("699-13767-0003-300 K.2")},
                 "sku": {"proc/device-tree/chosen/nvidia,sku": b"699-13767-0003-300 K.2\0"},
                 "compatible": trees.tree_of("A carrier board", "vendor,carrier", "nvidia,p3767-0003", "nvidia,tegra234"),
                 "tnspec": {"etc/nv_boot_control.conf": "TNSPEC 3767-300-0003-K.2-1-1-jetson-orin-nano-devkit-"}}[kept]
        found = recognise(grow(tmp_path, {**trees.release(36, "4.3"), **files}), DEVICES)
        assert ("P3767-0003", "jetson-orin-nano-8gb") == (found.module, found.matches[0].device)

    def test_a_module_on_another_carrier_is_still_that_module(self, tmp_path):
        files = {**trees.tree_of("Seeed reComputer J4012", "nvidia,p3768-0000+p3767-0000", "nvidia,tegra234"),
                 "sys/bus/i2c/devices/0-0050/eeprom": trees.eeprom("699-13767-0000-300 H.2")}
        assert "jetson-orin-nx-16gb" == recognise(grow(tmp_path, files), DEVICES).matches[0].device

    def test_where_sources_disagree_the_eeprom_counts_and_a_doubt_remains(self, tmp_path):
        files = {**trees.ORIN_NANO_JP6.files, "sys/bus/i2c/devices/0-0050/eeprom": trees.eeprom("699-13767-0000-301 G.1")}
        found = recognise(grow(tmp_path, files), DEVICES)
        assert "jetson-orin-nx-16gb" == found.matches[0].device
        codes = [one.code for one in declared_vs_observed(DEVICES["jetson-orin-nx-16gb"], found)]
        assert "module-contradiction" in codes

    def test_gpus_by_name_before_the_cpu(self, tmp_path):
        found = recognise(grow(tmp_path, trees.X86.files), DEVICES, gpus=("NVIDIA L4", "NVIDIA L4"))
        assert ["l4", "x86-avx512-vnni", "cpu"] == [match.device for match in found.matches]
        assert "l4" == choose("auto", found, DEVICES).id
        assert "l4" == choose("cuda", found, DEVICES).id

    @pytest.mark.parametrize(("name", "device"), [
        ("NVIDIA GeForce RTX 4090", "rtx-4090"), ("NVIDIA A10", "a10"), ("Tesla T4", "t4"), ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"), ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA A10G", None),
        ("NVIDIA L40S", None), ("NVIDIA GeForce RTX 4090 Laptop GPU", None)])
    def test_names_of_gpus_are_matched_whole(self, name, device, tmp_path):
        found = [match.device for match in recognise(tmp_path, DEVICES, gpus=(name,)).matches if match.device != "cpu"]
        assert ([device] if device else []) == found

    def test_a_plain_cpu_is_the_cpu(self, tmp_path):
        grow(tmp_path, {"proc/cpuinfo": "model name\t: X\nflags\t\t: fpu avx2"})
        assert ["cpu"] == [match.device for match in recognise(tmp_path, DEVICES).matches]

    def test_this_machine_is_recognised(self):
        found = recognise(boards.Path("/"), DEVICES)
        assert found.matches[-1].device == "cpu"
        assert found.memory_bytes

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe\0\0", b"nvidia,", b"garbage\0\0\0"])
    def test_a_damaged_device_tree_recognises_nothing(self, content, tmp_path):
        grow(tmp_path, {"proc/device-tree/compatible": content, "etc/nv_tegra_release": "not a release",
                        "etc/nv_boot_control.conf": "TNSPEC", "proc/meminfo": "MemTotal: lots"})
        found = recognise(tmp_path, DEVICES)
        assert ["cpu"] == [match.device for match in found.matches]
        assert (None, None) == (found.module, found.l4t)


class TestChoice:
    def test_a_host_that_is_no_jetson_gets_one_helpful_line(self, tmp_path):
        found = seen(trees.X86, tmp_path)
        with pytest.raises(CannotMeasure) as caught:
            choose("jetson", found, DEVICES)
        assert "this host is no Jetson: it is a machine without a device tree, such as a PC" == caught.value.message
        assert "on the board itself" in caught.value.hint
        assert "--device auto" in caught.value.hint
        assert ExitCode.UNMEASURABLE == caught.value.exit_code
        assert "\n" not in caught.value.message + caught.value.hint

    def test_it_says_what_the_host_is_instead(self, tmp_path):
        with pytest.raises(CannotMeasure, match=r"it is Raspberry Pi 5 Model B Rev 1\.0"):
            choose("jetson", seen(trees.PI, tmp_path), DEVICES)

    @pytest.mark.parametrize("name", ["jetson", "auto", "cuda"])
    def test_a_jetson_that_no_file_describes_is_not_measured_as_a_cpu(self, name, tmp_path):
        files = {**trees.tree_of("NVIDIA Jetson Nano 2GB Developer Kit", "nvidia,p3542-0000+p3448-0003", "nvidia,tegra210"),
                 **trees.release(32, "7.1")}
        found = recognise(grow(tmp_path, files), DEVICES)
        assert "P3448-0003" == found.module
        with pytest.raises(CannotMeasure, match=r"no file in devices/ describes: .*module P3448-0003"):
            choose(name, found, DEVICES)

    def test_a_gpu_that_no_file_describes(self, tmp_path):
        with pytest.raises(CannotMeasure, match="describes 'NVIDIA A10G'"):
            choose("cuda", recognise(tmp_path, DEVICES, gpus=("NVIDIA A10G",)), DEVICES)

    def test_no_gpu_at_all(self, tmp_path):
        with pytest.raises(CannotMeasure, match="there is no NVIDIA GPU here"):
            choose("cuda", recognise(tmp_path, DEVICES), DEVICES)

    def test_an_id_is_taken_as_it_is_and_a_wrong_one_suggests_another(self, tmp_path):
        found = recognise(tmp_path, DEVICES)
        assert "t4" == choose("t4", found, DEVICES).id
        with pytest.raises(UsageError, match="did you mean 'jetson-orin-nano-8gb'"):
            choose("jetson-orin-nano-8bg", found, DEVICES)


class TestDeclaredAgainstObserved:
    def test_another_module_is_an_error_with_both(self, tmp_path):
        with pytest.raises(CannotMeasure, match=r"P3701-0005.* but this module is P3767-0005"):
            declared_vs_observed(DEVICES["jetson-agx-orin-64gb"], seen(trees.ORIN_NANO_JP6, tmp_path))

    def test_a_host_that_is_no_jetson_is_an_error(self, tmp_path):
        with pytest.raises(CannotMeasure, match="this host is none: it is Raspberry Pi 5"):
            declared_vs_observed(DEVICES["jetson-nano-4gb"], seen(trees.PI, tmp_path))

    @pytest.mark.parametrize("device", ["raspberry-pi-5", "l4", "x86-avx512-vnni"])
    def test_other_devices_are_checked_too(self, device, tmp_path):
        with pytest.raises(CannotMeasure, match=re.escape(repr(device))):
            declared_vs_observed(DEVICES[device], seen(trees.ORIN_NANO_JP6, tmp_path))

    def test_the_cpu_of_any_machine_is_the_cpu(self, tmp_path):
        assert () == declared_vs_observed(DEVICES["cpu"], seen(trees.PI, tmp_path))

    def test_a_module_that_cannot_be_told_is_a_doubt(self, tmp_path):
        files = {**trees.tree_of("A carrier", "vendor,carrier", "nvidia,tegra234"), **trees.release(36, "4.3")}
        (caveat,) = declared_vs_observed(DEVICES["jetson-orin-nano-8gb"], recognise(grow(tmp_path, files), DEVICES))
        assert "module-unknown" == caveat.code

    @pytest.mark.parametrize(("change", "code"), [
        (trees.memory(3900), "memory-differs"), (trees.release(32, "7.1"), "jetpack-unexpected"),
        (trees.nvpmodel(["15W", "OVERCLOCKED"], 1), "power-mode-unknown")])
    def test_what_does_not_fit_is_a_doubt(self, change, code, tmp_path):
        found = recognise(grow(tmp_path, {**trees.ORIN_NANO_JP6.files, **change}), DEVICES)
        assert [code] == [one.code for one in declared_vs_observed(DEVICES["jetson-orin-nano-8gb"], found)]

    def test_early_developer_kits_of_agx_orin_hold_half_the_memory(self, tmp_path):
        files = {**trees.AGX_ORIN_JP6.files, **trees.memory(30536),
                 **trees.tree_of("Jetson AGX Orin", "nvidia,p3737-0000+p3701-0000", "nvidia,tegra234")}
        found = recognise(grow(tmp_path, files), DEVICES)
        assert ["memory-differs"] == [one.code for one in declared_vs_observed(DEVICES["jetson-agx-orin-64gb"], found)]


class TestCatalogue:
    def test_every_device_of_the_design_is_there(self):
        assert {"jetson-nano-4gb", "jetson-xavier-nx-8gb", "jetson-xavier-nx-16gb", "jetson-orin-nano-4gb",
                "jetson-orin-nano-8gb", "jetson-orin-nx-8gb", "jetson-orin-nx-16gb", "jetson-agx-orin-32gb",
                "jetson-agx-orin-64gb", "jetson-agx-thor-t5000", "rtx-4090", "l4", "a10", "t4", "h100-sxm", "h100-pcie",
                "h200", "raspberry-pi-5", "x86-avx512-vnni", "cpu"} == set(DEVICES)

    def test_no_two_devices_claim_the_same_thing(self):
        for claims in ("modules", "compatible", "nvml_names"):
            every = [one for device in DEVICES.values() for one in getattr(device, claims)]
            assert len(set(every)) == len(every)

    @EACH
    def test_facts_have_sources_that_name_existing_keys(self, device):
        known = set(Device.__dataclass_fields__)
        for source in device.sources:
            assert source.text.strip()
            assert set(source.covers) <= known
        if device.id != "cpu":
            covered = {key for source in device.sources for key in source.covers}
            for key in ("memory_bandwidth_bytes_per_s", "rails", "power_modes", "modules", "nvml_names", "dlas", "gpu"):
                assert not getattr(device, key) or key in covered, key
        for peak in device.peaks:
            assert peak.source.strip()

    @EACH
    def test_each_kind_has_what_recognises_it(self, device):
        needed = {"jetson": device.modules, "gpu": device.nvml_names, "board": device.compatible, "cpu": (device.id,)}
        assert needed[device.kind]
        assert all(re.fullmatch(r"P\d{4}-\d{4}", module) for module in device.modules)
        assert bool(device.compute_capability) == (device.kind in ("jetson", "gpu"))

    @EACH
    def test_precisions_follow_the_compute_capability(self, device):
        if device.compute_capability is None:
            return
        capability = tuple(map(int, device.compute_capability.split(".")))
        expected = {"fp32", "fp16", *(["int8"] if capability >= (7, 2) else []), *(["bf16"] if capability >= (8, 0) else []),
                    *(["fp8"] if capability >= (8, 9) else []), *(["fp4"] if capability >= (10, 0) else [])}
        assert expected == set(device.precisions)
        if capability < (8, 0):
            assert not any(peak.sparse for peak in device.peaks)

    @pytest.mark.parametrize("device", [one for one in DEVICES.values() if "orin" in one.id], ids=lambda one: one.id)
    def test_peaks_of_orin_follow_from_cores_and_clock(self, device):
        gpu = device.gpu
        for precision, per_cycle in (("int8", 1024), ("fp16", 512)):
            peak = device.peak(precision)
            assert "derived" == peak.mark
            assert pytest.approx(gpu.tensor_cores * gpu.clock_max_hz * per_cycle) == peak.dense
            assert pytest.approx(2 * peak.dense) == peak.sparse

    def test_the_rule_reproduces_what_nvidia_advertises(self):
        agx, nano = DEVICES["jetson-agx-orin-64gb"], DEVICES["jetson-orin-nano-8gb"]
        assert pytest.approx(agx.peak("int8", "total").sparse, rel=0.005) == (
            agx.peak("int8").sparse + agx.peak("int8", "dla").sparse)
        assert pytest.approx(nano.peak("int8", "total").sparse, rel=0.005) == nano.peak("int8").sparse

    def test_figures_of_the_design_by_hand(self):
        dense = {(one, precision): DEVICES[one].peak(precision).dense / 1e12 for one in DEVICES
                 for precision in ("fp16", "int8") if DEVICES[one].peak(precision)}
        expected = {("jetson-orin-nano-4gb", "int8"): 16.7, ("jetson-orin-nano-8gb", "fp16"): 16.7,
                    ("jetson-orin-nx-16gb", "int8"): 38.4, ("jetson-agx-orin-32gb", "fp16"): 26.7,
                    ("jetson-agx-orin-64gb", "fp16"): 42.6, ("jetson-agx-orin-64gb", "int8"): 85.2,
                    ("rtx-4090", "int8"): 660.6, ("t4", "int8"): 130, ("t4", "fp16"): 65.1, ("h100-sxm", "int8"): 1979}
        assert expected == pytest.approx({key: dense[key] for key in expected}, abs=0.05)
        assert 0 == DEVICES["jetson-orin-nano-8gb"].dlas
        # 4 cores, 2.4 GHz, two pipes of 128 bits.
        pi = DEVICES["raspberry-pi-5"]
        assert pytest.approx(4 * 2.4e9 * 2 * 4 * 2, rel=0.01) == pi.peak("fp32", "cpu").dense
        assert pytest.approx(4 * 2.4e9 * 2 * 16 * 2, rel=0.01) == pi.peak("int8", "cpu").dense

    def test_recalled_figures_say_so(self):
        for device in ("l4", "a10", "h100-pcie", "h200", "jetson-xavier-nx-8gb"):
            assert "recalled" == DEVICES[device].peak("fp16").mark

    @EACH
    def test_modes_have_distinct_ids_and_at_most_one_default(self, device):
        ids = [(mode.release, mode.id) for mode in device.power_modes]
        assert len(set(ids)) == len(ids)
        assert sum(mode.default for mode in device.power_modes) <= 1

    @pytest.mark.parametrize("device", [one for one in DEVICES.values() if one.kind == "jetson"], ids=lambda one: one.id)
    def test_every_jetson_has_rails_a_total_and_an_explained_scope(self, device):
        assert device.rails
        assert device.total_power.meaning
        assert device.memory_shared

    def test_devices_of_old_runs_still_load(self):
        old = decode(Device, {"id": "cpu", "title": "CPU", "backends": ["onnxruntime"], "source": "observed"}, "old")
        assert ("cpu", (), None, None) == (old.kind, old.rails, old.total_power, old.memory_bytes)

    def test_a_total_of_rails_that_do_not_exist_is_refused(self):
        with pytest.raises(ValueError, match="a total of declared rails"):
            Device(id="x", title="x", backends=("onnxruntime",), source="x", rails=(Rail(label="A", scope="rail", meaning=""),),
                   total_power=TotalPower(labels=("B",), scope="module", meaning=""))

    def test_a_peak_without_any_figure_is_refused(self):
        with pytest.raises(ValueError, match="dense or a sparse"):
            Peak(precision="int8", engine="gpu", mark="recalled", source="x")
