"""Whether this machine has an NVIDIA GPU that CUDA can use."""

from __future__ import annotations

import pytest

from edgebench.backends.cuda import CudaError, CudaRuntime
from edgebench.errors import MissingDependency


def reason_against() -> str:
    """Return why there is none, or an empty string."""
    try:
        CudaRuntime().gpu()
    except (CudaError, MissingDependency) as error:
        return error.message
    return ""


REASON = reason_against()


def gpu(test):
    """Mark a test that needs the GPU; it is skipped, with CUDA's reason, where there is none."""
    return pytest.mark.gpu(pytest.mark.skipif(bool(REASON), reason=f"needs an NVIDIA GPU: {REASON}")(test))
