"""The table of metrics: references, directions, and what a bad or copying model looks like in it."""

import json

import numpy as np
import pytest

from diffats import evaluation
from diffats.errors import InputError
from diffats.evaluation import Fields, beats, distance_from_ideal, evaluate, gaussian_pca, profile_mode
from diffats.evaluation.sets import pooled_strata

SIZES = (8, 9, 12)
MODES = ("y", "x", "band")


def draw(seed: int, k: int = 24) -> np.ndarray:
    """Smooth non-Gaussian samples about 300, in single precision."""
    rng = np.random.default_rng(seed)
    waves = [np.cos(np.pi * np.arange(n) * f / n) for n in SIZES for f in (1,)]
    y, x, band = waves
    amplitude = rng.gamma(2.0, size=(3, k, 1, 1, 1))
    fields = amplitude[0] * y[:, None, None] + amplitude[1] * x[:, None] + amplitude[2] * band
    return (300 + fields + 0.05 * rng.normal(size=(k, *SIZES))).astype(np.float32)


def fields(**changes: object) -> Fields:
    training = draw(0, 60)
    given = {
        "modes": MODES,
        "train": training[:24],
        "test": draw(1),
        "generated": draw(2),
        "gaussian": gaussian_pca(training.reshape(60, -1), 24, seed=3).reshape(24, *SIZES),
        "mean": training.mean(axis=0),
        "scale": np.array(training.std()),
        "reconstruction": draw(1) + np.float32(0.01),
    }
    return Fields(**(given | changes))


def test_every_metric_is_complete_and_json():
    table = evaluate(fields())
    assert {"energy_distance", "sliced_wasserstein", "spectrum_error", "spectrum_error_x", "anomaly_error"} <= set(
        table
    )
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    for metric in table.values():
        assert metric["better"] in ("lower", "near 1", "near 0.9", "near 0.5")
        assert metric["label"]
        assert metric["meaning"].endswith(".")
        assert metric["value"] is not None


def test_an_honest_draw_scores_like_training_samples_and_beats_a_shifted_one():
    table, bad = evaluate(fields()), evaluate(fields(generated=draw(2) + np.float32(3.0)))
    for name in ("energy_distance", "sliced_wasserstein", "profile_mean_error", "profile_quantile_error"):
        assert bad[name]["value"] > 2 * table[name]["value"]
        assert bad[name]["train_vs_test"] == pytest.approx(table[name]["train_vs_test"])
        assert beats(bad[name]) is False
    assert bad["two_sample_accuracy"]["value"] > 0.9
    assert 0.5 < table["spread_ratio"]["value"] < 2.0


def test_copies_of_training_samples_are_seen():
    copies = evaluate(fields(generated=draw(0, 60)[:24] + np.float32(1e-4)))
    assert copies["nearest_training_ratio"]["value"] < 0.05
    assert evaluate(fields())["nearest_training_ratio"]["value"] > 0.5


def test_collapsed_samples_have_no_spread():
    one = np.repeat(draw(2)[:1], 24, axis=0)
    assert evaluate(fields(generated=one))["spread_ratio"]["value"] < 0.01


def test_too_smooth_samples_have_a_spectrum_error():
    noisy, smooth = fields(), fields(generated=np.repeat(draw(2)[..., ::4], 4, axis=-1))
    key = "spectrum_error_band"
    assert evaluate(smooth)[key]["value"] > 3 * evaluate(noisy)[key]["value"]
    assert evaluate(noisy)[key]["codec"] == pytest.approx(0.0, abs=0.01)


def test_the_codec_floor_is_given_by_both_errors():
    given = fields()
    table = evaluate(given)
    difference = np.linalg.norm((given.reconstruction - given.test).reshape(24, -1), axis=1)
    anomaly = difference / np.linalg.norm((given.test - given.mean).reshape(24, -1), axis=1)
    assert table["anomaly_error"]["value"] == pytest.approx(anomaly.mean(), rel=1e-4)
    assert table["reconstruction_error"]["value"] < 0.01 * table["anomaly_error"]["value"]


def with_forecasts(**changes: object) -> Fields:
    truth = draw(7, 4)
    ensemble = truth[:, None] + draw(8, 12).reshape(4, 3, *SIZES) - np.float32(300)
    persistence = np.broadcast_to(truth[..., :1], truth.shape)
    return fields(**({"ensemble": ensemble, "truth": truth, "persistence": persistence} | changes))


MASKED = np.zeros(SIZES, bool)
MASKED[:3, :4] = True
SAMPLED = ("train", "test", "generated", "gaussian", "reconstruction", "mean", "ensemble", "truth", "persistence")


def test_masked_points_count_nowhere():
    given = with_forecasts()
    # What is wrong at masked points must not be seen.
    wrong = {name: getattr(given, name) + np.float32(1e3) * MASKED for name in ("generated", "ensemble")}
    given = with_forecasts(**wrong)
    holes = with_forecasts(**{name: np.where(MASKED, np.nan, getattr(given, name)) for name in SAMPLED})
    seen = {name: getattr(given, name)[..., ~MASKED[..., 0], :] for name in SAMPLED}
    subset = with_forecasts(modes=("point", "band"), **seen)
    table, expected = evaluate(holes), evaluate(subset)
    assert table.keys() == evaluate(given).keys()
    along_two_modes = {"spectrum_error", "spectrum_error_y", "spectrum_error_x"}  # the subset does not have them
    assert set(expected) - {"spectrum_error_point"} == (set(table) - along_two_modes) | {"spectrum_error"}
    for name in table.keys() - along_two_modes:
        numbers = {column: x for column, x in expected[name].items() if isinstance(x, float)}
        assert numbers == pytest.approx({column: table[name][column] for column in numbers}, rel=1e-4, abs=1e-6), name
    for name in along_two_modes:
        assert table[name]["value"] < 0.5 * evaluate(given)[name]["value"]


def test_an_index_where_all_is_masked_is_left_out():
    below = np.zeros(SIZES, bool)
    below[..., 9:] = True
    given = fields()
    names = SAMPLED[:6]
    table = evaluate(fields(**{name: np.where(below, np.nan, getattr(given, name)) for name in names}))
    expected = evaluate(fields(**{name: getattr(given, name)[..., :9] for name in names}))
    for name in ("profile_mean_error", "profile_quantile_error", "energy_distance", "spectrum_error_y"):
        assert table[name]["value"] == pytest.approx(expected[name]["value"], rel=1e-4)


def test_fields_far_from_zero_keep_their_digits(monkeypatch):
    expected = evaluate(fields())
    blocks = 5 * 8 * np.prod(SIZES)  # do not divide the count
    monkeypatch.setattr("diffats.evaluation.fields._BLOCK_BYTES", blocks)
    assert evaluate(fields()) == expected
    far = {name: getattr(fields(), name).astype(np.float64) + 1e6 for name in SAMPLED[:6]}
    table = evaluate(fields(**far))
    assert table["energy_distance"]["value"] == pytest.approx(expected["energy_distance"]["value"], rel=1e-3)
    assert table["spectrum_error"]["value"] == pytest.approx(expected["spectrum_error"]["value"], rel=1e-3)


def test_missing_parts_leave_their_metrics_out():
    table = evaluate(fields(gaussian=None, reconstruction=None))
    assert "anomaly_error" not in table
    assert "crps" not in table
    assert table["energy_distance"]["gaussian"] is None
    assert beats(table["energy_distance"]) is None


def test_forecasts_stand_beside_trivial_predictors():
    truth = draw(7, 12)
    rng = np.random.default_rng(0)
    good = truth[:, None] + 0.1 * rng.normal(size=(12, 5, *SIZES))
    persistence = np.broadcast_to(truth[..., :1], truth.shape)
    table = evaluate(fields(ensemble=good, truth=truth, persistence=persistence))
    for name in ("relative_l2", "crps"):
        metric = table[name]
        assert metric["groups"] == 12
        assert set(metric["intervals"]) == {"value", "persistence", "training_mean"}
        for reference in ("persistence", "training_mean"):
            low, high = metric["intervals"][reference]
            assert low <= metric["value"] - metric[reference] <= high < 0
            assert evaluation.comparison(metric, reference) == "better"


def test_forecast_rows_say_mean_members_and_pooled_errors():
    given = with_forecasts(truth_reconstruction=draw(7, 4) + np.float32(0.01))
    table = evaluate(given)
    error, size = given.ensemble - given.truth[:, None], np.linalg.norm(given.truth.reshape(4, -1), axis=1)
    members = np.linalg.norm(error.reshape(4, 3, -1), axis=2) / size[:, None]
    assert table["member_relative_l2"]["value"] == pytest.approx(members.mean(), rel=1e-4)
    pooled = np.sqrt((error**2).mean(axis=1).sum() / (given.truth**2).sum())
    assert table["member_relative_l2_pooled"]["value"] == pytest.approx(pooled, rel=1e-4)
    pooled = np.linalg.norm(error.mean(axis=1)) / np.linalg.norm(given.truth)
    assert table["relative_l2_pooled"]["value"] == pytest.approx(pooled, rel=1e-4)
    for name in ("relative_l2", "relative_l2_pooled"):  # a single forecast has one member
        for column in ("persistence", "training_mean", "codec"):
            assert table[name][column] == pytest.approx(table[f"member_{name}"][column], rel=1e-12)
        assert table[name]["value"] < table[f"member_{name}"]["value"]
        assert table[name]["codec"] < 1e-3


def test_calibrated_ensembles_are_near_their_ideals():
    rng = np.random.default_rng(0)
    truth = draw(7, 6)
    centre = truth + rng.normal(size=truth.shape)
    table = evaluate(fields(ensemble=centre[:, None] + rng.normal(size=(6, 5, *SIZES)), truth=truth))
    assert table["spread_skill"]["value"] == pytest.approx(1.0, abs=0.05)
    assert table["interval_coverage"]["value"] == pytest.approx(0.9, abs=0.02)
    assert "5 members, fewer than 19" in table["interval_coverage"]["meaning"]
    assert distance_from_ideal(table["interval_coverage"]) < 0.02
    sure = evaluate(fields(ensemble=centre[:, None] + 0.1 * rng.normal(size=(6, 19, *SIZES)), truth=truth))
    assert sure["spread_skill"]["value"] < 0.2
    assert sure["interval_coverage"]["value"] < 0.3
    assert "fewer" not in sure["interval_coverage"]["meaning"]
    assert table["spread_skill"]["persistence"] is None
    assert "spread_skill" not in evaluate(fields(ensemble=centre[:, None], truth=truth))


def test_a_residual_stands_beside_those_of_the_truth_and_the_codec():
    def distance_from_smooth(x):
        return np.abs(np.diff(x, axis=-1)).mean(axis=(1, 2, 3))

    assert "pde_residual" not in evaluate(with_forecasts())
    given = with_forecasts(residual=distance_from_smooth, truth_reconstruction=draw(7, 4) + np.float32(1))
    row = evaluate(given)["pde_residual"]
    assert row["truth"] == pytest.approx(distance_from_smooth(given.truth).mean())
    assert row["codec"] == pytest.approx(row["truth"], rel=1e-3)
    members = [distance_from_smooth(given.ensemble[:, i]).mean() for i in range(3)]
    assert row["value"] == pytest.approx(np.mean(members))
    assert row["persistence"] is None


def test_neighbourhoods_tell_what_is_missing_from_what_is_wrong():
    table = evaluate(fields())
    for name in ("precision", "recall", "density", "coverage"):
        assert table[name]["value"] > 0.6
        assert table[name]["train_vs_test"] > 0.6
    one = np.repeat(draw(1)[:1], 24, axis=0) + np.float32(0.01) * (draw(2) - 300)
    collapsed, wrong = evaluate(fields(generated=one)), evaluate(fields(generated=draw(2) + np.float32(30)))
    assert collapsed["precision"]["value"] == 1.0
    assert collapsed["recall"]["value"] < 0.5 * table["recall"]["value"]
    assert collapsed["coverage"]["value"] < 0.5 * table["coverage"]["value"]
    assert all(wrong[name]["value"] == 0.0 for name in ("precision", "recall", "density", "coverage"))
    sets = {name: draw(seed, 5) for seed, name in enumerate(("train", "test", "generated"))}
    assert "precision" not in evaluate(fields(**sets, gaussian=None, reconstruction=None))


def test_nearest_training_uses_primitives_where_given():
    z = np.arange(60.0)[:, None] * np.ones((1, 3))
    given = fields(z_train=z, z_test=z[:24] + 0.2, z_generated=z[:24] + 0.1)
    distances = evaluation.nearest_training(given)
    np.testing.assert_allclose(distances["generated"], 0.1 * np.sqrt(3))
    np.testing.assert_allclose(distances["train"], np.sqrt(3))
    row = evaluate(given)["nearest_training_ratio"]
    assert row["value"] == pytest.approx(0.5)
    assert row["label"] == "Distance to the nearest training sample"


def test_training_samples_are_held_against_each_other_from_all_over_the_scene():
    z = np.concatenate([np.arange(24.0), 1000 + 10 * np.arange(216.0)])[:, None]  # one dense corner comes first
    given = fields(z_train=z, z_test=z[:24] + 0.5, z_generated=z[:24] + 0.5)
    distances = evaluation.nearest_training(given)["train"]
    assert np.median(distances) == 10.0
    np.testing.assert_array_equal(distances, evaluation.nearest_training(given)["train"])
    other = evaluation.nearest_training(fields(z_train=z, z_test=z[:24], z_generated=z[:24], seed=1))["train"]
    assert set(distances) | set(other) <= {1.0, 10.0}  # never itself, at distance 0


def test_a_search_among_some_training_samples_says_so():
    z = np.arange(60.0)[:, None]
    row = evaluate(fields(z_train=z, z_test=z[:24], z_generated=z[:24], n_train=200))["nearest_training_ratio"]
    assert row["label"] == "Distance to the nearest of 60 training samples"
    assert "Only 60 of the 200 training samples are searched" in row["meaning"]


@pytest.mark.parametrize("components", [None, 3])
def test_gaussian_has_the_training_mean_and_covariance(components):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 5)) + np.arange(5)
    drawn = gaussian_pca(z, 20000, seed=1, components=components)
    np.testing.assert_allclose(drawn.mean(axis=0), z.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(z.T), atol=0.35)


def test_gaussian_is_reproducible_and_keeps_the_type():
    z = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    assert gaussian_pca(z, 5, seed=1).dtype == np.float32
    np.testing.assert_array_equal(gaussian_pca(z, 5, seed=1), gaussian_pca(z, 5, seed=1))
    with pytest.raises(InputError, match="at least 2"):
        gaussian_pca(z[:1], 3)


def test_unequal_counts_are_refused():
    with pytest.raises(InputError, match=r"generated is \(23, 8, 9, 12\), test is \(24, 8, 9, 12\)"):
        fields(generated=draw(2, 23))
    with pytest.raises(InputError, match="at least 2 samples"):
        fields(modes=("y", "x"))


def test_directions():
    assert beats({"value": 0.9, "gaussian": 1.2, "better": "near 1"})
    assert not beats({"value": 0.2, "gaussian": 0.6, "better": "near 0.5"})
    assert beats({"value": 0.95, "gaussian": 0.8, "better": "near 0.9"})
    assert distance_from_ideal({"value": None, "better": "lower"}) is None


def test_profile_mode_prefers_spectral_then_time_then_the_longest():
    assert profile_mode(("time", "y", "x"), {"time": 5, "y": 50, "x": 50}) == "time"
    assert profile_mode(("time", "level", "x"), {"time": 5, "level": 50, "x": 50}) == "level"
    assert profile_mode(("component",), {"component": 2}) == "component"


# --- how sure the deciding numbers are ----------------------------------------------------------------------------


def test_the_energy_distance_has_an_interval_and_one_of_its_difference():
    energy = evaluate(fields())["energy_distance"]
    low, high = energy["intervals"]["value"]
    assert low < energy["value"] < high
    low, high = energy["intervals"]["gaussian"]
    assert low < energy["value"] - energy["gaussian"] < high


def test_equal_forecasts_are_not_told_apart_and_few_groups_tell_nothing():
    truth = draw(7, 40)
    rng = np.random.default_rng(0)
    ensemble, other = (truth[:, None] + rng.normal(size=(40, 3, *SIZES)) for _ in range(2))
    given = {"ensemble": ensemble, "truth": truth, "persistence": other.mean(axis=1)}  # as good as ours
    row = evaluate(fields(**given))["relative_l2"]
    assert row["value"] != row["persistence"]
    assert evaluation.comparison(row, "persistence") == "not distinguishable"
    few = evaluate(fields(**given, case_groups=np.repeat([0, 1], 20)))["relative_l2"]
    assert few["groups"] == 2
    assert evaluation.comparison(few, "persistence") == "too few test samples"


def test_every_comparison_has_its_interval_and_groups():
    table = evaluate(fields())
    for name, metric in table.items():
        if evaluation.compared(metric) and name not in ("anomaly_error", "reconstruction_error"):
            low, high = metric["intervals"]["gaussian"]
            assert low <= distance_from_ideal(metric) - distance_from_ideal(metric, "gaussian") <= high, name
            assert metric["groups"] == 24
    grouped = evaluate(fields(groups=np.repeat(np.arange(4), 6)))
    words = {word for metric in grouped.values() for word in evaluation.compared(metric).values()}
    assert "too few test samples" in words


def test_a_second_honest_draw_is_not_called_better_or_worse_than_the_first():
    """The Gaussian's place is taken by another draw of the truth; a shifted one is called worse."""
    table = evaluate(fields(gaussian=draw(4)))
    words = [evaluation.comparison(metric, "gaussian") for metric in table.values() if metric["gaussian"] is not None]
    assert words.count("not distinguishable") >= 0.8 * len(words)
    bad = evaluate(fields(generated=draw(2) + np.float32(3.0)))
    assert evaluation.comparison(bad["sliced_wasserstein"], "gaussian") == "worse"
    assert evaluation.comparison(bad["energy_distance"], "gaussian") == "worse"


def test_pooled_errors_go_by_groups_of_cases():
    truth = draw(7, 20)
    ensemble = truth[:, None] + np.random.default_rng(0).normal(size=(20, 3, *SIZES))
    given = {"ensemble": ensemble, "truth": truth, "persistence": truth + 9}
    row = evaluate(fields(**given))["relative_l2_pooled"]
    assert (row["groups"], evaluation.comparison(row, "persistence")) == (20, "better")
    few = evaluate(fields(**given, case_groups=np.repeat(np.arange(5), 4)))["relative_l2_pooled"]
    assert (few["groups"], evaluation.comparison(few, "persistence")) == (5, "too few test samples")


def test_samples_of_another_class_are_told_within_conditions():
    strata = np.arange(24) % 2
    lifted = [draw(seed) + (5 * strata[:, None, None, None]).astype(np.float32) for seed in (0, 1, 2)]
    numbers = {"train": strata, "test": strata, "generated": strata}
    sets = dict(zip(("train", "test", "generated"), lifted, strict=True))
    right = evaluate(fields(**sets, strata=numbers))
    wrong = evaluate(fields(**sets | {"generated": lifted[2][::-1]}, strata=numbers))
    assert wrong["energy_distance"]["value"] == pytest.approx(right["energy_distance"]["value"])
    within = [table["energy_distance_within"] for table in (right, wrong)]
    assert within[1]["value"] > within[0]["value"] + 1
    assert within[0]["intervals"]["value"][0] < within[0]["value"] < within[0]["intervals"]["value"][1]
    assert "within each of 2 conditions" in within[0]["meaning"]
    named = evaluate(fields(**sets, strata=numbers, condition_names={0: "calm", 1: "lifted"}))
    parts = named["energy_distance_within"]["parts"]
    assert {part["condition"]: part["samples"] for part in parts} == {"calm": 12, "lifted": 12}
    assert sum(part["value"] * part["samples"] for part in parts) / 24 == pytest.approx(within[0]["value"])
    assert json.loads(json.dumps(named, allow_nan=False)) == named


def test_rare_conditions_are_compared_together():
    pooled = pooled_strata({"a": np.array([0] * 5 + [1, 1, 2]), "b": np.array([0] * 5 + [1, 2, 2])})
    assert {name: each.tolist() for name, each in pooled.items()} == {"a": [0] * 5 + [3] * 3, "b": [0] * 5 + [3] * 3}
    alone = pooled_strata({"a": np.array([0] * 7 + [1]), "b": np.array([0] * 7 + [1])})
    assert set(alone["a"]) == {0}


def test_the_gaussian_within_has_each_conditions_mean_and_one_covariance():
    rng = np.random.default_rng(0)
    strata = np.repeat([3, 7], 2000)
    z = rng.normal(size=(4000, 2)) * [2, 1] + np.where(strata == 3, 5, -5)[:, None]
    drawn = evaluation.gaussian_within(z, strata, strata)
    for stratum in (3, 7):
        np.testing.assert_allclose(drawn[strata == stratum].mean(axis=0), z[strata == stratum].mean(axis=0), atol=0.2)
        np.testing.assert_allclose(drawn[strata == stratum].std(axis=0), [2, 1], rtol=0.1)
    np.testing.assert_allclose(evaluation.gaussian_within(z, strata, np.full(900, 9)).mean(axis=0), [0, 0], atol=0.3)
