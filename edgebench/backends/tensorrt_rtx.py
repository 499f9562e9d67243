"""TensorRT-RTX: `edgebench.backends.tensorrt` with the library that builds ahead of time, without a GPU."""

from __future__ import annotations

from edgebench.backends.tensorrt import TensorRT

_BACKEND = TensorRT("tensorrt_rtx")
packages, build, reason_against = _BACKEND.packages, _BACKEND.build, _BACKEND.reason_against
open_session, executed_precision, prepare = _BACKEND.open_session, _BACKEND.executed_precision, _BACKEND.prepare
engine_for, built_on_opening = _BACKEND.engine_for, _BACKEND.built_on_opening
