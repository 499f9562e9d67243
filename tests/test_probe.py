"""The linear probe against scikit-learn used directly, on real digits, and on data that is awkward."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from edgebench import probe
from edgebench.errors import InvalidInput, MissingDependency

linear = pytest.importorskip("sklearn.linear_model", reason="the transfer extra brings scikit-learn")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    # Threads of the matrix products wait for each other where others are at work: minutes instead of seconds.
    with pytest.importorskip("threadpoolctl").threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def digits():
    """Train, val and test of 8 x 8 digits, as float32 features (n, 64) and labels; some pixels are always 0."""
    x, y = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order].astype(np.float32), y[order]
    return [(x[rows], y[rows]) for rows in (slice(0, 200), slice(200, 300), slice(300, 1797))]


def gaussian(n, dimensions, classes, seed, distance=1.0, scale=1.0):
    """Features (n, dimensions) around one centre per class, and labels; the centres do not depend on `seed`."""
    centres = np.random.default_rng(99).normal(size=(classes, dimensions)) * distance
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return ((centres[labels] + generator.normal(size=(n, dimensions))) * scale).astype(np.float32), labels


def directly(train, val, c):
    """The classifier that scikit-learn gives with strength `c`, and its scaler, both to many digits."""
    scaler = pytest.importorskip("sklearn.preprocessing").StandardScaler().fit(train[0].astype(np.float64))
    found = linear.LogisticRegression(C=c, max_iter=20_000, tol=1e-9)
    found.fit(scaler.transform(np.concatenate([train[0], val[0]])), np.concatenate([train[1], val[1]]))
    return found, scaler


class TestAgainstScikitLearn:
    @pytest.mark.parametrize(("n", "dimensions", "classes"), [(90, 12, 3), (40, 70, 4), (60, 20, 2), (30, 45, 2)])
    def test_weights_are_those_of_a_pipeline(self, n, dimensions, classes):
        train, val = gaussian(n, dimensions, classes, 1, 0.3), gaussian(n // 2, dimensions, classes, 2, 0.3)
        found = probe.fit(*train, *val)
        other, scaler = directly(train, val, found.c)
        np.testing.assert_allclose(found.mean, scaler.mean_, rtol=1e-12)
        np.testing.assert_allclose(found.scale, scaler.scale_, rtol=1e-12)
        weight = found.weight if classes > 2 else found.weight[1:] - found.weight[0]
        largest = np.abs(other.coef_).max()
        np.testing.assert_allclose(weight / largest, other.coef_ / largest, atol=2e-3)
        x = gaussian(2500, dimensions, classes, 3, 0.3)[0]
        assert np.mean(found.predict(x) == other.predict(scaler.transform(x))) > 0.998
        assert found.converged

    def test_the_strength_reads_most_of_val_and_of_equals_it_is_the_likeliest(self, digits):
        train, val, test = digits
        found = []
        scaler = pytest.importorskip("sklearn.preprocessing").StandardScaler().fit(train[0])
        for c in np.logspace(-4, 2, 10):
            one = linear.LogisticRegression(C=c, max_iter=10_000, tol=1e-7).fit(scaler.transform(train[0]), train[1])
            likelihood = np.mean(one.predict_log_proba(scaler.transform(val[0]))[np.arange(len(val[1])), val[1]])
            found.append((one.score(scaler.transform(val[0]), val[1]), likelihood, c))
        assert [right for right, _, _ in found].count(max(found)[0]) > 1
        best, found = max(found)[2], probe.fit(*train, *val)
        assert best == found.c
        other, scaler = directly(train, val, found.c)
        agreement = np.mean(found.predict(test[0]) == other.predict(scaler.transform(test[0])))
        assert agreement > 0.998
        assert np.mean(found.predict(test[0]) == test[1]) == pytest.approx(
            other.score(scaler.transform(test[0]), test[1]), abs=0.002)

    def test_reading_more_of_val_counts_before_the_likelihood(self):
        disagreed = 0
        for seed in range(6):
            train, val = gaussian(40, 30, 4, seed, 0.25), gaussian(40, 30, 4, 100 + seed, 0.25)
            scaler = pytest.importorskip("sklearn.preprocessing").StandardScaler().fit(train[0])
            found = []
            for c in np.logspace(-4, 2, 10):
                one = linear.LogisticRegression(C=c, max_iter=10_000, tol=1e-9).fit(scaler.transform(train[0]), train[1])
                likelihood = np.mean(one.predict_log_proba(scaler.transform(val[0]))[np.arange(40), val[1]])
                found.append((one.score(scaler.transform(val[0]), val[1]), likelihood, c))
            assert max(found)[2] == probe.fit(*train, *val).c
            disagreed += max(found)[2] != max(found, key=lambda one: one[1])[2]
        assert disagreed

    def test_digits_are_read(self, digits):
        train, val, test = digits
        assert np.mean(probe.fit(*train, *val).predict(test[0]) == test[1]) > 0.9

    def test_strengths_are_ten_from_1e_4_to_1e2(self):
        assert (10, 1e-4, 1e2) == (len(probe.CS), probe.CS[0], probe.CS[-1])
        np.testing.assert_allclose(np.diff(np.log10(probe.CS)), 2 / 3)

    def test_where_the_search_starts_does_not_show_with_separable_classes(self):
        # More dimensions than images: at scikit-learn's own tolerance, large strengths end where the search began.
        train = gaussian(80, 200, 4, 4, 0.15)
        found = [linear.LogisticRegression(max_iter=5000), linear.LogisticRegression(max_iter=5000, warm_start=True)]
        probe._solve(found[1], train[0].astype(np.float64), train[1], 0.1)
        for one in found:
            assert probe._solve(one, train[0].astype(np.float64), train[1], 10.0)
        x = gaussian(2000, 200, 4, 6, 0.15)[0]
        assert np.mean(found[0].predict(x) == found[1].predict(x)) > 0.998
        loose = linear.LogisticRegression(C=10.0, max_iter=5000).fit(*train)
        assert np.mean(found[0].predict(x) == loose.predict(x)) < 0.99


class TestInvariance:
    def test_the_unit_and_the_origin_of_a_feature_do_not_matter(self, digits):
        train, val, test = digits
        factor = np.random.default_rng(1).uniform(0.5, 20.0, 64)
        one = probe.fit(*train, *val)
        other = probe.fit(train[0] * factor + 3.0, train[1], val[0] * factor + 3.0, val[1])
        assert one.c == other.c
        # Float32 rounds the moved features anew.
        assert np.mean(one.predict(test[0]) == other.predict(test[0] * factor + 3.0)) > 0.99

    def test_labels_may_be_any_numbers(self, digits):
        train, val, test = digits
        names = np.array([900, -4, 7, 8, 3, 1000, 12, 77, 5, 6])
        plain = probe.fit(*train, *val).predict(test[0])
        named = probe.fit(train[0], names[train[1]], val[0], names[val[1]])
        assert sorted(names.tolist()) == named.classes.tolist()
        assert np.mean(names[plain] == named.predict(test[0])) > 0.998

    def test_any_float_type_and_mapped_files_are_read(self, digits, tmp_path):
        train, val, test = digits
        np.save(tmp_path / "test.npy", test[0])
        mapped = np.load(tmp_path / "test.npy", mmap_mode="r")
        one, other = probe.fit(*train, *val), probe.fit(train[0].astype(np.float16), train[1], val[0].astype(np.float64), val[1])
        # Digits are whole numbers up to 16, which float16 holds exactly.
        assert one.predict(mapped).tolist() == other.predict(test[0].astype(np.float16)).tolist()

    def test_predictions_do_not_depend_on_the_block_of_an_image(self, digits):
        train, val, test = digits
        found = probe.fit(*train, *val)
        whole = (test[0].astype(np.float64) - found.mean) / found.scale @ found.weight.T + found.bias
        assert len(test[0]) > 1024
        assert found.classes[whole.argmax(axis=1)].tolist() == found.predict(test[0]).tolist()

    def test_one_thread_is_at_work_however_many_there_are(self, monkeypatch):
        pools, solve = pytest.importorskip("threadpoolctl"), probe._solve
        seen = []

        def spy(*arguments):
            seen.extend(one["num_threads"] for one in pools.threadpool_info())
            return solve(*arguments)

        monkeypatch.setattr(probe, "_solve", spy)
        with pools.threadpool_limits(2):
            before = [one["num_threads"] for one in pools.threadpool_info()]
            probe.fit(*gaussian(60, 10, 3, 1), *gaussian(30, 10, 3, 2))
            after = [one["num_threads"] for one in pools.threadpool_info()]
        assert {1} == set(seen)
        assert before == after

    def test_the_same_arrays_give_the_same_probe(self):
        train, val = gaussian(60, 10, 3, 1), gaussian(30, 10, 3, 2)
        assert np.array_equal(probe.fit(*train, *val).weight, probe.fit(*train, *val).weight)


class TestAwkwardData:
    def test_constant_features_are_not_divided_by_rounding_errors(self):
        train, val = gaussian(60, 8, 3, 1, 2.0), gaussian(30, 8, 3, 2, 2.0)
        plain = probe.fit(*train, *val)
        # Its mean is not exactly itself, and its standard deviation not exactly 0.
        odd = 0.1
        padded = [(np.column_stack([x, np.full(len(x), odd), np.zeros(len(x))]), y) for x, y in (train, val)]
        assert 0.0 < padded[0][0][:, -2].std() < 1e-15
        found = probe.fit(*padded[0], *padded[1])
        assert [1.0, 1.0] == found.scale[-2:].tolist()
        x = gaussian(500, 8, 3, 3, 2.0)[0]
        moved = np.column_stack([x, np.full(500, odd + 0.01), np.full(500, 5.0)])
        assert np.mean(plain.predict(x) == found.predict(moved)) > 0.998

    def test_all_features_constant_read_the_most_frequent_class(self):
        y = np.array([4] * 20 + [9] * 10)
        found = probe.fit(np.ones((30, 5)), y, np.ones((6, 5)), y[[0, 1, 2, 3, 20, 21]])
        assert [4, 4] == found.predict(np.array([[1.0] * 5, [1.0] * 5])).tolist()

    def test_a_class_that_only_val_has_can_be_an_answer_in_the_end(self):
        train, val = gaussian(80, 10, 4, 1, 3.0), gaussian(40, 10, 4, 2, 3.0)
        without = train[1] != 3
        found = probe.fit(train[0][without], train[1][without], *val)
        x, y = gaussian(100, 10, 4, 3, 3.0)
        assert [0, 1, 2, 3] == found.classes.tolist()
        assert np.mean(found.predict(x)[y == 3] == 3) > 0.9

    def test_a_class_that_only_train_has_is_an_answer_too(self):
        train, val = gaussian(80, 10, 4, 1, 3.0), gaussian(40, 10, 4, 2, 3.0)
        without = val[1] != 2
        found = probe.fit(*train, val[0][without], val[1][without])
        x, y = gaussian(100, 10, 4, 3, 3.0)
        assert np.mean(found.predict(x) == y) > 0.95

    def test_val_of_unknown_classes_alone_tells_no_strength_from_another(self):
        train = gaussian(40, 5, 2, 1, 2.0)
        found = probe.fit(*train, train[0][:4], np.full(4, 8))
        assert found.c in probe.CS
        assert [0, 1, 8] == found.classes.tolist()

    def test_an_easy_task_does_not_end_with_the_weakest_classifier(self):
        # Every strength reads val, and with the least one the rarer class is never an answer.
        train, val, test = gaussian(80, 10, 4, 1, 3.0), gaussian(40, 10, 4, 2, 3.0), gaussian(400, 10, 4, 3, 3.0)
        rarer = [(x[keep], y[keep]) for x, y in (train, val) for keep in [(y != 2) | (np.arange(len(y)) % 8 == 2)]]
        weak, scaler = directly(*rarer, probe.CS[0])
        assert 2 not in weak.predict(scaler.transform(test[0]))
        assert np.mean(probe.fit(*rarer[0], *rarer[1]).predict(test[0]) == test[1]) > 0.95

    def test_running_out_of_iterations_is_kept_in_the_result_and_warns_nobody(self, digits, monkeypatch):
        monkeypatch.setattr(probe, "MAX_ITERATIONS", 2)
        assert not probe.fit(*digits[0], *digits[1]).converged

    def test_no_images_to_choose_by_or_nothing_to_tell_apart_is_refused(self):
        train, val = gaussian(40, 5, 2, 1), gaussian(20, 5, 2, 2)
        with pytest.raises(InvalidInput, match="got 0 val images"):
            probe.fit(*train, val[0][:0], val[1][:0])
        with pytest.raises(InvalidInput, match="train images of 1"):
            probe.fit(train[0], np.zeros(40, int), *val)
        with pytest.raises(InvalidInput, match="train images of 0"):
            probe.fit(train[0][:0], train[1][:0], *val)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_features_that_overflow_are_refused(self, value):
        train, val = gaussian(40, 5, 2, 1), gaussian(20, 5, 2, 2)
        val[0][3, 2] = value
        with pytest.raises(InvalidInput, match="NaN or infinity") as caught:
            probe.fit(*train, *val)
        assert "overflows" in caught.value.hint

    def test_shapes_that_do_not_fit_are_refused(self):
        train, val = gaussian(40, 5, 2, 1), gaussian(20, 5, 2, 2)
        with pytest.raises(ValueError, match="got 5 and 4"):
            probe.fit(*train, val[0][:, :4], val[1])
        with pytest.raises(ValueError, match=r"got \(40, 5\) and \(39,\)"):
            probe.fit(train[0], train[1][:39], *val)
        with pytest.raises(ValueError, match=r"features \(N, D\)"):
            probe.fit(train[0][:, 0], train[1], *val)

    def test_without_scikit_learn_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
        with pytest.raises(MissingDependency) as caught:
            probe.fit(*gaussian(40, 5, 2, 1), *gaussian(20, 5, 2, 2))
        assert "edgebench[transfer]" in caught.value.hint


class TestRemembered:
    @pytest.fixture(autouse=True)
    def fits(self, monkeypatch):
        """How often something was fitted; memory is empty at the start and afterwards."""
        calls = []
        monkeypatch.setattr(probe, "fit", lambda *arrays: calls.append(arrays) or len(calls))
        monkeypatch.setattr(probe, "_probes", type(probe._probes)())
        return calls

    def test_the_same_content_is_fitted_once(self, fits):
        train, val = gaussian(20, 3, 2, 1), gaussian(10, 3, 2, 2)
        first = probe.remembered(*train, *val)
        assert first == probe.remembered(*(part.copy() for part in (*train, *val)))
        assert first == probe.remembered(np.asfortranarray(train[0]), train[1], *val)
        assert 1 == len(fits)

    def test_anything_else_is_fitted_anew(self, fits):
        (x, y), val = gaussian(20, 3, 2, 1), gaussian(10, 3, 2, 2)
        changed = x.copy()
        changed[7, 1] += 1e-6
        for one in ((x, y, *val), (changed, y, *val), (x, 1 - y, *val), (x, y, val[0], 1 - val[1]), (x.astype(np.float64), y, *val),
                    (x.reshape(30, 2), y, *val)):
            probe.remembered(*one)
        assert 6 == len(fits)

    def test_memory_is_bounded_and_keeps_what_was_used_last(self, fits, monkeypatch):
        monkeypatch.setattr(probe, "_KEPT", 2)
        one, two, three = ((*gaussian(10, 3, 2, seed), *gaussian(10, 3, 2, 0)) for seed in (1, 2, 3))
        for arrays in (one, two, one, three, one):
            probe.remembered(*arrays)
        assert 3 == len(fits)
        probe.remembered(*two)
        assert 4 == len(fits)
