"""What is declared about a device in ``devices/``: facts, each with its source and how sure it is.

Declared, never observed: what the machine said of itself stands in a run's environment, and
``edgebench.boards.declared_vs_observed`` holds the two against each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgebench.checks import check, check_name

Kind = Literal["jetson", "gpu", "cpu", "board"]
"""``jetson``: an NVIDIA module with its own rails; ``gpu``: a discrete GPU; ``board``: other single-board computers."""
Mark = Literal["verified", "derived", "recalled"]
"""``verified``: read in the named source; ``derived``: computed from verified figures by the rule that the source
states; ``recalled``: a datasheet figure that nobody checked, never printed without this word."""
Scope = Literal["rail", "package", "module", "board", "wall"]
"""What a power figure covers, from one supply inside a module out to the wall socket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where facts come from."""

    covers: tuple[str, ...]
    """Keys of the device that it stands for, such as ``memory_bytes`` or ``rails``."""
    text: str
    mark: Mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The most operations a second that one engine can do in one precision; a multiply-add counts as two."""

    precision: Literal["fp32", "fp16", "bf16", "fp8", "int8", "fp4"]
    engine: Literal["gpu", "gpu-cuda-cores", "dla", "cpu", "cpu-core-cycle", "total"]
    """``gpu``: tensor cores; ``cpu-core-cycle``: operations per core and clock cycle; ``total``: what vendors
    advertise, DLAs included: never a roofline."""
    dense: float | None = None
    """Operations per second (per cycle where the engine says so) without structured sparsity."""
    sparse: float | None = None
    """With 2:4 sparsity; kept apart from `dense`, which ordinary models get."""
    mark: Mark
    source: str
    note: str = ""
    """The clock, mode or accumulator that the figure holds for."""

    def __post_init__(self) -> None:
        check(self.dense is not None or self.sparse is not None, "a dense or a sparse figure", None)
        check(min(self.dense or 1, self.sparse or 1) > 0, "figures above 0", (self.dense, self.sparse))


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerMode:
    """One of nvpmodel's modes. Names are clock caps, not measured watts, and ids differ between boards and releases."""

    id: int
    name: str
    release: str
    """Software that the id holds for, such as ``JetPack 6.2``."""
    default: bool = False
    reboot: bool = False
    """Known to need a reboot when it is entered."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rail:
    """A power rail with a sensor, found by its label."""

    label: str
    scope: Scope
    meaning: str
    chip: str = ""
    """Name of the sensor's driver where it may come without a label, such as ``ina238``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TotalPower:
    """How a total is made of rails."""

    labels: tuple[str, ...]
    """Rails to add up; one alone where a rail already contains the others."""
    scope: Scope
    meaning: str

    def __post_init__(self) -> None:
        check(len(self.labels) > 0, "at least one rail", self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThermalLimit:
    """A temperature at which the device does something."""

    what: str
    """Such as ``hardware throttle``."""
    celsius: float
    mark: Mark
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """The graphics processor."""

    cuda_cores: int | None = None
    tensor_cores: int | None = None
    sms: int | None = None
    clock_max_hz: float | None = None
    """Highest clock of the widest power mode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A declared device, from ``devices/``."""

    id: str
    title: str
    backends: tuple[str, ...]
    """Runtimes that can run there."""
    source: str
    """Where the facts come from, in one sentence; `sources` says it fact by fact."""
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    """ONNX Runtime execution providers that it has."""
    kind: Kind = "cpu"
    compute_capability: str | None = None
    """CUDA's, such as ``8.7``."""
    modules: tuple[str, ...] = ()
    """Module part numbers, such as ``P3767-0003``."""
    compatible: tuple[str, ...] = ()
    """Strings of the device tree that name it where no part number does, such as ``raspberrypi,5-model-b``."""
    nvml_names: tuple[str, ...] = ()
    """What NVML calls the GPU."""
    cpu_features: tuple[str, ...] = ()
    """Instruction-set extensions that a CPU of this kind must have."""
    memory_bytes: int | None = None
    """Of the GPU, or of the whole module where CPU and GPU share it."""
    memory_shared: bool = False
    """Whether CPU and GPU share one memory."""
    memory_bandwidth_bytes_per_s: float | None = None
    gpu: Gpu | None = None
    peaks: tuple[Peak, ...] = ()
    precisions: tuple[str, ...] = ()
    """Those with fast hardware; from the compute capability by the rules in ``devices/README.md``."""
    power_modes: tuple[PowerMode, ...] = ()
    power_max_w: float | None = None
    """Highest that the maker states for the module or card."""
    rails: tuple[Rail, ...] = ()
    total_power: TotalPower | None = None
    """None: no known sum of rails is the whole."""
    total_power_reason: str = ""
    """Why there is no total."""
    thermal_limits: tuple[ThermalLimit, ...] = ()
    dlas: int | None = None
    """Deep-learning accelerators; None where the question does not arise."""
    jetpacks: tuple[str, ...] = ()
    """Major releases of NVIDIA's software that run there."""
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.id, "id")
        check(self.total_power is None or set(self.total_power.labels) <= {rail.label for rail in self.rails},
              "a total of declared rails", self.total_power and self.total_power.labels)
        check(self.total_power is None or not self.total_power_reason, "a total or a reason, not both",
              self.total_power_reason)
        check((self.memory_bytes or 1) > 0, "memory_bytes above 0", self.memory_bytes)

    def peak(self, precision: str, engine: str = "gpu") -> Peak | None:
        """Return the peak of one engine in one precision; None where none is declared."""
        return next((one for one in self.peaks if one.precision == precision and one.engine == engine), None)
