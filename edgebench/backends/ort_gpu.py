"""NVIDIA GPUs under ONNX Runtime: memory at fixed addresses, engines kept on disk, and the GPU's name.

ONNX Runtime itself is handed in: `edgebench.backends.onnxruntime` imports it.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from edgebench.backends import Feeds
from edgebench.errors import InvalidInput, writing
from edgebench.imagecache import CACHE_HINT, cache_root
from edgebench.recipe import Setting
from edgebench.record import TensorSpec, sha256_file

# TensorRT and CUDA graphs do their work in the first inference, the second captures, the third replays.
_FIRST_INFERENCES = 3


def gpu(library: str = "libcuda.so.1") -> tuple[str, str | None]:
    """Return (name and driver of the first NVIDIA GPU, None), or ("", why there is none), from the driver itself."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return "", f"the driver's {library} is not installed"
    count, version, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    status = driver.cuInit(0)
    if status == 0:
        driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0 or count.value == 0:
        return "", f"the driver shows no device (CUDA error {status})"
    driver.cuDeviceGetName(name, len(name), 0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    return f"{name.value.decode(errors='replace')}, CUDA driver {version.value}", None


def tf32_is_off() -> bool:
    """Return whether the environment forbids TF32 to NVIDIA's libraries, TensorRT among them."""
    return os.environ.get("NVIDIA_TF32_OVERRIDE") == "0"


def engine_cache(entry: Path, options: dict[str, Setting], version: str, batch: int, build_number: int,
                 ) -> dict[str, Setting]:
    """Return the TensorRT provider's options that keep engines on disk: building one takes minutes.

    Args:
        entry: The ONNX file; its external data counts too.
        options: Of the provider, as the recipe has them.
        version: ONNX Runtime's.
        batch: Images per inference.
        build_number: Each number has engines, and timings to choose kernels by, of its own.
    """
    files = sorted(entry.parent.glob(f"{entry.name}*"))
    packages = sorted({f"{one.name} {one.version}" for one in importlib.metadata.distributions()
                       if (one.name or "").lower().startswith("tensorrt")})
    parts = [[sha256_file(file) for file in files], options, version, packages, gpu()[0], batch, build_number,
             tf32_is_off()]
    folder = cache_root() / "engines" / "ort-trt" / hashlib.sha256(
        json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    with writing(folder, CACHE_HINT):
        folder.mkdir(parents=True, exist_ok=True)
    return {"trt_engine_cache_enable": True, "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": True, "trt_timing_cache_path": str(folder)}


class DeviceSession:
    """Inputs and outputs stay at fixed addresses on the GPU, so that CUDA graphs can be replayed.

    An inference is: copy in, run, copy out. The first ones, which build engines, choose kernels and capture graphs,
    have run before this is returned.

    Args:
        runtime: The module onnxruntime.
        session: Its session, open on GPU providers.
        inputs: Of the session.
        outputs: Of the session.
        provider: The first of its providers.
        device: Number of the GPU.
        batch: Images per inference.
    """

    def __init__(self, runtime: Any, session: Any, *, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...],
                 provider: str, device: int, batch: int) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._session = session
        self._binding = session.io_binding()
        self._in, self._out = {}, {}
        zeros = {spec.name: np.zeros(_concrete(spec, batch), spec.dtype) for spec in inputs}
        for name, array in zeros.items():
            value = runtime.OrtValue.ortvalue_from_shape_and_type(list(array.shape), array.dtype.type, "cuda", device)
            self._binding.bind_ortvalue_input(name, value)
            self._in[name] = value, _pinned(runtime, provider, array)
        for name, shape, dtype in self._output_shapes(runtime, zeros, batch):
            value = runtime.OrtValue.ortvalue_from_shape_and_type(shape, dtype.type, "cuda", device)
            self._binding.bind_ortvalue_output(name, value)
            self._out[name] = value
        for _ in range(_FIRST_INFERENCES):
            self.infer(zeros)

    def _output_shapes(self, runtime: Any, zeros: dict[str, np.ndarray], batch: int,
                       ) -> list[tuple[str, list[int], np.dtype[Any]]]:
        if not any(isinstance(size, str) for spec in self.outputs for size in spec.shape[1:]):
            return [(spec.name, _concrete(spec, batch), np.dtype(spec.dtype)) for spec in self.outputs]
        # Only an inference tells the other sizes; it must not be the one that is captured.
        uncaptured = runtime.RunOptions()
        uncaptured.add_run_config_entry("gpu_graph_id", "-1")
        names = [spec.name for spec in self.outputs]
        return [(name, list(value.shape), value.dtype)
                for name, value in zip(names, self._session.run(names, zeros, uncaptured), strict=True)]

    def infer(self, feeds: Feeds) -> Feeds:
        """Copy in, run, copy out."""
        for name, (value, pinned) in self._in.items():
            if pinned is None:
                value.update_inplace(np.ascontiguousarray(feeds[name]))
            else:
                view = pinned.numpy()
                np.copyto(view, feeds[name])
                value.update_inplace(view)
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return {name: value.numpy() for name, value in self._out.items()}


def _concrete(spec: TensorSpec, batch: int) -> list[int]:
    sizes = [batch if place == 0 and isinstance(size, str) else size for place, size in enumerate(spec.shape)]
    if any(isinstance(size, str) for size in sizes):
        raise InvalidInput(f"{spec.name!r} has sizes that may vary beside its batch: {spec.shape}",
                           "export it with a fixed height and width: memory on the GPU is laid out beforehand")
    return [int(size) for size in sizes]


def _pinned(runtime: Any, provider: str, like: np.ndarray) -> Any:
    """Return a value in page-locked host memory, copies from which need no staging; None where there is none."""
    for device in runtime.get_ep_devices() if hasattr(runtime, "get_ep_devices") else ():
        if device.ep_name == provider:
            info = device.memory_info(runtime.OrtDeviceMemoryType.HOST_ACCESSIBLE)
            if info is not None:
                return runtime.OrtValue.ortvalue_from_shape_and_type(
                    list(like.shape), like.dtype.type, memory_info=info)
    return None
