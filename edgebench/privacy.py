"""Switches that keep libraries from reporting to their makers: nothing that edgebench starts sends anything by itself.

`switch_off` runs when the package is imported, before any runtime is. Child processes inherit the environment and
import the package too. What a user asks for, such as pretrained weights, is still downloaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

SWITCHES = {
    # ONNX Runtime 1.32 for Linux collects device, interpreter and model names on a thread of its own.
    "ORT_DISABLE_TELEMETRY": "1",
    "NNCF_CI": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_XET_TELEMETRY_ENABLED": "0",
    # Transformers, Diffusers and Datasets ask for this one.
    "DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # The common convention, which further libraries follow.
    "DO_NOT_TRACK": "1",
}
"""Environment variables that libraries read when they are imported."""
# Without its reporting package OpenVINO's converter, which knows no switch, and NNCF use a stand-in that does nothing.
REPORTING_PACKAGE = "openvino_telemetry"


def switch_off(environment: MutableMapping[str, str] | None = None) -> None:
    """Switch reporting off in `environment`, the process's own where None, and in this process's imports."""
    (os.environ if environment is None else environment).update(SWITCHES)
    sys.modules.setdefault(REPORTING_PACKAGE, None)  # type: ignore[arg-type]  # None makes an import fail
    runtime = sys.modules.get("onnxruntime")
    if runtime is not None and hasattr(runtime, "disable_telemetry_events"):
        # It was imported before this package and read no switch.
        runtime.disable_telemetry_events()
