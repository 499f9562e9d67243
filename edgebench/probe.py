"""A linear probe: how well a linear classifier reads labels from frozen features (needs scikit-learn)."""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench.errors import InvalidInput, require
from edgebench.metrics import log_softmax, row_blocks
from edgebench.stats import FloatArray, IntArray

Features = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.integer[Any]]

CS = tuple(np.logspace(-4, 2, 10).tolist())
"""Inverse regularisation strengths tried, in scikit-learn's sense: the sum of the losses is weighted by C."""
MAX_ITERATIONS = 1000
# Five variants and the reference on VTAB's 19 tasks, with raw and with normalised features.
_KEPT = 256
_probes: OrderedDict[str, Probe] = OrderedDict()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """A fitted linear classifier of features (N, D) into K classes."""

    c: float
    """The one of `CS` that read most val images right; of equals, the one with the least cross-entropy there."""
    classes: IntArray
    """(K,) labels, ascending."""
    mean: FloatArray
    """(D,) of the train features, taken off first."""
    scale: FloatArray
    """(D,) standard deviation of the train features, divided by; 1 where a feature is constant there."""
    weight: FloatArray
    """(K, D), of the standardised features."""
    bias: FloatArray
    """(K,)."""
    converged: bool
    """No fit, along the choice of C or at the end, ran out of iterations."""

    def predict(self, x: Features) -> IntArray:
        """Return the label (N,) with the largest output for features (N, D); the lowest label wins a tie."""
        found = np.empty(len(x), np.int64)
        for rows in row_blocks(len(x)):
            standardised = (x[rows].astype(np.float64) - self.mean) / self.scale
            found[rows] = self.classes[(standardised @ self.weight.T + self.bias).argmax(axis=1)]
        return found


def refuse_absent_packages() -> None:
    """Raise MissingDependency, before any work, where `fit` would."""
    require("sklearn", "transfer")
    require("threadpoolctl", "transfer")


def fit(train_x: Features, train_y: Labels, val_x: Features, val_y: Labels) -> Probe:
    """Return the multinomial logistic regression whose C is best on val, fitted on train and val together.

    Features are standardised by the train images. The loss is C times the sum of the cross-entropies plus half the
    squared norm of the weights, the biases free; with two classes the cross-entropy of one logistic output. L-BFGS in
    float64 minimises it, for each of `CS` in ascending order from where the one before ended, at last from zero.
    Nothing is drawn at random.

    Args:
        train_x: (N, D), of any float type.
        train_y: (N,) integer labels of at least 2 classes; any numbers.
        val_x: (M, D).
        val_y: (M,) labels; one that train lacks can be no answer while C is chosen, and can be one afterwards.

    Raises:
        MissingDependency: scikit-learn is not installed.
        ValueError: Shapes that do not fit together.
        InvalidInput: No val images, train images of fewer than 2 classes, or a feature that is NaN or infinite.

    Source:
        The linear probe of Kornblith, Shlens & Le 2019 (arXiv:1805.08974), on the 800 + 200 images of VTAB-1k (Zhai et
        al. 2019, arXiv:1910.04867).
    """
    linear, threads = require("sklearn.linear_model", "transfer"), require("threadpoolctl", "transfer")
    train, val = _checked(train_x, train_y), _checked(val_x, val_y)
    if train.shape[1] != val.shape[1]:
        raise ValueError(f"expected as many features in train and val, got {train.shape[1]} and {val.shape[1]}")
    seen = len(np.unique(train_y))
    if not len(val) or seen < 2:
        raise InvalidInput("a probe needs val images, and train images of at least 2 classes: "
                           f"got {len(val)} val images, and train images of {seen}")
    # By equality: rounding gives a constant feature a standard deviation just above 0.
    mean, scale = train.mean(axis=0), train.std(axis=0)
    scale[(train == train[0]).all(axis=0)] = 1.0
    train, val = (train - mean) / scale, (val - mean) / scale

    # Products this small gain little from more threads, and take fifty times as long where these wait for each other
    # beside other work. One thread also adds up in the same order on every machine.
    with threads.threadpool_limits(1):
        basis = _basis(train)
        train_short, val_short = train @ basis, val @ basis
        solver = linear.LogisticRegression(solver="lbfgs", max_iter=MAX_ITERATIONS, warm_start=True)
        converged, found = True, []
        for c in CS:
            converged &= _solve(solver, train_short, train_y, c)
            weight, bias = _outputs(solver)
            found.append((*_read(val_short @ weight.T + bias, solver.classes_, val_y), c))
        best = max(found)[-1]

        both, both_y = np.concatenate([train, val]), np.concatenate([train_y, val_y])
        basis = _basis(both)
        solver = linear.LogisticRegression(solver="lbfgs", max_iter=MAX_ITERATIONS)
        converged &= _solve(solver, both @ basis, both_y, best)
        weight, bias = _outputs(solver)
        weight = weight @ basis.T
    return Probe(c=best, classes=solver.classes_.astype(np.int64), mean=mean, scale=scale, weight=weight, bias=bias,
                 converged=converged)


def remembered(train_x: Features, train_y: Labels, val_x: Features, val_y: Labels) -> Probe:
    """Return `fit` of these arrays, from memory where this process already fitted the same content.

    All variants are compared with the reference's probe, which is so fitted once.

    Raises:
        EdgebenchError: As for `fit`.
    """
    content = hashlib.sha256()
    for array in (train_x, train_y, val_x, val_y):
        content.update(f"{array.dtype} {array.shape} ".encode())
        content.update(np.ascontiguousarray(array).tobytes())
    key = content.hexdigest()
    if key not in _probes:
        _probes[key] = fit(train_x, train_y, val_x, val_y)
    _probes.move_to_end(key)
    if len(_probes) > _KEPT:
        _probes.popitem(last=False)
    return _probes[key]


def _checked(x: Features, y: Labels) -> FloatArray:
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"expected features (N, D) and labels (N,), got {x.shape} and {y.shape}")
    if not np.isfinite(x).all():
        raise InvalidInput("the features hold NaN or infinity", "the artifact overflows in this precision")
    return x.astype(np.float64)


def _basis(x: FloatArray) -> FloatArray:
    """Return orthonormal columns (D, min(N, D)) that span the rows of `x` (N, D).

    The best weights are combinations of the images, and their norm is the same in any orthonormal basis: the fit in
    N instead of D dimensions is exactly the same one, faster.
    """
    return np.linalg.qr(x.T)[0] if len(x) < x.shape[1] else np.eye(x.shape[1])


def _read(outputs: FloatArray, classes: Labels, y: Labels) -> tuple[int, float]:
    """Return how many images outputs (N, K) read right, and the log-likelihood of those whose class is known.

    On an easy task most strengths read all of a few val images right, down to one so weak that the next class which is
    a little rarer is never an answer: only the likelihood tells them apart.
    """
    place = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
    known = classes[place] == y
    right = np.count_nonzero(known & (outputs.argmax(axis=1) == place))
    return int(right), float(log_softmax(outputs)[np.arange(len(y)), place][known].sum())


def _outputs(solver: Any) -> tuple[FloatArray, FloatArray]:
    """Return weight (K, D) and bias (K,): of two classes scikit-learn keeps the second one's alone."""
    weight, bias = solver.coef_, solver.intercept_
    if len(weight) == 1:
        return np.concatenate([np.zeros_like(weight), weight]), np.concatenate([np.zeros_like(bias), bias])
    return weight, bias


def _solve(solver: Any, x: FloatArray, y: Labels, c: float) -> bool:
    """Fit `solver` in place and return whether it converged."""
    trouble = require("sklearn.exceptions", "transfer").ConvergenceWarning
    # The loss per image curves by at least 1/(C N), so a gradient of g leaves the weights within g C N of the best. The
    # usual 1e-4 would stop a large C at once, wherever the search happened to start: a difference between two variants
    # would be the solver's.
    tolerance = min(1e-4, max(1e-7, 1e-4 / (c * len(x))))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solver.set_params(C=c, tol=tolerance).fit(x, y)
    return not any(issubclass(one.category, trouble) for one in caught)
