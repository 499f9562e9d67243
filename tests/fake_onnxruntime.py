"""A stand-in for onnxruntime on a machine with an NVIDIA GPU: it records what is asked of it and can misbehave.

Its one model gives ``logits`` = the mean of each image over space, through "device" memory that only copies reach.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
FAILURES = ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile",
            "NotImplemented", "RuntimeException")


@dataclass
class Machine:
    """How ONNX Runtime is to behave, and what was asked of it."""

    available: tuple[str, ...] = (TENSORRT, CUDA, CPU)
    assigned: dict[str, list[tuple[str, str]]] | None = field(default_factory=lambda: {
        CUDA: [("conv_1", "Conv"), ("pool", "GlobalAveragePool")]})
    """Nodes by provider; None: a version that cannot tell."""
    falls_back: bool = False
    """Whether sessions silently come up on the CPU alone."""
    kernel_type: str = "float16"
    output_dims: tuple[Any, ...] = ("batch", 3)
    has_pinned_memory: bool = False
    fails_at_start: Exception | None = None
    fails_in_run: Exception | None = None
    sessions: list[Any] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    errors: Any = None
    """The kinds of errors, by name."""


def install(patch: pytest.MonkeyPatch, **behaviour: Any) -> Machine:
    """Put the stand-in in onnxruntime's place; returns its machine."""
    machine = Machine(**behaviour)
    state = types.ModuleType("onnxruntime.capi.onnxruntime_pybind11_state")
    for name in FAILURES:
        setattr(state, name, type(name, (Exception,), {}))
    fake = types.ModuleType("onnxruntime")
    fake.__version__ = "1.32.0"
    fake.__spec__ = importlib.machinery.ModuleSpec("onnxruntime", None, origin=__file__)
    fake.machine = machine
    machine.errors = state
    fake.get_available_providers = lambda: list(machine.available)
    fake.preload_dlls = lambda: machine.calls.append("preload_dlls")
    fake.SessionOptions = SessionOptions
    fake.RunOptions = RunOptions
    fake.InferenceSession = lambda *arguments, **named: Session(machine, *arguments, **named)
    fake.OrtValue = types.SimpleNamespace(
        ortvalue_from_shape_and_type=lambda shape, kind, device="cpu", number=0, memory_info=None: Value(
            machine, shape, kind, "pinned" if memory_info else device, number))
    fake.OrtDeviceMemoryType = types.SimpleNamespace(HOST_ACCESSIBLE="host", DEFAULT="device")
    fake.get_ep_devices = lambda: [types.SimpleNamespace(
        ep_name=CUDA, memory_info=lambda kind: kind if machine.has_pinned_memory else None)]
    patch.setitem(sys.modules, "onnxruntime", fake)
    patch.setitem(sys.modules, "onnxruntime.capi.onnxruntime_pybind11_state", state)
    return machine


class SessionOptions:
    def __init__(self) -> None:
        self.config: dict[str, str] = {}
        self.dimensions: dict[str, int] = {}
        self.enable_profiling = False
        self.profile_file_prefix = ""

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.config[key] = value

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        self.dimensions[name] = size


class RunOptions:
    def __init__(self) -> None:
        self.config: dict[str, str] = {}

    def add_run_config_entry(self, key: str, value: str) -> None:
        self.config[key] = value


class Value:
    """An OrtValue: what lies on a device is reached by copies alone."""

    def __init__(self, machine: Machine, shape: list[int], kind: Any, device: str, number: int) -> None:
        self.memory = np.full(shape, np.nan, kind)
        self.device, self.number, self.machine = device, number, machine

    def update_inplace(self, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        self.machine.calls.append("copy in")
        self.memory[...] = array

    def numpy(self) -> np.ndarray:
        if self.device == "pinned":
            return self.memory
        self.machine.calls.append("copy out")
        return self.memory.copy()


class Binding:
    def __init__(self, machine: Machine) -> None:
        self.inputs: dict[str, Value] = {}
        self.outputs: dict[str, Value] = {}
        self.machine = machine

    def bind_ortvalue_input(self, name: str, value: Value) -> None:
        self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: Value) -> None:
        self.outputs[name] = value

    def synchronize_outputs(self) -> None:
        self.machine.calls.append("synchronize")


class Session:
    def __init__(self, machine: Machine, path: str, options: SessionOptions, providers: list[Any],
                 enable_fallback: int = 1) -> None:
        if machine.fails_at_start is not None:
            raise machine.fails_at_start
        self.machine, self.path, self.options, self.enable_fallback = machine, path, options, enable_fallback
        self.requested = [one if isinstance(one, tuple) else (one, {}) for one in providers]
        self.runs: list[tuple[str, Any]] = []
        if options.enable_profiling:
            assert options.profile_file_prefix
        if machine.assigned is not None:
            self.get_provider_graph_assignment_info = self._assignment
        machine.sessions.append(self)

    def get_providers(self) -> list[str]:
        names = [name for name, _ in self.requested]
        return [CPU] if self.machine.falls_back else [*names, *([] if CPU in names else [CPU])]

    def _assignment(self) -> list[Any]:
        assert self.options.config["session.record_ep_graph_assignment_info"] == "1"
        return [types.SimpleNamespace(ep_name=name, get_nodes=lambda nodes=nodes: [
            types.SimpleNamespace(name=one, op_type=kind, domain="") for one, kind in nodes])
            for name, nodes in self.machine.assigned.items()]

    def get_inputs(self) -> list[Any]:
        return [types.SimpleNamespace(name="image", type="tensor(float)", shape=self._fixed(("batch", 3, 4, 4)))]

    def get_outputs(self) -> list[Any]:
        return [types.SimpleNamespace(name="logits", type="tensor(float)", shape=self._fixed(self.machine.output_dims))]

    def _fixed(self, dims: tuple[Any, ...]) -> list[Any]:
        return [self.options.dimensions.get(size, size) for size in dims]

    def io_binding(self) -> Binding:
        return Binding(self.machine)

    def run(self, names: list[str] | None, feeds: dict[str, np.ndarray], options: RunOptions | None = None) -> list[Any]:
        if self.machine.fails_in_run is not None:
            raise self.machine.fails_in_run
        self.runs.append(("run", options.config if options else {}))
        return [feeds["image"].mean((2, 3))]

    def run_with_iobinding(self, binding: Binding) -> None:
        if self.machine.fails_in_run is not None:
            raise self.machine.fails_in_run
        self.machine.calls.append("run")
        given, wanted = binding.inputs["image"], binding.outputs["logits"]
        assert given.device == wanted.device == "cuda"
        self.runs.append(("bound", (id(given.memory), id(wanted.memory))))
        wanted.memory[...] = given.memory.mean((2, 3))

    def end_profiling(self) -> str:
        path = Path(f"{self.options.profile_file_prefix}_1.json")
        kinds = [("Conv", self.machine.kernel_type), ("GlobalAveragePool", "float")]
        path.write_text(json.dumps([{
            "cat": "Node", "name": f"n{number}_kernel_time", "dur": 5,
            "args": {"op_name": operator, "node_index": str(number), "provider": CUDA,
                     "input_type_shape": [{kind: [1]}], "output_type_shape": [{kind: [1]}]}}
            for _ in self.runs for number, (operator, kind) in enumerate(kinds)]))
        return str(path)
