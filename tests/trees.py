"""Small sysfs and procfs trees of boards, with the labels and values that they show, and what must be read from them.

Labels, file names and magnitudes follow recorded dumps and the documentation of the drivers: JetPack 4 (iio), JetPack 5
to 7 (hwmon, whose numbers change from boot to boot), Raspberry Pi OS, and an x86 server. Expected watts are written out
by hand from the millivolts and milliamperes above them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgebench.telemetry import files
from edgebench.telemetry.commands import Outcome

Files = dict[str, str | bytes]


def grow(root: Path, content_of: Mapping[str, str | bytes]) -> Path:
    """Write files below `root`, text with the newline that the kernel puts at its end."""
    for name, content in content_of.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if content.endswith("\n") else content + "\n", encoding="utf-8")
    return root


def forbid(monkeypatch, path: Path, number: int = errno.EACCES) -> None:
    """Make reading one file fail: tests may run as root, whom permissions do not stop."""
    genuine = files.raw

    def raw(asked: Path) -> bytes:
        if asked == path:
            raise OSError(number, os.strerror(number), str(path))
        return genuine(asked)

    monkeypatch.setattr(files, "raw", raw)


class Tools:
    """Answers commands as a board's tools do, and notes them."""

    def __init__(self, answers: Mapping[tuple[str, ...], str | Outcome | Callable[[], Outcome]] | None = None) -> None:
        self.answers = dict(answers or {})
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, command: Sequence[str]) -> Outcome:
        self.calls.append(tuple(command))
        answer = self.answers.get(tuple(command), self.answers.get((command[0],)))
        if answer is None:
            return Outcome(code=127, output=f"{command[0]}: no such command")
        if callable(answer):
            return answer()
        return answer if isinstance(answer, Outcome) else Outcome(code=0, output=answer)


def hwmon(place: str, name: str, files: Mapping[str, object]) -> Files:
    return {f"{place}/name": name, **{f"{place}/{file}": str(value) for file, value in files.items()}}


def ina3221(place: str, rails: Sequence[tuple[str, int, int]]) -> Files:
    """Rails as (label, mV, mA), the unlabelled shunt voltages, and the sum that is no rail."""
    files: dict[str, object] = {"in7_label": "sum of shunt voltages", "in7_input": 8080}
    for index, (label, millivolts, milliamperes) in enumerate(rails, start=1):
        files |= {f"in{index}_label": label, f"in{index}_input": millivolts, f"curr{index}_input": milliamperes,
                  f"shunt{index}_resistor": 5000, f"in{index + 3}_input": 280, f"curr{index}_crit": 32760,
                  f"curr{index}_crit_alarm": 0}
    return hwmon(place, "ina3221", files)


def iio(place: str, rails: Sequence[tuple[str, int]]) -> Files:
    files: Files = {}
    for index, (label, milliwatts) in enumerate(rails):
        files |= {f"{place}/rail_name_{index}": label, f"{place}/in_power{index}_input": str(milliwatts),
                  f"{place}/in_voltage{index}_input": "5024"}
    return files


def zones(temperatures: Sequence[tuple[str, int | str]], critical: int | None = None) -> Files:
    """Thermal zones as (type, m°C)."""
    files: Files = {}
    for index, (kind, value) in enumerate(temperatures):
        place = f"sys/class/thermal/thermal_zone{index}"
        files |= {f"{place}/type": kind, f"{place}/temp": str(value)}
        if critical is not None:
            files |= {f"{place}/trip_point_0_type": "critical", f"{place}/trip_point_0_temp": str(critical)}
    return files


def devfreq(name: str, hertz: int, governor: str = "nvhost_podgov") -> Files:
    place = f"sys/class/devfreq/{name}"
    return {f"{place}/cur_freq": str(hertz), f"{place}/max_freq": str(max(hertz, 918_000_000)), f"{place}/min_freq": "76800000",
            f"{place}/governor": governor}


def cpufreq(policy: int, kilohertz: int, governor: str = "schedutil") -> Files:
    place = f"sys/devices/system/cpu/cpufreq/policy{policy}"
    return {f"{place}/scaling_cur_freq": str(kilohertz), f"{place}/scaling_governor": governor,
            f"{place}/scaling_max_freq": "1510400", f"{place}/scaling_min_freq": "115200",
            f"{place}/scaling_available_governors": "conservative ondemand userspace powersave performance schedutil",
            f"{place}/stats/time_in_state": "115200 5000\n729600 2000\n1510400 300"}


def nvpmodel(names: Sequence[str], mode: int, default: int = 0) -> Files:
    lines = ["# < POWER_MODEL ID=9 NAME=COMMENTED_OUT >"]
    for index, name in enumerate(names):
        lines += [f"< POWER_MODEL ID={index} NAME={name} >", "CPU_ONLINE CORE_0 1", "GPU MAX_FREQ -1", ""]
    return {"etc/nvpmodel.conf": "\n".join([*lines, f"< PM_CONFIG DEFAULT={default} >"]),
            "var/lib/nvpmodel/status": f"pmode:{mode:04d} fmode:quiet"}


def tree_of(model: str, *compatible: str) -> Files:
    return {"proc/device-tree/model": f"{model}\0".encode(),
            "proc/device-tree/compatible": b"".join(f"{one}\0".encode() for one in compatible)}


def eeprom(part: str) -> bytes:
    """The module's EEPROM: the 699-level part number stands at offset 20, padded to 30 bytes."""
    return bytes(20) + part.encode().ljust(30, b"\xff") + bytes(206)


def release(major: int, revision: str) -> Files:
    return {"etc/nv_tegra_release": f"# R{major} (release), REVISION: {revision}, GCID: 38968081, BOARD: generic, EABI: "
            "aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025"}


def memory(mebibytes: int) -> Files:
    return {"proc/meminfo": f"MemTotal:       {mebibytes * 1024} kB\nMemFree:  1024 kB"}


@dataclass(frozen=True, kw_only=True)
class Board:
    """A tree and what must be read from it."""

    name: str
    device: str
    files: Files
    watts: dict[str, float] = field(default_factory=dict)
    """By rail."""
    total_w: float | None
    total_scope: str | None = None
    celsius: dict[str, float] = field(default_factory=dict)
    """By zone; the others are off."""
    off: tuple[str, ...] = ()
    """Zones without a temperature."""
    gpu_clock_hz: dict[str, float] = field(default_factory=dict)
    module: str | None = None
    l4t: str | None = None
    jetpack: str | None = None
    power_mode: str | None = None
    tools: dict[tuple[str, ...], str] = field(default_factory=dict)


NANO = Board(
    name="jetpack4-nano", device="jetson-nano-4gb", module="P3448-0000", l4t="32.7.1", jetpack="4.6", power_mode="MAXN",
    watts={"POM_5V_IN": 1.750, "POM_5V_GPU": 0.0, "POM_5V_CPU": 0.366}, total_w=1.750, total_scope="module",
    celsius={"AO-therm": 45.0, "CPU-therm": 40.0, "GPU-therm": 39.5, "PLL-therm": 37.0, "PMIC-Die": 100.0},
    gpu_clock_hz={"57000000.gpu": 76.8e6},
    files={**tree_of("NVIDIA Jetson Nano Developer Kit", "nvidia,p3449-0000-b00+p3448-0000-b00", "nvidia,jetson-nano",
                     "nvidia,tegra210"),
           **release(32, "7.1"), **memory(3964), **nvpmodel(["MAXN", "5W"], 0),
           **iio("sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0",
                 [("POM_5V_IN", 1750), ("POM_5V_GPU", 0), ("POM_5V_CPU", 366)]),
           **zones([("AO-therm", 45000), ("CPU-therm", 40000), ("GPU-therm", 39500), ("PLL-therm", 37000),
                    ("PMIC-Die", 100000)]),
           **{f"sys/class/thermal/cooling_device{k}/{file}": value for k, (kind, state) in enumerate(
               (("cpu-balanced", "0"), ("gpu-balanced", "3"), ("pwm-fan", "1"))) for file, value in (("type", kind), ("cur_state", state))},
           **devfreq("57000000.gpu", 76_800_000), **cpufreq(0, 1224000)})

XAVIER_JP4 = Board(
    name="jetpack4-xavier-nx", device="jetson-xavier-nx-8gb", module="P3668-0000", l4t="32.7.1", jetpack="4.6",
    power_mode="MODE_15W_6CORE",
    watts={"VDD_IN": 5.079, "VDD_CPU_GPU_CV": 0.696, "VDD_SOC": 1.104}, total_w=5.079, total_scope="module",
    celsius={"AUX-therm": 39.0, "CPU-therm": 39.5}, gpu_clock_hz={"17000000.gv11b": 510e6},
    files={**tree_of("NVIDIA Jetson Xavier NX Developer Kit", "nvidia,p3449-0000+p3668-0000",
                     "nvidia,p3509-0000+p3668-0000", "nvidia,tegra194"),
           **release(32, "7.1"), **memory(6854),
           **nvpmodel(["MODE_15W_2CORE", "MODE_15W_4CORE", "MODE_15W_6CORE", "MODE_10W_2CORE"], 2),
           **iio("sys/bus/i2c/drivers/ina3221x/7-0040/iio:device0",
                 [("VDD_IN", 5079), ("VDD_CPU_GPU_CV", 696), ("VDD_SOC", 1104)]),
           **zones([("AUX-therm", 39000), ("CPU-therm", 39500)]), **devfreq("17000000.gv11b", 510_000_000),
           **cpufreq(0, 1905000), **cpufreq(2, 1905000)})

XAVIER_JP5 = Board(
    name="jetpack5-xavier-nx", device="jetson-xavier-nx-16gb", module="P3668-0003", l4t="35.4.1", jetpack="5",
    watts={"VDD_IN": 4.960 * 0.560, "VDD_CPU_GPU_CV": 4.960 * 0.136, "VDD_SOC": 4.960 * 0.136}, total_w=2.7776,
    total_scope="module", celsius={"CPU-therm": 46.5, "thermal-fan-est": 45.6}, gpu_clock_hz={"17000000.gv11b": 114e6},
    files={**tree_of("NVIDIA Jetson Xavier NX", "nvidia,p3449-0000+p3668-0003", "nvidia,tegra194"),
           **release(35, "4.1"), **memory(14900),
           **ina3221("sys/bus/i2c/drivers/ina3221/7-0040/hwmon/hwmon4",
                     [("VDD_IN", 4960, 560), ("VDD_CPU_GPU_CV", 4960, 136), ("VDD_SOC", 4960, 136)]),
           **zones([("CPU-therm", 46500), ("thermal-fan-est", 45600)]), **devfreq("17000000.gv11b", 114_000_000)})

ORIN_NANO_JP5 = Board(
    name="jetpack5-orin-nano", device="jetson-orin-nano-8gb", module="P3767-0005", l4t="35.3.1", jetpack="5",
    watts={"VDD_IN": 4.984 * 0.960, "VDD_CPU_GPU_CV": 4.976 * 0.120, "VDD_SOC": 4.976 * 0.304}, total_w=4.78464,
    total_scope="module", celsius={"CPU-therm": 51.187}, off=("CV0-therm",), gpu_clock_hz={"17000000.ga10b": 306e6},
    files={**tree_of("NVIDIA Orin Nano Developer Kit", "nvidia,p3768-0000+p3767-0005", "nvidia,p3767-0005",
                     "nvidia,tegra234", "nvidia,tegra23x"),
           **release(35, "3.1"), **memory(6500),
           **ina3221("sys/class/hwmon/hwmon1", [("VDD_IN", 4984, 960), ("VDD_CPU_GPU_CV", 4976, 120),
                                                ("VDD_SOC", 4976, 304)]),
           **zones([("CPU-therm", 51187), ("CV0-therm", -256000)]), **devfreq("17000000.ga10b", 306_000_000)})

ORIN_NANO_JP6 = Board(
    name="jetpack6-orin-nano", device="jetson-orin-nano-8gb", module="P3767-0005", l4t="36.4.3", jetpack="6.2",
    power_mode="25W",
    watts={"VDD_IN": 4.984 * 0.960, "VDD_CPU_GPU_CV": 4.976 * 0.120, "VDD_SOC": 4.976 * 0.304}, total_w=4.78464,
    total_scope="module", celsius={"cpu-thermal": 51.187, "gpu-thermal": 50.218, "tj-thermal": 51.187},
    off=("cv0-thermal",), gpu_clock_hz={"17000000.gpu": 305e6},
    files={**tree_of("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
                     "nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"),
           "proc/device-tree/chosen/nvidia,sku": b"699-13767-0005-300 W.1\0",
           "etc/nv_boot_control.conf": "TNSPEC 3767-300-0005-W.1-1-0-jetson-orin-nano-devkit-super-\nTEGRA_CHIPID 0x23",
           **release(36, "4.3"), **memory(7620), **nvpmodel(["15W", "25W", "MAXN_SUPER", "7W"], 1, default=1),
           **hwmon("sys/class/hwmon/hwmon0", "pwmfan", {"pwm1": 54}),
           **ina3221("sys/class/hwmon/hwmon3", [("VDD_IN", 4984, 960), ("VDD_CPU_GPU_CV", 4976, 120),
                                                ("VDD_SOC", 4976, 304)]),
           **hwmon("sys/class/hwmon/hwmon4", "soctherm_oc", {
               "oc1_event_cnt": 0, "oc2_event_cnt": 3, "oc3_event_cnt": 41, "oc1_throt_en": 1, "oc3_throt_en": 1}),
           **zones([("cpu-thermal", 51187), ("gpu-thermal", 50218), ("tj-thermal", 51187), ("cv0-thermal", "")],
                   critical=104500),
           "sys/class/thermal/cooling_device0/type": "gpu-throttle-alert",
           "sys/class/thermal/cooling_device0/cur_state": "0",
           "sys/class/thermal/cooling_device1/type": "pwm-fan", "sys/class/thermal/cooling_device1/cur_state": "2",
           "sys/class/thermal/cooling_device2/type": "devfreq-17000000.gpu", "sys/class/thermal/cooling_device2/cur_state": "0",
           **devfreq("17000000.gpu", 305_000_000), **devfreq("15480000.nvdec", 115_000_000),
           **cpufreq(0, 729600), **cpufreq(4, 729600)})

ORIN_NX_JP6 = Board(
    name="jetpack6-orin-nx", device="jetson-orin-nx-16gb", module="P3767-0000", l4t="36.4.3", jetpack="6.2",
    power_mode="MAXN_SUPER", watts={"VDD_IN": 5.072 * 0.856, "VDD_CPU_GPU_CV": 5.072 * 0.096, "VDD_SOC": 5.072 * 0.240},
    total_w=4.341632, total_scope="module", celsius={"tj-thermal": 43.5}, gpu_clock_hz={"17000000.gpu": 306e6},
    files={**tree_of("NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super", "nvidia,p3768-0000+p3767-0000-super",
                     "nvidia,p3767-0000", "nvidia,tegra234"),
           "sys/bus/i2c/devices/0-0050/eeprom": eeprom("699-13767-0000-301 G.1"),
           **release(36, "4.3"), **memory(15656), **nvpmodel(["MAXN_SUPER", "10W", "15W", "25W", "40W"], 0, default=4),
           **ina3221("sys/class/hwmon/hwmon2", [("VDD_IN", 5072, 856), ("VDD_CPU_GPU_CV", 5072, 96),
                                                ("VDD_SOC", 5072, 240)]),
           **zones([("tj-thermal", 43500)]), **devfreq("17000000.gpu", 306_000_000)})

AGX_ORIN_JP6 = Board(
    name="jetpack6-agx-orin", device="jetson-agx-orin-64gb", module="P3701-0005", l4t="36.4.4", jetpack="6.2.1",
    power_mode="MODE_30W",
    watts={"VDD_GPU_SOC": 18.792 * 0.140, "VDD_CPU_CV": 18.784 * 0.020, "VIN_SYS_5V0": 4.968 * 0.980,
           "VDDQ_VDD2_1V8AO": 4.984 * 0.060},
    total_w=18.792 * 0.140 + 18.784 * 0.020 + 4.968 * 0.980, total_scope="module",
    celsius={"tj-thermal": 44.343, "cpu-thermal": 44.343}, off=("gpu-thermal",), gpu_clock_hz={"17000000.gpu": 0.0},
    files={**tree_of("NVIDIA Jetson AGX Orin Developer Kit", "nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005",
                     "nvidia,tegra234"),
           **release(36, "4.4"), **memory(62841), **nvpmodel(["MAXN", "MODE_15W", "MODE_30W", "MODE_50W"], 2, default=2),
           **ina3221("sys/class/hwmon/hwmon3", [("VDD_GPU_SOC", 18792, 140), ("VDD_CPU_CV", 18784, 20),
                                                ("VIN_SYS_5V0", 4968, 980)]),
           **ina3221("sys/class/hwmon/hwmon4", [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 4984, 60), ("NC", 0, 0)]),
           **zones([("tj-thermal", 44343), ("cpu-thermal", 44343), ("gpu-thermal", -256000)]),
           **devfreq("17000000.gpu", 0)})

THOR_JP7 = Board(
    name="jetpack7-thor", device="jetson-agx-thor-t5000", module="P3834-0008", l4t="38.2.0", jetpack="7.0",
    power_mode="120W",
    # The GPU rail reads below zero while the GPU is off.
    watts={"VDD_GPU": 12.040 * -0.032, "VDD_CPU_SOC_MSS": 12.040 * 0.480, "VIN_SYS_5V0": 5.088 * 1.100, "VIN": 19.780},
    total_w=19.780, total_scope="board", celsius={"tj-thermal": 38.875, "soc012-thermal": 37.468}, off=("gpu-thermal",),
    gpu_clock_hz={"gpu-gpc-0": 314e6, "gpu-nvd-0": 315e6},
    files={**tree_of("NVIDIA Jetson AGX Thor Developer Kit", "nvidia,p4071-0000+p3834-0008", "nvidia,p3834-0008",
                     "nvidia,tegra264"),
           **release(38, "2.0"), **memory(125772), **nvpmodel(["MAXN", "120W", "90W", "70W"], 1, default=1),
           **ina3221("sys/class/hwmon/hwmon2", [("VDD_GPU", 12040, -32), ("VDD_CPU_SOC_MSS", 12040, 480),
                                                ("VIN_SYS_5V0", 5088, 1100)]),
           **hwmon("sys/class/hwmon/hwmon3", "ina238", {"in0_input": 4, "in1_input": 19780, "curr1_input": 1000,
                                                       "power1_input": 19_780_000, "temp1_input": 36000}),
           **hwmon("sys/class/hwmon/hwmon5", "soctherm_oc", {"oc1_event_cnt": 0, "oc3_event_cnt": 0}),
           **zones([("tj-thermal", 38875), ("soc012-thermal", 37468), ("gpu-thermal", "nan")], critical=114500),
           "sys/class/thermal/cooling_device0/type": "gpu-throttle-alert",
           "sys/class/thermal/cooling_device0/cur_state": "0",
           **devfreq("gpu-gpc-0", 314_000_000), **devfreq("gpu-nvd-0", 315_000_000), **cpufreq(0, 972000)})

# As a Raspberry Pi 5 with four busy cores printed it.
PMIC = """\
 3V7_WL_SW_A current(0)=0.09368929A
   3V3_SYS_A current(1)=0.08783370A
   1V8_SYS_A current(2)=0.18054710A
  DDR_VDD2_A current(3)=0.22543980A
  DDR_VDDQ_A current(4)=0.06666720A
   1V1_SYS_A current(5)=0.17566740A
    0V8_SW_A current(6)=0.37670900A
  VDD_CORE_A current(7)=6.22421000A
   3V3_DAC_A current(17)=0.00006105A
   3V3_ADC_A current(18)=0.00036630A
   0V8_AON_A current(16)=0.00305250A
      HDMI_A current(22)=0.02417580A
 3V7_WL_SW_V volt(8)=3.69977600V
   3V3_SYS_V volt(9)=3.31003300V
   1V8_SYS_V volt(10)=1.80512600V
  DDR_VDD2_V volt(11)=1.10476100V
  DDR_VDDQ_V volt(12)=0.60146460V
   1V1_SYS_V volt(13)=1.11025500V
    0V8_SW_V volt(14)=0.80146440V
  VDD_CORE_V volt(15)=0.86173300V
   3V3_DAC_V volt(20)=3.31318300V
   3V3_ADC_V volt(21)=3.30677300V
   0V8_AON_V volt(19)=0.80029220V
      HDMI_V volt(23)=5.08664000V
     EXT5V_V volt(24)=5.09066000V
      BATT_V volt(25)=0.00000000V
"""

PI_SUM_W = (0.09368929 * 3.699776 + 0.0878337 * 3.310033 + 0.1805471 * 1.805126 + 0.2254398 * 1.104761
            + 0.0666672 * 0.6014646 + 0.1756674 * 1.110255 + 0.376709 * 0.8014644 + 6.22421 * 0.861733
            + 0.00006105 * 3.313183 + 0.0003663 * 3.306773 + 0.0030525 * 0.8002922 + 0.0241758 * 5.08664)

PI = Board(
    name="raspberry-pi-5", device="raspberry-pi-5",
    watts={"VDD_CORE": 6.22421 * 0.861733, "HDMI": 0.0241758 * 5.08664}, total_w=1.1451 * PI_SUM_W + 0.5879,
    total_scope="board", celsius={"cpu-thermal": 61.75},
    tools={("vcgencmd", "pmic_read_adc"): PMIC, ("vcgencmd", "get_throttled"): "throttled=0x0\n"},
    files={**tree_of("Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b", "brcm,bcm2712"), **memory(8064),
           **zones([("cpu-thermal", 61750)], critical=110000), **cpufreq(0, 2400000, "ondemand"),
           "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0"})

RAPL_MAX = 262_143_328_850


def rapl(zone: str, name: str, microjoules: int) -> Files:
    place = f"sys/class/powercap/{zone}"
    return {f"{place}/name": name, f"{place}/energy_uj": str(microjoules),
            f"{place}/max_energy_range_uj": str(RAPL_MAX)}


X86 = Board(
    name="x86-server", device="x86-avx512-vnni", total_w=None, total_scope="package",
    celsius={"x86_pkg_temp": 48.0},
    files={**rapl("intel-rapl:0", "package-0", RAPL_MAX - 1_000_000), **rapl("intel-rapl:0:0", "dram", 5_000_000),
           **rapl("intel-rapl:1", "package-1", 7_000_000), **rapl("intel-rapl:1:0", "dram", 9_000_000),
           **zones([("x86_pkg_temp", 48000)]), **memory(64000),
           **hwmon("sys/class/hwmon/hwmon0", "coretemp", {"temp1_input": 48000, "temp1_label": "Package id 0",
                                                         "temp2_input": 47000, "temp2_label": "Core 0"}),
           **cpufreq(0, 2400000, "powersave"), **cpufreq(1, 2400000, "powersave"),
           "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "4",
           "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "12",
           "sys/devices/system/cpu/cpu0/topology/physical_package_id": "0",
           "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "0",
           "sys/devices/system/cpu/cpu1/thermal_throttle/package_throttle_count": "12",
           "sys/devices/system/cpu/cpu1/topology/physical_package_id": "0",
           "sys/fs/cgroup/cpu.stat": "usage_usec 1000\nnr_periods 100\nnr_throttled 5\nthrottled_usec 9000",
           "sys/fs/cgroup/cpu.max": "200000 100000", "sys/fs/cgroup/memory.max": "4294967296",
           "proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx2 avx512f avx512_vnni"})

JETSONS = (NANO, XAVIER_JP4, XAVIER_JP5, ORIN_NANO_JP5, ORIN_NANO_JP6, ORIN_NX_JP6, AGX_ORIN_JP6, THOR_JP7)
BOARDS = (*JETSONS, PI, X86)

TEGRASTATS = {
    "jetpack4-nano": "RAM 1923/3964MB (lfb 2x2MB) SWAP 191/1982MB (cached 6MB) IRAM 0/252kB(lfb 252kB) CPU "
    "[5%@1224,4%@1224,3%@1224,6%@1224] EMC_FREQ 0%@1600 GR3D_FREQ 0%@76 APE 25 PLL@37C CPU@40C PMIC@50C GPU@40C AO@45C "
    "thermal@40C POM_5V_IN 1750/1628 POM_5V_GPU 0/0 POM_5V_CPU 366/406",
    "jetpack5-xavier-nx": "07-09-2024 13:31:31 RAM 3168/6851MB (lfb 2x4MB) SWAP 161/3426MB (cached 0MB) CPU "
    "[23%@1397,17%@1192,16%@1190,13%@1190,off,off] EMC_FREQ 2%@204 GR3D_FREQ 0%@[114] VIC_FREQ 115 APE 150 AUX@45C "
    "CPU@46.5C thermal@45.6C AO@45C GPU@45.5C PMIC@50C VDD_IN 2763mW/2846mW VDD_CPU_GPU_CV 650mW/670mW VDD_SOC "
    "650mW/711mW",
    "jetpack6-orin-nano": "10-08-2026 04:35:02 RAM 6712/7620MB (lfb 12x4MB) SWAP 369/3810MB (cached 8MB) CPU "
    "[38%@1497,2%@729,1%@729,0%@729,1%@729,0%@729] EMC_FREQ 61%@2133 GR3D_FREQ 99%@[612] NVDEC off NVJPG off VIC off OFA "
    "off APE 200 cpu@57.125C soc2@55.093C soc0@56.625C gpu@58.625C tj@58.312C soc1@55.937C VDD_IN 16321mW/11204mW "
    "VDD_CPU_GPU_CV 7104mW/4944mW VDD_SOC 3120mW/3659mW",
    "jetpack6-agx-orin": "04-11-2025 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) CPU "
    "[0%@729,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@[0,0] VIC_FREQ 729 APE 174 CV0@-256C CPU@44.562C Tboard@32C "
    "GPU@-256C tj@44.343C VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW "
    "VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW",
    "jetpack7-thor": "04-21-2026 15:50:52 RAM 105265/125772MB (lfb 34x4MB) CPU [0%@972,8%@972] EMC_FREQ 0%@2750 "
    "GR3D_FREQ @[314,314,314] NVENC0_FREQ @314 NVDEC0_FREQ @314 NVJPG0_FREQ @314 VIC off OFA_FREQ @315 PVA0_FREQ off APE "
    "300 cpu@37.343C tj@38.875C soc012@37.468C gpu@38.875C VDD_GPU 1962mW/1962mW VDD_CPU_SOC_MSS 5887mW/5887mW "
    "VIN_SYS_5V0 5635mW/5635mW VIN 19780mW/19780mW",
    "jetpack7.2-thor": "08-08-2026 21:00:39 RAM 8353/125749MB (lfb 31x4MB) CPU [90%@2601,75%@2601,off,7%@2601] EMC_FREQ "
    "34%@4266 GR3D_FREQ 87%@[1574,1574,1574] NVENC0_FREQ @1691 VIC off cpu@58.25C/61.75C tj@66.625C/66.625C "
    "gpu@56.937C/66.625C VDD_GPU 37939mW/8660mW/37939mW VDD_CPU_SOC_MSS 30059mW/12281mW/30059mW VIN_SYS_5V0 "
    "15486mW/7424mW/15486mW VIN 124486mW/36487mW/124486mW FUTURE_TOKEN value",
}
