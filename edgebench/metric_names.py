"""Which metrics a rule may name, by property, with their units, so that a mistyped name is recognised early.

The tests hold this table against what the properties give.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from edgebench.errors import UsageError, suggest

PERFORMANCE = "performance"
"""Where speed, memory, size and energy stand."""
RUN = "run"
"""Facts of the run itself that are no scores."""
_PAIRED = {"negative_flips": "fraction", "positive_flips": "fraction", "disagreement": "fraction", "mcnemar_p": "1",
           "mcnemar_p_holm": "1"}
_OOD = {f"{metric}_{number}": "fraction" for metric in ("auroc", "aupr_in", "aupr_out", "fpr95")
        for number in ("msp", "max_logit", "energy", "entropy")}
METRICS: Mapping[str, Mapping[str, str]] = {
    PERFORMANCE: {
        "latency_p50": "s", "latency_p90": "s", "latency_p95": "s", "latency_p99": "s", "latency_mean": "s",
        "throughput_offline": "images/s", "artifact_size": "bytes", "peak_host_memory": "bytes",
        "device_memory": "bytes", "shared_memory": "bytes", "cold_start_time": "s", "load_time": "s",
        "first_inference_time": "s",
        "energy_per_inference": "J", "energy_per_inference_net": "J",
        "server_rate": "1/s", "camera_miss_rate": "fraction", "camera_jitter": "s",
        "camera_age_mean": "s", "camera_age_peak": "s", "multi_stream_throughput": "images/s",
        "build_latency_spread": "fraction", "build_disagreement": "fraction",
        **{f"device_{part}_p50": "s" for part in ("h2d", "compute", "d2h", "enqueue")},
        **{f"{scenario}_latency_p{q}": "s" for scenario in ("multi_stream", "offline", "server", "camera")
           for q in (50, 90, 95, 99)}},
    RUN: {"precision_achieved": "1", "precision_share": "fraction", "golden_max_abs_difference": "1", "caveats": "1"},
    "accuracy": {
        "accuracy_top1": "fraction", "accuracy_top5": "fraction", "accuracy_real": "fraction", **_PAIRED,
        "mcnemar_p_real": "1", "mcnemar_p_real_holm": "1", "top5_overlap": "fraction", "kl_divergence": "nat",
        "js_divergence": "nat", "confidence_difference": "fraction", "logit_difference": "1",
        "logit_difference_max": "1"},
    "calibration": {
        "ece15_ew": "fraction", "ece_em": "fraction", "ece_debiased_l2": "fraction", "ece_debiased_l2_squared": "1",
        "ece_debiased_l1": "fraction", "ece_sweep": "fraction", "smece": "fraction", "mce": "fraction", "nll": "nat",
        "brier": "1", "brier_reliability": "1", "brier_resolution": "1", "brier_uncertainty": "1",
        "brier_within_bins": "1", "signed_gap": "fraction", "aurc": "fraction", "e_aurc": "fraction",
        "augrc": "fraction", "auroc_fd": "fraction", "coverage_at_5_risk": "fraction",
        "risk_at_80_coverage": "fraction", "ece15_ew_null": "fraction", "certain_images": "1", "distinct_logits": "1",
        "cwece": "fraction", "cwece_thresholded": "fraction", "temperature": "1", "temperature_ratio": "1",
        "ece15_ew_scaled": "fraction", "nll_scaled": "nat", "ece15_ew_scaled_by_reference": "fraction",
        "nll_scaled_by_reference": "nat"},
    "mistakes": {
        "annotated_accuracy": "fraction", "annotated_accuracy_real": "fraction", "annotated_error": "fraction",
        "annotated_mcnemar_p": "1",
        "factor_accuracy_*": "fraction", "factor_error_*": "fraction", "factor_mcnemar_p_*": "1", "error_ratio_*": "1"},
    "shape-bias": {
        "shape_bias": "fraction", "shape_bias_by_exemplar": "fraction", "shape_bias_change_by_exemplar": "fraction",
        "shape_bias_*": "fraction", "cue_accuracy": "fraction", "shape_accuracy": "fraction",
        "texture_accuracy": "fraction", "no_conflict_accuracy": "fraction", "decision_ties": "1",
        "decisions_switched": "fraction", "cues_swapped": "fraction"},
    "robustness": {
        "accuracy": "fraction", "accuracy_top1": "fraction", "accuracy_top5": "fraction", "accuracy_real": "fraction",
        "consistency": "fraction", "corruption_error": "fraction", "ce": "1", "mean_corruption_accuracy": "fraction",
        "mean_consistency": "fraction",
        "relative_corruption_accuracy": "1", "mean_ce": "1", "relative_mean_ce": "1",
        "held_out_corruption_accuracy": "fraction", "mean_of_seven": "fraction", **_PAIRED, **_OOD},
    "transfer": {
        "probe_accuracy": "fraction", "probe_recall": "fraction", "probe_accuracy_normalised": "fraction",
        "probe_c": "1", "probe_swap_accuracy": "fraction", "probe_swap_recall": "fraction",
        "probe_refit_gain": "fraction", "vtab_mean": "fraction", "vtab_swap_mean": "fraction",
        **{f"{stem}_{name}": unit for stem in ("probe", "probe_swap") for name, unit in _PAIRED.items()
           if name != "disagreement"}},
    "synthetic": {
        "accuracy": "fraction", "accuracy_paper": "fraction",
        "mean_accuracy": "fraction", "mean_accuracy_without_scene_light": "fraction", "mean_accuracy_paper": "fraction",
        **_PAIRED},
    "invariance": {
        "accuracy": "fraction", "consistency": "fraction", "p_true": "fraction", "js_divergence": "nat",
        "retention": "1", "retention_area": "1", "accuracy_mean": "fraction", "consistency_mean": "fraction",
        "consistency_worst": "fraction", "mcnemar_p": "1", "mcnemar_p_holm": "1"},
}
_CHANGE = re.compile(r"_change(?=$|@|_)")
_PERCENTILE = re.compile(r"(?:(?:multi_stream|offline|server|camera)_)?latency_p(\d+)")
_SCENARIO = re.compile(r"(multi_stream|offline|server|camera)_")
_DEVICE_TIME = re.compile(r"device_(h2d|compute|d2h|enqueue)_p50")
_TIMING = re.compile(r"latency_|throughput|_time$|^energy_|^server_rate$|^camera_|^device_\w+_p50$")


def plain(name: str) -> str:
    """Return the name of a score without the part that says it is a change: ``ece15_ew`` for ``ece15_ew_change``."""
    return _CHANGE.sub("", name, count=1)


def of_single_stream(metric: str) -> bool:
    """Return whether a metric of performance comes from the timings one after the other."""
    return metric.startswith(("latency_", "energy_per_inference"))


def scenario(metric: str) -> str | None:
    """Return the scenario whose timings a metric of performance comes from; None where it comes from none."""
    if metric == "throughput_offline":
        return "offline"
    named = _SCENARIO.match(metric)
    if named:
        return named[1].replace("_", "-")
    return "single-stream" if of_single_stream(metric) or _DEVICE_TIME.fullmatch(metric) else None


def device_part(metric: str) -> str | None:
    """Return which part of an inference by the device's own clock a metric is the median of; None where it is none."""
    found = _DEVICE_TIME.fullmatch(metric)
    return found[1] if found else None


def quantile(metric: str) -> float | None:
    """Return which quantile of a scenario's latency a metric is, such as 0.99 for ``latency_p99``; None: it is none."""
    found = _PERCENTILE.fullmatch(metric)
    return int(found[1]) / 100.0 if found else None


def is_timing(metric: str) -> bool:
    """Return whether a metric depends on what else the machine did meanwhile."""
    return _TIMING.search(metric) is not None


def unit(property_: str, metric: str) -> str:
    """Return the unit of a metric, or an empty string where this version does not know it."""
    known = METRICS.get(property_, {})
    stem = plain(metric.partition("@")[0])
    if stem in known:
        return known[stem]
    return next((of for name, of in known.items() if name.endswith("*") and stem.startswith(name[:-1])), "")


def home(metric: str, property_: str | None, also: Collection[tuple[str, str]] = ()) -> str:
    """Return the property that a metric belongs to.

    Args:
        metric: As a rule names it, with its level.
        property_: The property that the rule names, if it does.
        also: Further (property, metric) pairs that are known, such as the scores of the runs at hand.

    Raises:
        UsageError: No property has such a metric, with the nearest name; or several have, and none is named.
    """
    given = {of for of, name in also if plain(name) == plain(metric)}
    owners = [of for of in METRICS if unit(of, metric)] + sorted(given - set(METRICS))
    owners += [of for of in METRICS if of in given and of not in owners]
    if property_ is not None and property_ not in METRICS and property_ not in {of for of, _ in also}:
        raise UsageError(f"unknown property {property_!r}{suggest(property_, METRICS)}",
                         f"known: {', '.join(METRICS)}")
    if property_ is not None and property_ in owners:
        return property_
    if property_ is None and len(owners) == 1:
        return owners[0]
    if property_ is None and owners:
        raise UsageError(f"metric {metric!r} is of several properties: {', '.join(owners)}",
                         f"say which: of = \"{owners[0]}\"")
    stem = metric.partition("@")[0]
    names = list(_names([property_] if property_ else METRICS)) + [name for _, name in also]
    where = f" of property {property_!r}" if property_ else ""
    elsewhere = f"it is one of {', '.join(owners)}" if owners else (
        "known: " + ", ".join(sorted(set(_names([property_])))) if property_ else "edgebench properties lists them")
    raise UsageError(f"unknown metric {metric!r}{where}{suggest(stem, names)}", elsewhere)


def _names(of: Iterable[str]) -> Iterable[str]:
    return (name.rstrip("*_") for one in of for name in METRICS.get(one, {}))
