"""Energy from power readings or from counters, with the uncertainty that sampling leaves.

Uncertainties are standard uncertainties (k = 1) and cover what the readings leave open: power between two readings, the
two edges, the sensor's step and its own averaging, and how far a meter's clock may be off. What the sensor itself gets
wrong is not in them, and for most boards unknown. Between readings power is taken to move independently of the
sampling: a load that repeats in step with it is seen at the same points of its cycle again and again.

Source of the rules: JCGM 100:2008 (GUM), 4.3.7: a quantity known to lie within ±a is given the uncertainty a/√3.
"""

from __future__ import annotations

import math

import numpy as np

from edgebench.telemetry.types import Energy, EnergyPerInference, Series

LONGEST_HOLE = 5.0
"""Intervals without a reading after which the energy of a stretch counts as unknown, unless it is short beside it."""
SHORT_HOLE = 0.02
"""Share of the stretch that a hole may fill nevertheless."""


def energy(series: Series, begin_ns: int, end_ns: int) -> Energy:
    """Return the energy of one channel between two times, in joules.

    Counters are taken as counters: the difference of their readings at both edges, interpolated. Power is integrated by
    the trapezoid rule over its readings, cut at the edges.

    Args:
        series: Power or energy of one channel.
        begin_ns: On the series' clock.
        end_ns: After `begin_ns`.

    Returns:
        Joules and their standard uncertainty, or the reason why they are unknown.
    """
    scope = series.channel.scope
    inside = sum(begin_ns <= at <= end_ns for at in series.t_ns)

    def unknown(reason: str) -> Energy:
        return Energy(joules=None, uncertainty_j=None, scope=scope, method="none", readings=inside, reason=reason)

    if series.channel.quantity not in ("power_w", "energy_j"):
        return unknown(f"{series.channel.name} is no power and no energy")
    if end_ns <= begin_ns:
        return unknown("the stretch has no duration")
    if not series.t_ns:
        return unknown(series.gaps[-1].reason if series.gaps else "there is no reading")
    if not inside:
        return unknown(f"no reading within {(end_ns - begin_ns) / 1e9:.3g} s; the sensor is read every "
                       f"{series.interval_s:.3g} s")
    times = np.array(series.t_ns, dtype=np.int64)
    values = np.array(series.values)
    step_s = float(np.median(np.diff(times))) / 1e9 if len(times) > 1 else series.interval_s
    step_s = max(step_s, series.interval_s)
    lead_s, tail_s = (int(times[0]) - begin_ns) / 1e9, (end_ns - int(times[-1])) / 1e9
    hole = _hole(times, begin_ns, end_ns) / 1e9
    allowed = max(LONGEST_HOLE * step_s, SHORT_HOLE * (end_ns - begin_ns) / 1e9)
    if max(hole, lead_s, tail_s) > allowed:
        reasons = [gap.reason for gap in series.gaps if gap.begin_ns < end_ns and gap.end_ns > begin_ns]
        return unknown(f"no reading for {max(hole, lead_s, tail_s):.3g} s of {(end_ns - begin_ns) / 1e9:.3g} s"
                       + (f": {reasons[0]}" if reasons else ""))
    if series.channel.quantity == "energy_j":
        if np.any(np.diff(values) < 0):
            return unknown("the energy counter went back: it was reset meanwhile")
        if lead_s > 0 or tail_s > 0:
            return unknown("the counter was not read before and after the stretch")
        joules, uncertainty = _counted(times, values, begin_ns, end_ns)
        resolution = (series.channel.resolution or 0.0) / math.sqrt(6)  # two independent roundings
        return Energy(joules=joules, uncertainty_j=math.hypot(uncertainty, resolution), scope=scope, method="counter",
                      readings=inside)
    joules, uncertainty = _integrated(times, values, begin_ns, end_ns, step_s, series.channel.averaging_s or 0.0)
    # Times that are off move what lies around both edges into the stretch, or out of it.
    off_s = series.channel.alignment_s or 0.0
    around = values[(times >= begin_ns - off_s * 1e9) & (times <= end_ns + off_s * 1e9)]
    alignment = off_s * float(np.ptp(around)) / math.sqrt(3)
    # The step's error may be the same in all readings, so that it does not average out.
    resolution = (series.channel.resolution or 0.0) / math.sqrt(12) * (end_ns - begin_ns) / 1e9
    return Energy(joules=joules, uncertainty_j=math.hypot(uncertainty, resolution, alignment), scope=scope,
                  method="trapezoid", readings=inside)


def _hole(times: np.ndarray, begin_ns: int, end_ns: int) -> int:
    """Return the longest part of the stretch between two neighbouring readings, in nanoseconds."""
    cut = np.clip(times, begin_ns, end_ns)
    return int(np.max(np.diff(cut))) if len(cut) > 1 else 0


def _counted(times: np.ndarray, values: np.ndarray, begin_ns: int, end_ns: int) -> tuple[float, float]:
    # The counter is known at the readings; in between it lies anywhere between its neighbours.
    origin = times[0]
    edges = np.interp([begin_ns - origin, end_ns - origin], times - origin, values)
    spread = 0.0
    for edge in (begin_ns, end_ns):
        after = int(np.searchsorted(times, edge))
        if times[after] != edge:
            spread += (values[after] - values[after - 1]) ** 2 / 12
    return float(edges[1] - edges[0]), math.sqrt(spread)


def _integrated(times: np.ndarray, values: np.ndarray, begin_ns: int, end_ns: int, step_s: float,
                averaging_s: float) -> tuple[float, float]:
    origin = times[0]
    inner = times[(times > begin_ns) & (times < end_ns)]
    knots = np.concatenate([[begin_ns], inner, [end_ns]]) - origin
    power = np.interp(knots, times - origin, values)  # held constant outside the readings
    widths = np.diff(knots) / 1e9
    joules = float(np.sum(widths * (power[1:] + power[:-1]) / 2))
    spread = float(np.ptp(values[(times >= begin_ns) & (times <= end_ns)]))
    swing = np.abs(np.diff(power))
    for place, edge in ((0, begin_ns), (-1, end_ns)):
        # A piece cut off at an edge: its power may be that of either reading around it, wherever the cut lies.
        after = int(np.clip(np.searchsorted(times, edge, "right" if place == 0 else "left"), 1, len(times) - 1))
        around = values[[after - 1, after]] if len(times) > 1 else values
        mean = (power[1:] + power[:-1])[place] / 2
        swing[place] = max(swing[place], 2 * float(np.max(np.abs(around - mean))))
    # Between two readings a power that moves from one to the other stays within them, so that the trapezoid is wrong by
    # half of the difference at most. Over holes and outside the readings it may have been anywhere it was seen.
    blind = widths > 2 * step_s
    blind[0] |= begin_ns < times[0]
    blind[-1] |= end_ns > times[-1]
    swing = np.where(blind, np.maximum(swing, spread), swing)
    sampling = float(np.sqrt(np.sum((swing * widths) ** 2 / 12)))
    # A sensor that averages over the past moves power across both edges, by half of its window at most.
    return joules, math.hypot(sampling, averaging_s / 2 * spread / math.sqrt(3))


def per_inference(active: Energy, active_s: float, inferences: int, idle: Energy | None = None,
                  idle_s: float | None = None) -> EnergyPerInference:
    """Return the energy of one inference: everything drawn (gross), and what was drawn above idle (net).

    Net energy subtracts the idle power times the active duration, idle taken on the same channel with the model loaded
    and nothing running.

    Args:
        active: Over the whole measurement.
        active_s: Its duration.
        inferences: Run meanwhile.
        idle: Over a stretch without inferences; None: there was none.
        idle_s: Its duration.
    """
    if active.joules is None or active.uncertainty_j is None or inferences < 1:
        return EnergyPerInference(gross_j=None, gross_uncertainty_j=None, net_j=None, net_uncertainty_j=None,
                                  idle_w=None, inferences=inferences, scope=active.scope,
                                  reason=active.reason or "no inference was run")
    gross, gross_u = active.joules / inferences, active.uncertainty_j / inferences
    if idle is None or idle.joules is None or idle.uncertainty_j is None or not idle_s or idle.scope != active.scope:
        why = "idle power was not measured"
        if idle is not None:
            why = (idle.reason or why) if idle.scope == active.scope else "idle was measured on another scope"
        return EnergyPerInference(gross_j=gross, gross_uncertainty_j=gross_u, net_j=None, net_uncertainty_j=None,
                                  idle_w=None, inferences=inferences, scope=active.scope, reason=why)
    idle_w, idle_u = idle.joules / idle_s, idle.uncertainty_j / idle_s
    return EnergyPerInference(
        gross_j=gross, gross_uncertainty_j=gross_u, net_j=gross - idle_w * active_s / inferences,
        net_uncertainty_j=math.hypot(active.uncertainty_j, idle_u * active_s) / inferences, idle_w=idle_w,
        inferences=inferences, scope=active.scope)
