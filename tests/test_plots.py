"""Curves of the report; what they show is checked on the figures' own artists."""

import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from diffats import plots

RNG = np.random.default_rng(0)


def opened(figure: Figure) -> Image.Image:
    """The picture, and that it fits a page."""
    data = plots.png(figure)
    assert len(data) < 1_000_000
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    assert 700 < image.width < 1000
    return image


def test_scree_marks_the_rank_and_what_it_keeps():
    energies = np.array([[90.0, 9.0, 0.9, 0.1]])
    figure = plots.scree({"y": energies, "x": energies[0]}, {"y": 2})
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["y: rank 2, 99.0 %", "x: kept whole"]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [0.1, 0.01, 0.001])
    opened(figure)


def test_percent_never_rounds_up_to_all():
    assert plots.curves._percent(99.96) == "99.96 %"
    assert plots.curves._percent(100.0) == "100.0 %"
    assert plots.curves._percent(99.9999999) == "> 99.999 %"


def test_alignment_pictures():
    before, after = RNG.normal(size=(2, 10, 3, 8, 4))  # a batch axis, as patch primitives have
    anchor = RNG.normal(size=(3, 8, 4))
    figure = plots.factors_before_after(before, after, anchor, "pixel")
    assert len(figure.axes) == 6
    np.testing.assert_array_equal(figure.axes[4].lines[2].get_ydata(), after[2, 0, :, 1])
    opened(figure)
    opened(plots.anchors({"y": anchor, "x": RNG.normal(size=(5, 2))}))
    overlaps = plots.overlap_histograms({"y": RNG.random((30, 4)), "x": RNG.random((30, 2, 4))}, minimum=0.05)
    assert sum(patch.get_height() for patch in overlaps.axes[0].patches) == 30
    opened(overlaps)


def test_training_curves_with_and_without_held_out_loss():
    history = [{"step": s, "loss": 1 / s, "heldout_loss": 1 / s if s % 10 == 0 else None} for s in range(1, 61)]
    figure = plots.training_curves(history)
    assert "ends at 0.0167" in figure.legends[0].get_texts()[1].get_text()
    opened(figure)
    opened(plots.training_curves([{"step": 1, "loss": 0.5}]))
    opened(plots.training_curves([]))


def test_generated_against_real():
    sets = {"test": RNG.normal(size=(6, 9, 4, 12)), "generated": RNG.normal(size=(6, 9, 4, 12))}
    opened(plots.spectra_bands(sets, 3, "band", coordinate=np.linspace(400, 2500, 12), unit="counts", label="nm"))
    figure = plots.power_spectra(sets, ("y", "x", "band"))
    assert figure is not None
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["along y", "along band"]
    opened(figure)
    assert plots.power_spectra({"test": np.zeros((2, 3, 4))}, ("y", "x")) is None
    opened(plots.nearest_training({"test": RNG.random(20), "generated": np.zeros(20), "train": RNG.random(20)}))


def test_quantiles_of_equal_sets_lie_on_the_line():
    x = RNG.normal(size=(6, 9, 4))
    x[0, 0, 0] = np.nan
    figure = plots.quantiles({"test": x, "generated": x[::-1], "train": x + 1}, unit="K")
    train, generated = figure.axes[0].lines[:2]
    np.testing.assert_allclose(generated.get_ydata(), generated.get_xdata())
    np.testing.assert_allclose(train.get_ydata(), train.get_xdata() + 1)
    low, high = figure.axes[1].lines[2:4]
    np.testing.assert_allclose([low.get_ydata()[0], high.get_ydata()[-1]], [np.nanmin(x), np.nanmax(x)], rtol=0.5)
    opened(figure)


def test_no_legend_lies_on_curves_and_no_title_is_cut():
    history = [{"step": s, "loss": 1 / s, "heldout_loss": 1 / s} for s in range(1, 61)]
    sets = {"test": RNG.normal(size=(6, 9, 8, 12)), "generated": RNG.normal(size=(6, 9, 8, 12))}
    figures = [
        plots.training_curves(history),
        plots.spectra_bands(sets, 3, "band", unit="counts", label="nm"),
        plots.power_spectra(sets, ("y", "x", "band")),
        plots.quantiles(sets),
        plots.nearest_training({"test": RNG.random(20), "generated": RNG.random(20)}),
    ]
    for figure in figures:
        assert figure is not None
        plots.png(figure)
        assert not any(ax.get_legend() for ax in figure.axes)
        boxes = [ax.title.get_window_extent() for ax in figure.axes]
        boxes += [ax._left_title.get_window_extent() for ax in figure.axes]
        boxes += [legend.get_window_extent() for legend in figure.legends]
        for box in boxes:
            assert box.x0 >= -1
            assert box.x1 <= figure.bbox.width + 1
            assert box.y1 <= figure.bbox.height + 1


def test_scorecard_draws_ratios_to_the_gaussian():
    row = {"label": "Energy distance", "better": "lower", "value": 0.5, "train_vs_test": -0.01, "gaussian": 1.0}
    figure = plots.scorecard({"energy_distance": row, "other": row | {"better": "near 1"}})
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["Energy distance"]
    opened(figure)
    assert plots.scorecard({"energy_distance": row | {"gaussian": None}}) is None


def test_pictures_are_reproducible_and_leave_the_settings_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    history = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    assert plots.png(plots.training_curves(history)) == plots.png(plots.training_curves(history))
    assert dict(matplotlib.rcParams) == before
