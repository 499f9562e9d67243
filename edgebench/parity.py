"""How far an artifact's outputs lie from its reference's, and whether the precision asked for was executed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench.errors import CannotMeasure, InvalidInput
from edgebench.outputs import EXCLUDED
from edgebench.recipe import Precision, Recipe
from edgebench.record import Caveat, ExecutedPrecision, OutputParity

Array = npt.NDArray[Any]
NOT_ACHIEVED = "precision-not-achieved"
"""Code of the caveat that `not_achieved` returns."""
UNFUSED = 0.9
"""Runtimes may merge layers, so that shares by number are compared with this much room."""


def compare(outputs: Mapping[str, Array], reference: Mapping[str, Array], precision: Precision | None = None,
            ) -> tuple[OutputParity, ...]:
    """Return, for each output, how it differs from the reference's output of the same name.

    Args:
        outputs: Arrays of any shape by name, from the same inputs as `reference`.
        reference: Arrays of the same shapes; further names are passed over.
        precision: Of what gave `outputs`, which explains what goes wrong; None: not known.

    Raises:
        InvalidInput: An output without a reference, of another shape, or a reference that is not finite.
        CannotMeasure: An output holds NaN or infinity: the artifact computes nonsense.
    """
    found = []
    for name, values in outputs.items():
        if name not in reference:
            raise InvalidInput(f"output {name!r} has no reference; it has: {', '.join(reference) or 'none'}",
                               "export again: artifact and reference are of different models")
        found.append(_compare(name, values, reference[name], precision))
    return tuple(found)


def _compare(name: str, values: Array, reference: Array, precision: Precision | None) -> OutputParity:
    if values.shape != reference.shape:
        raise InvalidInput(f"output {name!r} has shape {values.shape}, its reference {reference.shape}",
                           "export again: artifact and reference are of different models")
    # Sums over millions of float32 values, of which half-precision ones may overflow, need the wider type.
    own, other = (np.asarray(array, np.float64).ravel() for array in (values, reference))
    if own.size == 0:
        raise InvalidInput(f"output {name!r} is empty: shape {values.shape}")
    # What excludes a class on both sides agrees, and no number can stand for it.
    counted = ~((own < EXCLUDED) & (other < EXCLUDED))
    own, other = own[counted], other[counted]
    if own.size == 0:
        own = other = np.zeros(1)
    if not np.isfinite(other).all():
        raise InvalidInput(f"the reference's output {name!r} holds {_not_finite(reference)}",
                           "the model itself fails on these inputs: check its weights and preprocessing")
    if not np.isfinite(own).all():
        raise CannotMeasure(f"output {name!r} holds {_not_finite(values)}, the reference none",
                            "16-bit floats overflow above 65504 in fp16: keep the layers that do in fp32, or use bf16"
                            if precision in (None, "fp16") else f"{precision} does not carry this model's numbers: "
                            "use a recipe of higher precision")
    difference = np.abs(own - other)
    noise, signal = float(difference @ difference), float(other @ other)
    norms = math.sqrt(float(own @ own)) * math.sqrt(signal)
    return OutputParity(
        name=name, max_abs_difference=float(difference.max()), mean_abs_difference=float(difference.mean()),
        # Rounding may carry parallel vectors past 1.
        cosine=min(1.0, max(-1.0, float(own @ other) / norms)) if norms > 0 else None,
        # A reference of zeros has no power to hold the difference against.
        sqnr_db=10 * math.log10(signal / noise) if noise > 0 and signal > 0 else None)


def _not_finite(values: Array) -> str:
    rows = np.atleast_1d(values)
    first = int(np.argmin(np.isfinite(rows).reshape(len(rows), -1).all(axis=1)))
    return (f"{np.isnan(rows).sum()} NaN and {np.isinf(rows).sum()} infinite values, "
            f"first for input {first} of {len(rows)}")


def top1_agreement(logits: Array, reference: Array) -> float:
    """Return the share of rows with the same largest logit; the first of equal ones counts.

    Args:
        logits: (N, K), N above 0.
        reference: (N, K).

    Raises:
        InvalidInput: Other shapes.
    """
    if logits.ndim != 2 or logits.shape != reference.shape or 0 in logits.shape:
        raise InvalidInput(f"expected logits (N, K) of the same shape twice, got {logits.shape} and {reference.shape}")
    return float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean())


def not_achieved(precision: ExecutedPrecision, recipe: Recipe, written: ExecutedPrecision | None = None,
                 ) -> Caveat | None:
    """Return the doubt about an artifact that did not get the precision or accelerator of its recipe; None if it did.

    Its message names what was asked for, what was executed, in which shares, and how that was read.

    Args:
        precision: As the runtime tells.
        recipe: What was asked for.
        written: As the file has it, or as it was built, where that is known: then it counts whether the layers that are
            written in the precision are executed in it, and not which layers take most of the time.
    """
    if recipe.build is not None and recipe.build.dla_core is not None and precision.placement \
            and not precision.placement.get("DLA"):
        return Caveat(
            code=NOT_ACHIEVED,
            message=f"{recipe.id}: asked for deep-learning accelerator {recipe.build.dla_core}, but it runs none of "
                    f"the {sum(precision.placement.values())} layers, as read from {precision.evidence}",
            hint="leave dla_core out of its [build] table, or try typing = \"weak\" there; "
                 "--allow-precision-fallback goes on with a caveat")
    intended = _share(written) if written is not None and written.compute_layers and precision.compute_layers else 0.0
    if intended and _share(precision) >= UNFUSED * intended:
        # What was to be in it is in it; where float layers take most of the time, that is how the file is written.
        return None
    if not precision.achieved:
        what = f"{precision.executed} was executed"
    elif intended:
        what = (f"only {_share(precision):.0%} of the convolutions and matrix products were executed in it, and "
                f"{intended:.0%} of the file's are written in it")
    else:
        return None
    shares = [f"{share:.0%} of the time in {name}" for name, share in _ranked(precision.time_share)]
    counts = [f"{count} {name}" for name, count in _ranked(precision.compute_layers or precision.layers)]
    kind = "convolutions and matrix products" if precision.compute_layers else "layers"
    told = "; ".join(filter(None, (", ".join(shares), f"{kind}: {', '.join(counts)}" if counts else "")))
    return Caveat(
        code=NOT_ACHIEVED,
        message=f"{recipe.id}: asked for {precision.requested}, but {what}"
                + (f" ({told})" if told else "") + f", as read from {precision.evidence}",
        hint=f"{_hint(precision, recipe)}; --allow-precision-fallback goes on with a caveat")


def _share(precision: ExecutedPrecision) -> float:
    """Return the share of convolutions and matrix products in the precision asked for, by their number."""
    total = sum(precision.compute_layers.values())
    return precision.compute_layers.get(precision.requested, 0) / total if total else 1.0


def _hint(precision: ExecutedPrecision, recipe: Recipe) -> str:
    quantization = recipe.quantization
    if precision.requested == "int8" and recipe.backend == "onnxruntime" and not recipe.providers \
            and quantization is not None and quantization.activations == "int8":
        return "ONNX Runtime's CPU kernels fuse uint8 activations, not symmetric int8 ones: use the recipe for the CPU"
    return "leave the recipe out on this machine, or use one that this runtime executes here"


def _ranked(shares: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(((name, share) for name, share in shares.items() if share), key=lambda pair: -pair[1])
