"""How numbers, scores, data sets and conditions are called in what people read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

# Factor to the unit that people read, by the record's unit.
UNITS = {"s": (1e3, "ms"), "bytes": (1e-6, "MB"), "fraction": (100.0, "%"), "images/s": (1.0, "img/s"), "1": (1.0, ""),
         "J": (1e3, "mJ"), "1/s": (1.0, "per second")}
BACKENDS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT",
            "tensorrt_rtx": "TensorRT-RTX"}
BOUNDARIES = {"host_to_host": "host to host", "compute": "device work alone"}
CONDITIONS = {"corruptions": "corrupted", "imagenet-c-generated": "corrupted here", "scale": "scale", "shift": "shift",
              "resolution": "resolution", "probe": "linear probe"}
TITLES = {
    "latency_p50": "Latency p50", "latency_p90": "Latency p90", "latency_p95": "Latency p95",
    "latency_p99": "Latency p99", "latency_mean": "Mean latency", "throughput_offline": "Offline throughput",
    **{f"{scenario}_latency_{level}": f"{words} latency {level}" for scenario, words in (
        ("multi_stream", "Multi-stream"), ("server", "Server"), ("camera", "Camera"))
       for level in ("p50", "p90", "p95", "p99")},
    "multi_stream_throughput": "Multi-stream throughput", "server_rate": "Highest arrival rate",
    "camera_miss_rate": "Camera frames missed", "camera_jitter": "Camera jitter",
    "camera_age_mean": "Camera age of information, mean", "camera_age_peak": "Camera age of information, peak",
    "energy_per_inference": "Energy per inference", "energy_per_inference_net": "Energy per inference above idle",
    "device_h2d_p50": "Copy to the device p50", "device_compute_p50": "Computing on the device p50",
    "device_d2h_p50": "Copy from the device p50", "device_enqueue_p50": "Enqueueing p50",
    "loadgen_latency_p90": "Latency p90 by LoadGen", "loadgen_early_stopping_p90": "Early-stopping p90 by LoadGen",
    "cold_start_time": "Cold start", "load_time": "Load time", "first_inference_time": "First inference",
    "device_memory": "Device memory", "shared_memory": "Shared memory taken", "peak_host_memory": "Peak host memory",
    "build_latency_spread": "Latency spread of builds", "build_disagreement": "Disagreement of builds",
    "accuracy_top1": "Top-1", "accuracy_top5": "Top-5", "kl_divergence": "KL divergence",
    "ece15_ew": "ECE", "ece15_ew_null": "ECE by chance", "ece_em": "ECE equal-mass", "nll": "NLL",
    "ece_debiased_l2": "ECE debiased L2", "ece_debiased_l1": "ECE debiased L1",
    "ece_debiased_l2_squared": "ECE debiased L2 squared", "signed_gap": "Confidence − accuracy",
    "ece_sweep": "ECE sweep", "smece": "Smooth ECE", "mce": "Largest calibration gap (MCE)", "cwece": "Class-wise ECE",
    "cwece_thresholded": "Class-wise ECE, p > 0.001", "aurc": "AURC", "e_aurc": "Excess AURC", "augrc": "AUGRC",
    "auroc_fd": "AUROC of confidence for errors", "coverage_at_5_risk": "Coverage at 5 % risk",
    "risk_at_80_coverage": "Risk at 80 % coverage", "ece15_ew_scaled": "ECE after temperature scaling",
    "nll_scaled": "NLL after temperature scaling",
    "ece15_ew_scaled_by_reference": "ECE after scaling by the reference's temperature",
    "nll_scaled_by_reference": "NLL after scaling by the reference's temperature",
    "factor_mcnemar_p": "McNemar p by factor",
    "factor_mcnemar_p_holm": "McNemar p by factor, adjusted by Holm", "factor_accuracy": "Accuracy by factor",
    "factor_error": "Error by factor", "js_divergence": "Jensen–Shannon divergence",
    "accuracy_real": "Top-1, ReaL labels", "mcnemar_p_real": "McNemar p, ReaL labels",
    "mcnemar_p_real_holm": "McNemar p, ReaL labels, adjusted by Holm",
    "ce": "CE", "mean_ce": "mCE", "relative_mean_ce": "Relative mCE",
    "mean_of_seven": "Mean of the seven sets",
    "vtab_mean": "VTAB mean", "vtab_swap_mean": "VTAB mean with the reference's probes", "probe_c": "Probe's C",
    "p_true": "Probability of the target",
    **{f"{metric}_{number}": f"{words} by {of}" for metric, words in (
        ("auroc", "AUROC"), ("aupr_in", "AUPR of its own images"), ("aupr_out", "AUPR of foreign images"),
        ("fpr95", "False positives at 95 % kept")) for number, of in (
            ("msp", "confidence"), ("max_logit", "largest logit"), ("energy", "energy"), ("entropy", "entropy"))},
}
# Scores of ImageNet-X: stem, whether a change, which annotation and labels, factor.
_BY_FACTOR = re.compile(r"(?P<stem>factor_accuracy|factor_error|factor_mcnemar_p_holm|factor_mcnemar_p|error_ratio)"
                        r"(?P<change>_change)?_(?P<group>multi_real_|multi_|real_)?(?P<level>\w+)$")
_GROUPS = {"multi_": ", all factors of an image", "real_": ", ReaL labels",
           "multi_real_": ", all factors of an image, ReaL labels"}
_LEVELS = {"mean": "mean of all", "mean_n200": "mean, 200+ images"}
# Of shape bias, what is no category.
_BY_CATEGORY = re.compile(r"shape_bias_(?!change|by_)(?P<level>[a-z]+)$")
_TEST = re.compile(r"(?:(?P<of>\w+)_)?mcnemar_p(?P<adjusted>_holm)?")
_SEVERITY = re.compile(r"(?P<what>[a-z_]+):(?P<severity>\d+)$")
_DIRECTED = re.compile(r"(?P<size>\d+(?:\.\d+)?)(?P<direction>[a-z]+)$")


def fixed(value: float, decimals: int, *, sign: bool = False) -> str:
    """Return `value` with that many decimals, thousands separated, a true minus sign, and no minus before a zero."""
    text = f"{value:{'+' if sign else ''},.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def decimals(values: Iterable[float], digits: int = 3) -> int:
    """Return how many decimals show `digits` significant digits of the value closest to 0 (at most 6)."""
    smallest = min((abs(value) for value in values if value), default=1.0)
    return min(6, max(0, digits - 1 - math.floor(math.log10(smallest))))


def span(low: float | None, high: float | None, places: int, *, sign: bool = False) -> str:
    """Return an interval in words: ``1.2–3.4``, ``−1.1 to +0.5``, ``≤ 3.4``; empty without both ends."""
    if low is not None and high is not None:
        joint = " to " if low < 0 or sign else "–"
        return f"{fixed(low, places, sign=sign)}{joint}{fixed(high, places, sign=sign)}"
    if high is not None:
        return f"≤ {fixed(high, places, sign=sign)}"
    return "" if low is None else f"≥ {fixed(low, places, sign=sign)}"


def is_change(name: str) -> bool:
    """Return whether a score is a difference from the reference's."""
    return "_change" in name.partition("@")[0]


def is_p_value(name: str) -> bool:
    """Return whether a score is a p-value."""
    return "mcnemar_p" in name


def parts(name: str) -> tuple[str, str]:
    """Return what a score is called and at which level of its family it stands, such as (Top-1, fog, severity 3).

    The level is empty where there is none. Names that this version does not know are spelt out.
    """
    metric, _, level = name.partition("@")
    by_factor, by_category = _BY_FACTOR.match(name), _BY_CATEGORY.match(name)
    if by_factor:
        stem = metric_title(by_factor["stem"] + (by_factor["change"] or ""))
        return stem + _GROUPS.get(by_factor["group"], ""), _LEVELS.get(by_factor["level"]) or _spelt(by_factor["level"])
    if by_category:
        return "Shape bias by category", by_category["level"]
    return metric_title(metric), level_title(level)


def metric_title(metric: str) -> str:
    """Return what a metric is called: ``NLL change`` for ``nll_change``."""
    if metric in TITLES:
        return TITLES[metric]
    test = _TEST.fullmatch(metric)
    if test:
        adjusted = "adjusted by Holm" if test["adjusted"] else ""
        return ", ".join(filter(None, ("McNemar p", _spelt(test["of"] or ""), adjusted)))
    stem, changed, rest = metric.partition("_change")
    words = TITLES.get(stem) or _spelt(stem)[:1].upper() + _spelt(stem)[1:]
    return f"{words} change{' ' * bool(rest)}{_spelt(rest).strip()}" if changed else words


def level_title(level: str) -> str:
    """Return a level in words: ``fog, severity 3`` for ``fog:3``, ``0.125 left`` for ``0.125left``."""
    graded, directed = _SEVERITY.match(level), _DIRECTED.match(level)
    if graded:
        return f"{_spelt(graded['what'])}, severity {graded['severity']}"
    return f"{directed['size']} {directed['direction']}" if directed else _spelt(level)


def title(name: str) -> str:
    """Return what a score is called, with its level."""
    metric, level = parts(name)
    return f"{metric}: {level}" if level else metric


def member_title(dataset: str) -> str:
    """Return what tells a data set apart in its family: ``dtd`` for ``vtab/dtd/test``."""
    return _spelt(dataset.split("/")[1] if "/" in dataset else dataset)


def listed(names: Sequence[str]) -> str:
    """Return names in a row: ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _spelt(name: str) -> str:
    return name.replace("_", " ")
