"""What a classifier's outputs mean: which of them is scored, what its values are, and how scores are read from them.

The graph is read once, at export: which output holds the class scores, and which operators made it. Its values for the
parity inputs confirm that or decide alone. What follows is a `ScoredOutput` in the manifest. From then on `scores` is
the only place that turns an output tensor into stored scores, and `edgebench.metrics.probabilities` the only one that
turns stored scores into probabilities.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt

from edgebench.errors import InvalidInput, UsageError
from edgebench.patterns import COMPUTE, MOVES, Index, index, is_float, scalar, shapes, type_name
from edgebench.record import Artifact, OutputKind, ScoredOutput

Array = npt.NDArray[Any]
SUM_TOLERANCE = 0.02
"""How far probabilities may miss a sum of one before they are none; 16-bit floats err by less."""
EXCLUDED = -65504.0
"""The lowest number of 16 bits: below it a logit excludes its class."""
STEP_8_BITS = 1.0 / 255.0
NOT_SCORES = {
    "ArgMax": "class indices from ArgMax", "ArgMin": "class indices from ArgMin",
    "TopK": "the largest values from TopK, sorted", "NonMaxSuppression": "boxes from NonMaxSuppression",
    "OneHot": "a one-hot code of the answer", "Hardmax": "a one-hot code of the answer from Hardmax"}
"""What operators leave that cannot be scored as one value per class."""
WORDS: dict[OutputKind, str] = {
    "logits": "logits", "log_probabilities": "log-probabilities", "probabilities": "probabilities",
    "sigmoid_scores": "independent sigmoid scores"}
NO_DISTRIBUTION = "the outputs are independent sigmoid scores, no distribution over the classes"
"""Why a score that needs confidences is absent."""
LOGIT_SCALE_LOST = "the outputs are probabilities: they no longer hold the scale and the sum of the logits"
"""Why a score that needs logits is absent."""
_PASSES_ON = MOVES | {"Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "Clip"}
# More than a few hundred nodes of such kinds in a row are no network's end.
_LONGEST_WALK = 200
_SMALL = 1e-3
_AUXILIARY = re.compile(r"^(aux|auxiliary)|[_./-]aux", re.IGNORECASE)
_FEATURES = re.compile(r"embed|feature|^feat|pooled|pooler|pre_?logits|hidden_state|penultimate", re.IGNORECASE)
_NAMED = tuple(re.compile(word, re.IGNORECASE) for word in (r"logit", r"prob|softmax", r"score|class|pred"))


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An output of a graph."""

    name: str
    dims: tuple[int | str, ...] | None
    """None where the graph does not say."""
    reason: str
    """Why it cannot be scored; empty where it can."""

    @property
    def classes(self) -> int | str | None:
        """Values per image."""
        return None if self.dims is None else _width(self.dims)

    def __str__(self) -> str:
        shape = "shape unknown" if self.dims is None else f"({', '.join(map(str, self.dims))})"
        return f"{self.name!r} {shape}" + (f", {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class _Origin:
    """What the operators say that made an output."""

    kind: OutputKind | None
    scale: float
    words: str
    quantized: bool


def refuse_unfit_option(option: str) -> None:
    """Raise UsageError where the option that names an output is of another form than ``NAME`` or ``NAME=KIND``."""
    _, _, kind = option.partition("=")
    if kind and kind not in get_args(OutputKind):
        raise UsageError(f"--output {option}: unknown kind {kind!r}", f"known: {', '.join(get_args(OutputKind))}")


def put_first(path: Path, model: Any, option: str | None, classes: int | None) -> None:
    """Make the output that is scored the first of a model's graph; nothing else about the model changes.

    The rule: the output that the option names. Else, of the float outputs with one value per class, those are left out
    that others are computed from by layers with weights, or whose names say features or auxiliary head; a softmax of
    another output gives way to that; where a class map is given, its length decides; then a name with ``logit``, then
    with ``prob`` in it.

    Args:
        path: The file, for errors.
        model: ONNX model.
        option: ``NAME`` or ``NAME=KIND``; None: the rule decides.
        classes: Number of classes of the class map; None without one.

    Raises:
        UsageError: No output is called like that.
        InvalidInput: No output holds class scores, or several might.
    """
    graph = index(model)
    candidates = _candidates(model, graph)
    named = "; ".join(map(str, candidates)) or "none"
    if option is not None:
        name = option.partition("=")[0]
        chosen = next((one for one in candidates if one.name == name), None)
        if chosen is None:
            raise UsageError(f"--output {name}: {path} has no such output; it has: {named}")
        if chosen.reason:
            raise InvalidInput(f"{path} has no class scores in {chosen}", "--output NAME takes the output with one "
                               "float value per image and class")
    else:
        fit = [one for one in candidates if not one.reason]
        if not fit:
            raise InvalidInput(f"{path} has no logits or probabilities: expected an output (N, classes), got {named}",
                               _hint_without_scores(candidates))
        chosen = _decided(graph, fit, classes)
        if chosen is None:
            raise InvalidInput(f"{path} has several outputs that may hold the class scores: {named}",
                               "--output NAME says which one is scored")
    order(model, chosen.name)


def order(model: Any, first: str) -> None:
    """Put the output of that name first."""
    values = list(model.graph.output)
    if values[0].name != first:
        copies = [type(value).FromString(value.SerializeToString())
                  for value in sorted(values, key=lambda value: value.name != first)]
        del model.graph.output[:]
        model.graph.output.extend(copies)


def _hint_without_scores(candidates: Sequence[_Candidate]) -> str:
    if all(one.reason.startswith("integers") for one in candidates) and candidates:
        return "export it with float scores: a quantized graph ends with DequantizeLinear then"
    if any("ArgMax" in one.reason or "TopK" in one.reason or "one-hot" in one.reason for one in candidates):
        return "export the model before that operator: scores of all classes are needed, not the answer alone"
    return "export the classifier, not its features or post-processing"


def _candidates(model: Any, graph: Index) -> list[_Candidate]:
    known_shapes = shapes(model)
    found = []
    for value in model.graph.output:
        if not value.type.HasField("tensor_type"):
            found.append(_Candidate(value.name, None, "no tensor"))
            continue
        tensor = value.type.tensor_type
        known = known_shapes.get(value.name)
        reason = _answer_alone(graph, value.name)
        if not reason and tensor.elem_type and not is_float(tensor.elem_type):
            reason = f"integers ({type_name(tensor.elem_type)})"
        if not reason and known is not None and (not known or _spread(known) > 1):
            reason = "not one value per class"
        found.append(_Candidate(value.name, known, reason))
    return found


def _spread(dims: Sequence[int | str]) -> int:
    """Return how many dimensions besides the first are not 1."""
    return sum(1 for size in dims[1:] if size != 1)


def _width(dims: Sequence[int | str]) -> int | str:
    """Return the values per image of an output; a string where they vary or spread over several dimensions."""
    wide = [size for size in dims[1:] if size != 1]
    if len(wide) > 1:
        return "×".join(map(str, wide))
    return wide[0] if wide else 1


def _answer_alone(graph: Index, name: str) -> str:
    """Return what an output is that holds answers instead of scores; empty for others."""
    node = graph.behind(name, _PASSES_ON)
    if node is None:
        return ""
    if node.op_type == "TopK" and _is_second(graph, node, name):
        return "class indices from TopK"
    return NOT_SCORES.get(node.op_type, "")


def _is_second(graph: Index, node: Any, name: str) -> bool:
    return len(node.output) > 1 and node.output[1] in _chain(graph, name)


def _decided(graph: Index, fit: Sequence[_Candidate], classes: int | None) -> _Candidate | None:
    def of_the_map(one: _Candidate) -> bool:
        return classes is None or one.classes in (classes, None) or (classes == 2 and one.classes == 1)

    rules: list[Callable[[_Candidate, Sequence[_Candidate]], bool]] = [
        lambda one, _: not _AUXILIARY.search(one.name),
        lambda one, _: not _is_softmax_of_another(graph, one, fit),
        lambda one, left: not _feeds_another(graph, one, left),
        lambda one, _: of_the_map(one),
        lambda one, _: not _FEATURES.search(one.name),
        *(partial(_is_called, word) for word in _NAMED)]
    left = list(fit)
    for keep in rules:
        # A rule that would leave nothing says nothing.
        left = [one for one in left if keep(one, left)] or left
        if len(left) == 1:
            return left[0]
    return None


def _is_called(word: re.Pattern[str], one: _Candidate, _: Sequence[_Candidate]) -> bool:
    return word.search(one.name) is not None


def _is_softmax_of_another(graph: Index, one: _Candidate, fit: Sequence[_Candidate]) -> bool:
    node = graph.behind(one.name, _PASSES_ON)
    if node is None or node.op_type not in ("Softmax", "LogSoftmax", "Sigmoid"):
        return False
    before = _chain(graph, node.input[0])
    return any(before & _chain(graph, other.name) for other in fit if other is not one)


def _chain(graph: Index, name: str) -> set[str]:
    """Return the names of a value on its way back through operators that only pass it on."""
    names = {name}
    while (node := graph.producers.get(name)) is not None and node.op_type in _PASSES_ON:
        name = node.input[0]
        names.add(name)
    return names


def _feeds_another(graph: Index, one: _Candidate, among: Sequence[_Candidate]) -> bool:
    own = _chain(graph, one.name)
    # What only passes on the same values is no layer after it.
    wanted = {other.name for other in among if other is not one and not own & _chain(graph, other.name)}
    waiting = [(name, False) for name in own]
    seen = set(waiting)
    while waiting:
        name, layer = waiting.pop()
        for node in graph.consumers.get(name, []):
            behind = layer or node.op_type in COMPUTE
            for made in node.output:
                if made in wanted and behind:
                    return True
                if (made, behind) not in seen:
                    seen.add((made, behind))
                    waiting.append((made, behind))
    return False


def scored(model: Any, values: Array, option: str | None = None) -> ScoredOutput:
    """Return what the first output of a graph holds, from its operators and from its values for the parity inputs.

    Args:
        model: The FP32 graph, its scored output first.
        values: That output for the parity inputs (N, …), N above 0.
        option: As for `put_first`.

    Raises:
        InvalidInput: Operators and values contradict each other, or the values cannot be scores.
    """
    name = model.graph.output[0].name
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    single = rows.shape[1] == 1
    given = (option or "").partition("=")[2]
    several = len(model.graph.output) > 1
    which = f"output {name!r}" + (f" of {len(model.graph.output)}" if several else "")
    if given:
        asked = cast("OutputKind", given)
        return ScoredOutput(
            name=name, kind="probabilities" if single and asked == "sigmoid_scores" else asked, single=single,
            evidence="option", reason=f"{which}: {WORDS[asked]}, as --output says", given=option or "")
    origin = _origin(index(model), name)
    ready = rows[np.isfinite(rows).all(axis=1)]
    kind, scale, words, by_values = origin.kind, origin.scale, origin.words, False
    if single and kind == "probabilities" and origin.words.startswith("Softmax"):
        raise InvalidInput(f"{which} is a softmax over one value, which is always 1",
                           "export the model with one output per class, or with a sigmoid")
    if kind == "probabilities" and len(ready) and not _sums_to_one(ready / scale, quantized=origin.quantized):
        raise InvalidInput(f"{which} ends in {words}, but its rows do not sum to 1: it runs over another axis than the "
                           "classes", "export the softmax over the class axis, or leave it out")
    if kind is None and not single and len(ready):
        kind, scale, words = _of_values(ready)
        by_values = kind is not None
    result = ScoredOutput(
        name=name, kind=kind or "logits", single=single, scale=scale,
        evidence="values" if by_values else "graph" if kind else "assumed",
        reason=f"{which}: {WORDS[kind or 'logits']}{f' ({words})' if words else ''}", given=option or "")
    if single:
        inside = result.kind in ("probabilities", "sigmoid_scores")
        threshold = 0.5 * scale if inside else 0
        result = replace(
            result, kind="probabilities" if inside else "logits",
            reason=f"{which}: one {'probability' if inside else 'logit'} per image"
                   f"{f' ({words})' if words else ''}; above {threshold:g} is the second class")
    return result


def _origin(graph: Index, name: str) -> _Origin:
    """Return what the operators behind an output say that it is."""
    scale, quantized = 1.0, False
    for _ in range(_LONGEST_WALK):
        node = graph.producers.get(name)
        if node is None:
            break
        operator = node.op_type
        if operator in _PASSES_ON:
            quantized |= operator == "QuantizeLinear"
            name = node.input[0]
            continue
        if operator in ("Mul", "Div") and (factor := _factor(graph, node)) is not None:
            other, by = factor
            scale *= by
            name = other
            continue
        kind = _kind_of(graph, node)
        # A factor on logits is part of them.
        return _Origin(kind, scale if kind in ("probabilities", "sigmoid_scores") else 1.0,
                       _named(node, kind, scale) if kind else "", quantized)
    return _Origin(None, 1.0, "", quantized)


def _named(node: Any, kind: OutputKind, scale: float) -> str:
    plain = {"Softmax": "Softmax", "LogSoftmax": "LogSoftmax", "Sigmoid": "Sigmoid", "HardSigmoid": "HardSigmoid"}
    text = plain.get(node.op_type, {"probabilities": "Softmax", "log_probabilities": "LogSoftmax",
                                    "sigmoid_scores": "Sigmoid", "logits": ""}[kind] + " written out")
    return f"{text} in the graph" + (f", times {scale:g}" if scale != 1.0 and kind != "log_probabilities" else "")


def _factor(graph: Index, node: Any) -> tuple[str, float] | None:
    """Return the value that a product multiplies by one positive constant, and that constant; None for others."""
    for place, other in ((1, 0), (0, 1)):
        if place == 0 and node.op_type == "Div":
            continue
        number = _number(graph, node.input[place])
        if number is not None and number > 0:
            return node.input[other], number if node.op_type == "Mul" else 1.0 / number
    return None


def _number(graph: Index, name: str) -> float | None:
    """Return the one number that a constant holds; None for tensors of several, and for what is no constant."""
    tensor = graph.constants.get(name)
    return scalar(tensor) if tensor is not None else None


def _kind_of(graph: Index, node: Any) -> OutputKind | None:
    simple: dict[str, OutputKind] = {"Softmax": "probabilities", "LogSoftmax": "log_probabilities",
                                     "Sigmoid": "sigmoid_scores", "HardSigmoid": "sigmoid_scores"}
    if node.op_type in simple:
        return simple[node.op_type]
    if node.op_type == "Log" and (before := _logarithm_of(graph, node)) is not None:
        return "log_probabilities" if before == "probabilities" else None
    if node.op_type == "Exp" and (before := graph.behind(node.input[0], _PASSES_ON)) is not None \
            and _kind_of(graph, before) == "log_probabilities":
        return "probabilities"
    if node.op_type == "Div" and _is_softmax(graph, node):
        return "probabilities"
    if node.op_type == "Sub" and _is_log_sum(graph, node.input[1]):
        return "log_probabilities"
    if node.op_type in ("Div", "Reciprocal") and _is_sigmoid(graph, node):
        return "sigmoid_scores"
    return None


def _logarithm_of(graph: Index, node: Any) -> OutputKind | None:
    """Return what a logarithm is taken of; a small constant, added against zeros, changes nothing about that."""
    before = graph.behind(node.input[0], _PASSES_ON)
    if before is not None and before.op_type in ("Add", "Max"):
        for place in (0, 1):
            number = _number(graph, before.input[place])
            if number is not None and 0 <= number <= _SMALL:
                before = graph.behind(before.input[1 - place], _PASSES_ON)
                break
    return _kind_of(graph, before) if before is not None else None


def _is_softmax(graph: Index, node: Any) -> bool:
    """Return whether a quotient is that of exponentials and their sum."""
    above, below = (graph.behind(name, _PASSES_ON) for name in node.input)
    return above is not None and below is not None and above.op_type == "Exp" \
        and below.op_type == "ReduceSum" and graph.behind(below.input[0], _PASSES_ON) is above


def _is_log_sum(graph: Index, name: str) -> bool:
    """Return whether a value is the logarithm of summed exponentials."""
    node = graph.behind(name, _PASSES_ON)
    if node is None or node.op_type == "ReduceLogSumExp":
        return node is not None
    summed = graph.behind(node.input[0], _PASSES_ON) if node.op_type == "Log" else None
    if summed is None or summed.op_type != "ReduceSum":
        return False
    powers = graph.behind(summed.input[0], _PASSES_ON)
    return powers is not None and powers.op_type == "Exp"


def _is_sigmoid(graph: Index, node: Any) -> bool:
    """Return whether a value is 1 / (1 + exp(-x))."""
    if node.op_type == "Div" and _number(graph, node.input[0]) != 1.0:
        return False
    below = graph.behind(node.input[-1], _PASSES_ON)
    if below is None or below.op_type != "Add" or 1.0 not in [_number(graph, name) for name in below.input]:
        return False
    powers = [graph.behind(name, _PASSES_ON) for name in below.input]
    return any(one is not None and one.op_type == "Exp" for one in powers)


def _sums_to_one(rows: Array, *, quantized: bool = False) -> bool:
    """Return whether rows (N, K) are probabilities, up to the steps of 8 bits where they were quantized."""
    room = SUM_TOLERANCE + (rows.shape[1] * STEP_8_BITS / 2 if quantized else 0.0)
    return bool(rows.min() >= -SUM_TOLERANCE and rows.max() <= 1 + SUM_TOLERANCE
                and np.abs(rows.sum(axis=1) - 1.0).max() <= room)


def _of_values(rows: Array) -> tuple[OutputKind | None, float, str]:
    """Return what finite rows (N, K) look like, the value of certainty, and by what; None for ordinary numbers."""
    for scale in (1.0, 100.0):
        if _sums_to_one(rows / scale):
            return "probabilities", scale, f"every row is in 0 to {scale:g} and sums to {scale:g}"
    if rows.max() <= SUM_TOLERANCE and rows.min() < -SUM_TOLERANCE \
            and np.abs(np.exp(rows).sum(axis=1) - 1.0).max() <= SUM_TOLERANCE:
        return "log_probabilities", 1.0, "the exponentials of every row sum to 1"
    return None, 1.0, ""


def assumed(artifact: Artifact) -> ScoredOutput:
    """Return how the artifact's scored output is read; logits where the manifest says nothing."""
    first = artifact.outputs[0]
    return artifact.scored or ScoredOutput(
        name=first.name, kind="logits", single=_width(first.shape) == 1, evidence="assumed",
        reason=f"output {first.name!r}: logits, for this artifact was exported without looking")


def recognised(artifact: Artifact, reference: Array | None) -> ScoredOutput:
    """Return how the artifact's scored output is read, from its golden outputs where the manifest says nothing.

    Args:
        artifact: The manifest.
        reference: Golden outputs (N, …); None without any.
    """
    default = assumed(artifact)
    if artifact.scored is not None or reference is None or default.single:
        return default
    rows = np.asarray(reference, np.float64).reshape(len(reference), -1)
    ready = rows[np.isfinite(rows).all(axis=1)]
    kind, scale, words = _of_values(ready) if len(ready) else (None, 1.0, "")
    return default if kind is None else replace(
        default, kind=kind, scale=scale, evidence="values", reason=f"output {default.name!r}: {WORDS[kind]} ({words})")


def classes(artifact: Artifact) -> int | None:
    """Return how many classes an artifact tells apart; None where its graph does not fix their number."""
    width = _width(artifact.outputs[0].shape)
    return None if isinstance(width, str) else max(width, 2)


def sentence(artifact: Artifact) -> str:
    """Return what the scored output was taken for, for people; empty for the one output of logits that all expect."""
    scored = artifact.scored
    if scored is None or (scored.kind == "logits" and not scored.single and len(artifact.outputs) == 1
                          and not scored.given):
        return ""
    return f"scored in {artifact.model.id}: {scored.reason}"


def features_width(artifact: Artifact, name: str) -> tuple[int | None, str]:
    """Return the width of an output of features, or None and why there are none of one row per image."""
    spec = next((one for one in artifact.outputs if one.name == name), None)
    if spec is None:
        return None, f"the artifact has no output `{name}`: export the model with one"
    width = _width(spec.shape)
    if isinstance(width, str) or len(spec.shape) < 2:
        return None, (f"its output `{name}` is ({', '.join(map(str, spec.shape))}): a probe needs one row per image, "
                      "(N, D); pool the feature map in the graph")
    return width, ""


def scores(raw: Array, meaning: ScoredOutput) -> npt.NDArray[np.float32]:
    """Return what is stored of an output (N, …): (N, K) logits, logarithms of probabilities, or sigmoid scores.

    The softmax of the first two is the model's own probability. A probability of 0 becomes -inf.

    Raises:
        InvalidInput: More than one value per class and image.
    """
    values = np.asarray(raw, np.float32)
    if values.ndim == 0 or _spread(values.shape) > 1 or 0 in values.shape:
        raise InvalidInput(f"expected one value per class from output {meaning.name!r}, got shape {values.shape}",
                           "--output NAME names the output with the class scores")
    rows = values.reshape(len(values), -1)
    if meaning.kind == "probabilities":
        shares = rows.astype(np.float64) / meaning.scale
        if meaning.single:
            shares = np.concatenate([1.0 - shares, shares], axis=1)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(shares.clip(0.0, 1.0)), np.float32)
    if meaning.single:
        return np.asarray(np.concatenate([np.zeros_like(rows), rows], axis=1), np.float32)
    return np.asarray(rows / meaning.scale, np.float32)


def contradicts(raw: Array, meaning: ScoredOutput, *, floats: bool) -> npt.NDArray[np.bool_]:
    """Return which images' outputs (N, …) cannot be what the manifest says that they are (N,).

    Args:
        raw: The scored output, without rows that `edgebench.metrics.broken` names.
        meaning: What it is said to be.
        floats: Whether it is computed in floats throughout; 8-bit steps make probabilities miss their sum.
    """
    rows = np.asarray(raw, np.float64).reshape(len(raw), -1)
    if meaning.kind == "log_probabilities":
        off: Array = rows.max(axis=1) > SUM_TOLERANCE
        return np.asarray(off)
    if meaning.kind not in ("probabilities", "sigmoid_scores"):
        return np.zeros(len(rows), np.bool_)
    rows = rows / meaning.scale
    # A step of 8 bits beyond the range is rounding.
    off = (rows.min(axis=1) < -SUM_TOLERANCE) | (rows.max(axis=1) > 1 + SUM_TOLERANCE)
    if floats and meaning.kind == "probabilities" and not meaning.single:
        off |= np.abs(rows.sum(axis=1) - 1.0) > SUM_TOLERANCE
    return np.asarray(off)


def look_like_probabilities(rows: Array) -> bool:
    """Return whether values (N, K) that are taken for logits are probabilities by all appearances."""
    flat = np.asarray(rows, np.float64)
    return bool(len(flat) and flat.shape[1] > 1 and np.isfinite(flat).all() and _sums_to_one(flat))


def between_zero_and_one(rows: Array) -> bool:
    """Return whether all values (N, K) lie in 0 to 1, as those of a sigmoid do."""
    flat = np.asarray(rows)
    return bool(len(flat) and np.isfinite(flat).all() and flat.min() >= 0.0 and flat.max() <= 1.0)


def largest_difference(values: Array, others: Array) -> float:
    """Return the largest absolute difference of two arrays; infinite where one holds NaN or infinity alone.

    What excludes a class agrees with what excludes it: -inf, or a number so low that 16-bit floats have -inf for it.
    """
    wide, other = (np.asarray(array, np.float64) for array in (values, others))
    differ = (wide != other) & ~((wide < EXCLUDED) & (other < EXCLUDED))
    gaps = np.abs(np.subtract(wide, other, out=np.zeros(wide.shape), where=differ))
    return float(np.where(np.isnan(gaps), np.inf, gaps).max(initial=0.0))


def magnitude(values: Array) -> float:
    """Return the largest absolute value of an array, without what excludes a class."""
    wide = np.asarray(values, np.float64)
    return float(np.abs(wide[np.isfinite(wide) & (wide >= EXCLUDED)]).max(initial=0.0))
