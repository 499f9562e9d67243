"""Parity numbers against their definitions and SciPy, in the awkward cases too, and the message about precision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import cosine

from edgebench import catalog, parity
from edgebench.errors import CannotMeasure, InvalidInput
from edgebench.recipe import Build
from edgebench.record import ExecutedPrecision, OutputParity

PRECISION = ExecutedPrecision(
    requested="int8", executed="fp32", time_share={"fp32": 0.9, "int8": 0.1}, layers={"fp32": 7, "int8": 2},
    compute_layers={"fp32": 5, "int8": 1}, evidence="a test")


def one(values: object, reference: object) -> OutputParity:
    (found,) = parity.compare({"logits": np.asarray(values)}, {"logits": np.asarray(reference)})
    return found


def test_differences_by_hand():
    found = one([[1.0, 2.0], [3.0, 5.0]], [[1.0, 2.0], [3.0, 4.0]])
    assert (1.0, 0.25) == (found.max_abs_difference, found.mean_abs_difference)
    assert 10 * np.log10(30 / 1) == pytest.approx(found.sqnr_db)


def test_cosine_is_scipys():
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, 4, 10)).astype(np.float32)
    assert 1 - cosine(a.ravel(), b.ravel()) == pytest.approx(one(a, b).cosine, rel=1e-6)


def test_signal_to_noise_of_8_bit_rounding_is_near_the_textbook_figure():
    # Uniform signal over the full range, uniform rounding error: 6.02 dB for each bit.
    values = np.random.default_rng(0).uniform(-1, 1, 200_000)
    assert 6.02 * 8 == pytest.approx(one(np.round(values * 128) / 128, values).sqnr_db, abs=0.1)


def test_equal_outputs_have_no_noise_to_hold_the_signal_against():
    values = np.random.default_rng(0).standard_normal((3, 7))
    found = one(values, values.copy())
    assert (0.0, 0.0, None) == (found.max_abs_difference, found.mean_abs_difference, found.sqnr_db)
    assert 1.0 == pytest.approx(found.cosine)


@pytest.mark.parametrize(("values", "reference"), [([[0.0, 0.0]], [[1.0, 0.0]]), ([[1.0, 0.0]], [[0.0, 0.0]]),
                                                   ([[0.0, 0.0]], [[0.0, 0.0]])])
def test_zero_vectors_have_no_direction(values, reference):
    assert one(values, reference).cosine is None


def test_a_reference_of_zeros_has_no_power():
    assert one([[1.0]], [[0.0]]).sqnr_db is None


def test_opposite_outputs_have_cosine_minus_one():
    assert -1.0 == one([[1e-3, 2e-3]], [[-1e-3, -2e-3]]).cosine


def test_half_precision_outputs_do_not_overflow_in_the_sums():
    found = one(np.full((4, 1000), 300, np.float16), np.full((4, 1000), 300, np.float32))
    assert (0.0, 1.0) == (found.max_abs_difference, found.cosine)


@pytest.mark.parametrize(("bad", "told"), [(np.nan, "1 NaN and 0 infinite"), (np.inf, "0 NaN and 1 infinite")])
def test_outputs_that_are_not_finite_name_the_output_and_the_first_input(bad, told):
    values = np.ones((3, 2))
    values[1, 0] = bad
    with pytest.raises(CannotMeasure, match=rf"output 'logits' holds {told} values, first for input 1 of 3"):
        one(values, np.ones((3, 2)))
    with pytest.raises(InvalidInput, match="the reference's output 'logits' holds"):
        one(np.ones((3, 2)), values)


def test_every_output_is_compared_under_its_name():
    outputs = {"logits": np.ones((1, 2)), "features": np.zeros((1, 3))}
    found = parity.compare(outputs, {"features": np.ones((1, 3)), "logits": np.ones((1, 2)), "more": np.ones(1)})
    assert [("logits", 0.0), ("features", 1.0)] == [(each.name, each.max_abs_difference) for each in found]


@pytest.mark.parametrize(("reference", "told"), [
    ({"scores": np.ones((1, 2))}, "output 'logits' has no reference; it has: scores"),
    ({"logits": np.ones((2, 2))}, r"shape \(1, 2\), its reference \(2, 2\)")])
def test_another_models_reference_is_refused(reference, told):
    with pytest.raises(InvalidInput, match=told):
        parity.compare({"logits": np.ones((1, 2))}, reference)


def test_an_empty_output_is_refused():
    with pytest.raises(InvalidInput, match="output 'logits' is empty"):
        one(np.ones((0, 3)), np.ones((0, 3)))


def test_agreement_by_hand():
    assert 0.5 == parity.top1_agreement(np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([[0.0, 9.0], [0.0, 1.0]]))


@pytest.mark.parametrize("shape", [(0, 3), (3,), (2, 3, 4)])
def test_agreement_of_what_is_not_logits_is_refused(shape):
    with pytest.raises(InvalidInput, match=r"expected logits \(N, K\)"):
        parity.top1_agreement(np.zeros(shape), np.zeros(shape))


def test_an_achieved_precision_is_no_doubt():
    assert parity.not_achieved(replace(PRECISION, executed="int8"), catalog.recipe("ort-int8")) is None


def test_a_precision_that_was_not_achieved_names_request_execution_shares_and_evidence():
    found = parity.not_achieved(PRECISION, catalog.recipe("ort-int8"))
    assert found is not None
    assert "precision-not-achieved" == found.code
    assert found.message == (
        "ort-int8: asked for int8, but fp32 was executed (90% of the time in fp32, 10% of the time in int8; convolutions "
        "and matrix products: 5 fp32, 1 int8), as read from a test")
    assert "--allow-precision-fallback" in found.hint


@pytest.mark.parametrize(("placement", "doubted"), [({"GPU": 9}, True), ({"GPU": 8, "DLA": 1}, False), ({}, False)])
def test_an_accelerator_that_runs_nothing_is_not_achieved(placement, doubted):
    recipe = replace(catalog.recipe("tensorrt-fp16"), build=Build(dla_core=1, batches=(1, 1, 1)))
    found = parity.not_achieved(replace(PRECISION, requested="fp16", executed="fp16", placement=placement), recipe)
    assert doubted == (found is not None)
    if found is not None:
        assert "precision-not-achieved" == found.code
        assert found.message == ("tensorrt-fp16: asked for deep-learning accelerator 1, but it runs none of the 9 layers, "
                                 "as read from a test")


def test_without_times_the_numbers_of_layers_are_told():
    bare = replace(PRECISION, time_share={}, compute_layers={})
    found = parity.not_achieved(bare, catalog.recipe("ort-int8"))
    assert found is not None
    assert "executed (layers: 7 fp32, 2 int8), as read" in found.message


def test_the_symmetric_dialect_on_the_cpu_is_told_what_to_use_instead():
    recipe = catalog.recipe("ort-int8")
    assert recipe.quantization is not None
    symmetric = replace(recipe, quantization=replace(recipe.quantization, activations="int8"))
    found = parity.not_achieved(PRECISION, symmetric)
    assert found is not None
    assert "kernels fuse uint8 activations" in found.hint


def test_quantized_layers_that_run_in_float_are_told_even_where_they_are_few():
    # The symmetric dialect on a CPU: convolutions before a clip do not fuse, the others do.
    executed = replace(PRECISION, executed="int8", compute_layers={"int8": 35, "fp32": 15})
    written = replace(PRECISION, executed="int8", compute_layers={"int8": 50})
    recipe = catalog.recipe("ort-int8")
    assert parity.not_achieved(executed, recipe) is None
    found = parity.not_achieved(executed, recipe, written)
    assert found is not None
    assert "only 70% of the convolutions and matrix products were executed in it, and 100% of the file's" in found.message
    partly = replace(written, compute_layers={"int8": 36, "fp32": 14})
    assert parity.not_achieved(executed, recipe, partly) is None, "layers that the recipe leaves float are no failure"


def test_float_layers_that_take_most_of_the_time_are_no_failure_where_the_file_leaves_them_float():
    # A small ViT: its patch embedding stays float and takes longer than all the products in INT8.
    executed = replace(PRECISION, compute_layers={"int8": 12, "fp32": 4}, time_share={"fp32": 0.75, "int8": 0.25})
    recipe = catalog.recipe("ort-int8")
    written = replace(PRECISION, executed="int8", compute_layers={"int8": 12, "fp32": 4})
    assert parity.not_achieved(executed, recipe, written) is None
    assert parity.not_achieved(executed, recipe) is not None
    none_left = replace(written, compute_layers={"fp32": 16})
    assert parity.not_achieved(executed, recipe, none_left) is not None, "a file without any INT8 is no INT8 file"
    untold = replace(executed, compute_layers={})
    assert parity.not_achieved(untold, recipe, written) is not None, "without counts there is no proof"
