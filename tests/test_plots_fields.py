"""Samples as pictures, of any modes: what is shown, where it stands, and that all rows share their colours."""

import io
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from PIL import Image

from diffats import plots
from diffats.errors import InputError
from diffats.plots import fields, motion
from diffats.plots.coordinates import Coordinate
from diffats.plots.sheet import fitted

RNG = np.random.default_rng(0)
CASES = {
    "bands": (("y", "x", "band"), (7, 8, 12)),
    "rgb": (("rgb", "row", "column"), (3, 7, 8)),
    "slices": (("time", "y", "x"), (5, 6, 9)),
    "space-time": (("time", "x"), (40, 6)),
    "map": (("lat", "lon"), (6, 9)),
    "four modes": (("time", "level", "lat", "lon"), (4, 3, 6, 9)),
    "four modes with bands": (("time", "y", "x", "band"), (3, 5, 6, 8)),
    "components": (("component", "time", "y", "x"), (2, 5, 6, 7)),
    "components of maps": (("component", "y", "x"), (2, 6, 7)),
    "bands first": (("band", "y", "x"), (9, 6, 7)),
}


def opened(figure: Figure) -> Image.Image:
    """The picture, that it fits a page, and that no words are cut off."""
    data = plots.png(figure)
    assert len(data) < 1_000_000
    image = Image.open(io.BytesIO(data))
    assert 700 < image.width < 1000
    for text in figure.texts:
        box = text.get_window_extent()
        assert not text.get_text() or (box.x0 >= 0 and box.x1 <= image.width and box.y0 >= 0 and box.y1 <= image.height)
    return image


def grid(latitude, longitude, *, units=("degrees_north", "degrees_east")) -> xr.Dataset:
    """A template of maps."""
    return xr.Dataset(
        {"sst": (("lat", "lon"), np.zeros((len(latitude), len(longitude))), {"units": "K"})},
        coords={"lat": ("lat", latitude, {"units": units[0]}), "lon": ("lon", longitude, {"units": units[1]})},
    )


def titles(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("case", CASES)
def test_pictures_of_any_modes(case):
    modes, sizes = CASES[case]
    x = RNG.normal(size=(4, *sizes))
    painter = plots.Painter.fit(x, modes, unit="K")
    opened(plots.gallery({"test": list(x[:2]), "generated": [x[2], None]}, painter))
    opened(plots.reconstruction_panels(x[:2], x[:2] + 0.1, painter, labels=["best", "worst"]))
    opened(plots.forecast(x[:2], x[:2, None] + RNG.normal(size=(2, 3, *sizes)), painter))
    opened(plots.medoid(x[0], {"y": RNG.random(30)}, 4, painter))


def test_the_image_modes_are_chosen_by_name():
    painter = plots.Painter.fit(RNG.normal(size=(2, 9, 4, 5)), ("band", "x", "y"))
    assert painter.image == ("y", "x")
    assert painter.coloured
    assert painter.paint(RNG.normal(size=(9, 4, 5))).shape == (1, 5, 4, 4)


def test_a_picture_has_the_values_of_the_sample():
    x = RNG.normal(size=(3, 2, 5, 4, 6)) * np.array([1.0, 5.0]).reshape(2, 1, 1, 1)
    painter = plots.Painter.fit(x, ("component", "time", "y", "x"), frames=3)
    assert painter.slices == (0, 2, 4)
    np.testing.assert_array_equal(painter.paint(x[1]), x[1, 1, [0, 2, 4]])  # the component that varies more
    assert "time 0, 2, 4 side by side" in painter.description
    assert painter.cut().heading == "time 2"
    assert plots.Painter.fit(x[:, 0], ("level", "y", "x")).cut().heading == "level 0"
    np.testing.assert_array_equal(painter.cut().paint(x[1]), x[1, 1, [2]])


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_a_map_is_the_same_whatever_the_order_in_the_file(down, left):
    latitude, longitude = np.linspace(-20, 30, 5), np.linspace(100, 160, 7)
    x = np.arange(2 * 35.0).reshape(2, 5, 7)
    steps = (slice(None, None, -1 if down else 1), slice(None, None, -1 if left else 1))
    painter = plots.Painter.fit(x[:, *steps], ("lat", "lon"), template=grid(latitude[steps[0]], longitude[steps[1]]))
    shown = painter.paint(x[0][steps])[0]
    np.testing.assert_array_equal(shown, x[0, ::-1])  # north at the top, east at the right
    figure = plots.gallery({"test": [x[0][steps]]}, painter)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["15°S", "0°", "15°N"]
    np.testing.assert_allclose(figure.axes[0].get_yticks(), [3.6, 2.4, 1.2])  # 30 to -20 in four steps
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["120°E", "140°E"]


def test_maps_are_recognised_by_unit_and_across_the_date_line():
    template = grid([10.0, 0.0], [170.0, -175.0, -160.0]).rename(lat="j", lon="i")
    x = RNG.normal(size=(3, 2, 3))
    painter = plots.Painter.fit(x, ("j", "i"), template=template)
    assert painter.is_map
    assert painter.flipped == (False, False)
    assert painter.coordinates["i"].text(1) == "175°W"


def test_missing_points_are_hatched_and_constant_fields_can_be_drawn():
    x = RNG.normal(size=(4, 6, 7)) + 300
    x[:, :2, :3] = np.nan
    painter = plots.Painter.fit(x, ("lat", "lon"))
    figure = plots.gallery({"test": [x[0], np.nan_to_num(x[1])]}, painter)
    assert [ax.patch.get_hatch() is not None for ax in figure.axes[:2]] == [True, False]
    opened(figure)
    constant = np.full((2, 6, 7), 5.0)
    flat = plots.Painter.fit(constant, ("y", "x"))
    opened(plots.gallery({"test": list(constant)}, flat))
    opened(plots.reconstruction_panels(constant, constant, flat, labels=["a", "b"]))
    bands = np.repeat(x[..., None], 4, axis=-1)
    shown = plots.Painter.fit(bands, ("y", "x", "band")).paint(bands[0])
    assert (shown[0, :2, :3, 3] == 0).all()
    assert (shown[0, 2:, :, 3] == 1).all()


def test_signed_fields_get_symmetric_colours_and_others_do_not():
    signed = plots.Painter.fit(RNG.normal(size=(3, 6, 7)), ("y", "x"))
    assert signed.limits[0, 0] == -signed.limits[0, 1]
    assert signed.colormap.name == "RdBu_r"
    assert plots.Painter.fit(RNG.random((3, 6, 7)) + 280, ("y", "x")).colormap.name == "viridis"


def test_one_mode_is_refused_by_name():
    with pytest.raises(InputError, match="two modes besides component, got component, x"):
        plots.Painter.fit(np.zeros((2, 2, 5)), ("component", "x"))


# --- colours ------------------------------------------------------------------------------------------------------


def test_all_rows_share_their_colours():
    x = RNG.normal(size=(6, 6, 7))
    painter = plots.Painter.fit(x[:2], ("y", "x"))
    figure = plots.gallery({"test": list(x[:2]), "generated": list(9 * x[2:4]), "nearest": list(x[4:])}, painter)
    images = [ax.images[0] for ax in figure.axes if ax.images]
    assert len({image.get_clim() for image in images}) == 1
    assert len({image.get_cmap().name for image in images}) == 1


@pytest.mark.parametrize(("unit", "factor"), [("nm", 1.0), ("um", 1e-3), ("µm", 1e-3), ("", 1.0)])
def test_wavelengths_give_natural_colours(unit, factor):
    nanometres = np.linspace(400, 2500, 211)
    values = ("band", nanometres * factor, {"units": unit} if unit else {})
    template = xr.Dataset(coords={"band": np.arange(211), "wavelength": values})
    x = RNG.random((2, 4, 5, 211))
    painter = plots.Painter.fit(x, ("y", "x", "band"), template=template)
    assert nanometres[painter.mixture.argmax(axis=0)].tolist() == [660.0, 560.0, 490.0]
    assert "660, 560, 490 nm as red, green, blue" in painter.description


def test_infrared_bands_are_no_natural_colours():
    template = xr.Dataset(coords={"wavelength": ("wavelength", np.linspace(1000, 2500, 20), {"units": "nm"})})
    painter = plots.Painter.fit(RNG.random((2, 4, 5, 20)), ("y", "x", "wavelength"), template=template)
    assert "leading components" in painter.description


def test_bands_are_named_by_value_or_by_index():
    x = RNG.random((2, 4, 5, 30))
    assert plots.Painter.fit(x, ("y", "x", "band"), rgb=[29, 19, 9]).mixture.argmax(axis=0).tolist() == [29, 19, 9]
    template = xr.Dataset(coords={"band": np.arange(1, 31)})
    painter = plots.Painter.fit(x, ("y", "x", "band"), rgb=[29, 19, 9], template=template)
    assert painter.mixture.argmax(axis=0).tolist() == [28, 18, 8]
    np.testing.assert_allclose(painter.values(x)[:, 0], x[..., [28, 18, 8]])
    with pytest.raises(InputError, match="700 is outside band, whose values are 1 to 30"):
        plots.Painter.fit(x, ("y", "x", "band"), rgb=[700, 19, 9], template=template)


def test_bands_without_wavelengths_show_the_components_that_vary_most():
    x = RNG.normal(size=(5, 4, 4, 30)) * 0.01
    x[..., 10:20] += RNG.normal(size=(5, 4, 4, 1))
    mixture = plots.Painter.fit(x, ("y", "x", "band")).mixture
    assert np.abs(mixture[10:20, 0]).min() > 0.3
    assert np.abs(mixture[:10, 0]).max() < 0.05
    np.testing.assert_allclose(mixture.T @ mixture, np.eye(3), atol=1e-10)
    assert (mixture.sum(axis=0) >= 0).all()


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_images_keep_their_own_colours(top):
    x = RNG.integers(0, 256, size=(3, 5, 6, 3)) * (top / 255.0)
    painter = plots.Painter.fit(x, ("y", "x", "channel"))
    np.testing.assert_allclose(painter.paint(x[0])[0, ..., :3], x[0] / top)
    assert painter.limits.tolist() == [[0.0, top]] * 3
    assert painter.paint(x[0] + 2 * top).max() == 1.0
    physical = RNG.normal(size=(3, 5, 6, 3))
    assert "leading components" in plots.Painter.fit(physical, ("y", "x", "channel")).description


def test_four_channels_show_the_first_three():
    x = RNG.random((3, 5, 6, 4))
    np.testing.assert_allclose(plots.Painter.fit(x, ("y", "x", "rgba")).paint(x[0])[0, ..., :3], x[0, ..., :3])


# --- words --------------------------------------------------------------------------------------------------------


def test_headings_name_the_variable_and_the_level():
    template = xr.Dataset(
        {name: (("time", "level", "y", "x"), np.zeros((4, 3, 5, 6)), {"units": "K"}) for name in ("ta", "tb")},
        coords={"level": ("level", [850, 500, 250], {"units": "hPa"}), "time": np.arange(4) * np.timedelta64(6, "h")},
    )
    x = RNG.normal(size=(2, 2, 4, 3, 5, 6))
    painter = plots.Painter.fit(x, ("component", "time", "level", "y", "x"), template=template, component=1, note="so")
    figure = plots.gallery({"test": list(x)}, painter)
    assert titles(figure)[:4] == ["tb, level 500 hPa, so", "time 0 h", "12 h", "18 h"]
    assert painter.value_label == "tb (K)"
    opened(figure)


def test_long_names_are_not_cut_off():
    name = "sea_water_potential_temperature_at_the_very_bottom_of_the_" * 3
    template = xr.Dataset({name: (("y", "x"), np.zeros((5, 6)), {"units": "degrees_C" * 9})})
    x = RNG.normal(size=(5, 5, 6))
    painter = plots.Painter.fit(x, ("y", "x"), template=template, note=name)
    figure = plots.gallery({"test": list(x), name: list(x)}, painter, headings=[(name, 2), ("b c", 2), (name, 1)])
    opened(figure)
    assert "b c" in titles(figure)
    opened(plots.forecast(x, x[:, None], painter))
    opened(plots.medoid(x[0], {"y": RNG.random(30)}, 4, painter))


@settings(deadline=None)
@given(st.text(max_size=60), st.floats(0.3, 4.0))
def test_words_fit_their_room(text, width):
    lines = fitted(text, width, 7.0).split("\n")
    assert len(lines) <= 2
    assert all(len(line) <= max(4, width * 72 / 4.34) + 1 for line in lines)


def test_dollar_signs_are_no_mathematics():
    x = RNG.normal(size=(3, 4, 5, 6))
    template = xr.Dataset(
        {"a": (("$t_{", "y", "x"), np.zeros((4, 5, 6)))}, coords={"$t_{": np.arange(4) * np.timedelta64(1, "s")}
    )
    painter = plots.Painter.fit(x, ("$t_{", "y", "x"), template=template)
    opened(plots.gallery({"$t_{": list(x)}, painter))
    assert plots.film({"$t_{": list(x)}, painter).startswith(b"\x89PNG")


def test_more_samples_than_columns_take_more_lines():
    x = RNG.normal(size=(5, 6, 6))
    painter = plots.Painter.fit(x, ("y", "x"))
    figure = plots.gallery({"test": list(x), "generated": list(x)}, painter, columns=3)
    places = [ax.get_position() for ax in figure.axes[:10]]
    assert len({round(place.x0, 6) for place in places}) == 3
    assert len({round(place.y0, 6) for place in places}) == 4
    assert all(high.y0 > low.y1 for high, low in pairwise([places[0], places[3], places[5], places[8]]))
    opened(figure)


def test_classes_stand_over_their_columns():
    x = RNG.normal(size=(5, 6, 6))
    painter = plots.Painter.fit(x, ("y", "x"))
    figure = plots.gallery({"test": [*x[:4], None]}, painter, headings=[("corn", 2), ("woods", 2), ("unlabelled", 1)])
    places = [ax.get_position().x0 for ax in figure.axes[:4]]
    names = {text.get_text(): text.get_position()[0] for text in figure.texts}
    np.testing.assert_allclose([names["corn"], names["woods"]], [places[0], places[2]])
    assert names["unlabelled"] > places[3]
    assert len(figure.axes) == 5  # four pictures and the colour bar


@pytest.mark.parametrize(
    ("values", "unit", "text"),
    [
        ([0.0, 0.123456], "s", "0.123 s"),
        ([0.0, 1013.25], "hPa", "1013 hPa"),
        (np.array(["2001-01-01", "2001-02-03"], "datetime64[ns]"), "", "2001-02-03"),
        (np.array([0, 90], "timedelta64[m]"), "", "1.5 h"),
        (["a", "b"], "", "b"),
    ],
)
def test_positions_in_words(values, unit, text):
    template = xr.Dataset(coords={"p": ("p", values, {"units": unit} if unit else {})})
    assert Coordinate.of(template, "p", 2).text(1) == text


# --- forecasts and films ------------------------------------------------------------------------------------------


def test_a_forecast_shows_the_error_of_its_mean():
    truth, ensemble = RNG.normal(size=(1, 5, 6)), RNG.normal(size=(1, 4, 5, 6))
    painter = plots.Painter.fit(truth, ("y", "x"))
    figure = plots.forecast(truth, ensemble, painter)
    assert titles(figure) == ["truth (test)", "one forecast", "mean of 4 forecasts", "absolute error of the mean"]
    shown = [ax.images[0].get_array() for ax in figure.axes[:4]]
    np.testing.assert_allclose(shown[:3], [truth[0], ensemble[0, 0], ensemble[0].mean(axis=0)])
    np.testing.assert_allclose(shown[3], np.abs(ensemble[0].mean(axis=0) - truth[0]))
    assert len(figure.axes) == 6  # and a colour bar of values, and one of errors
    assert figure.axes[3].images[0].get_clim()[0] == 0.0


def test_colours_differ_by_the_root_mean_square_over_all_bands():
    x = RNG.normal(size=(2, 4, 5, 9))
    y = RNG.normal(size=(2, 4, 5, 9))
    painter = plots.Painter.fit(x, ("y", "x", "band"))
    found = fields.difference_pictures(painter, x, y)
    np.testing.assert_allclose(found[:, 0], np.sqrt(((x - y) ** 2).mean(axis=-1)))


def test_a_plume_holds_the_quantiles_where_the_truth_varies_most():
    time = np.arange(6)
    truth = np.zeros((6, 8, 9))
    truth[:, 2, 7] = 5 * np.sin(time)
    ensemble = truth + RNG.normal(size=(10, 6, 8, 9))
    painter = plots.Painter.fit(truth[None], ("time", "y", "x"))
    figure = plots.plume(truth, ensemble, painter, persistence=np.repeat(truth[:1], 6, axis=0))
    ax = figure.axes[0]
    assert ax.get_title(loc="left") == "y 2, x 7"
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    np.testing.assert_allclose(lines["truth (test)"], truth[:, 2, 7])
    np.testing.assert_allclose(lines["persistence"], np.zeros(6))
    np.testing.assert_allclose(lines["median of 10 forecasts"], np.median(ensemble[:, :, 2, 7], axis=0))
    opened(figure)
    assert plots.plume(truth[0], ensemble[:, 0], plots.Painter.fit(truth, ("y", "x"))) is None


def test_the_error_in_time_is_that_of_each_step():
    truth = RNG.normal(size=(3, 5, 4))
    ensemble = truth[:, None] * np.array([1.2, 1.4]).reshape(1, 2, 1, 1)
    time = Coordinate.of(None, "time", 5)
    figure = plots.error_in_time(truth, ensemble, ("time", "x"), time, {"persistence": np.zeros_like(truth)})
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["mean of 2 forecasts"], 0.3)
    np.testing.assert_allclose(lines["persistence"], 1.0)
    opened(figure)


def frames(data: bytes) -> list[np.ndarray]:
    image = Image.open(io.BytesIO(data))
    out = []
    for i in range(image.n_frames):
        image.seek(i)
        out.append(np.asarray(image.convert("RGB")))
    return out


def test_a_film_moves_and_loops():
    x = np.zeros((2, 5, 6, 6))
    x[:, np.arange(5), :, np.arange(5)] = 1.0  # a bar that goes to the right
    painter = plots.Painter.fit(x, ("time", "y", "x"))
    data = plots.film({"test": [x[0]], "generated": [x[1]]}, painter)
    image = Image.open(io.BytesIO(data))
    assert image.info["loop"] == 0
    assert image.n_frames == 5
    shown = frames(data)
    assert all((one != two).any() for one, two in pairwise(shown))
    assert (shown[0][-1, 0] == 255).all()  # as white as the page


def test_a_film_of_much_noise_stays_small():
    x = RNG.normal(size=(6, 90, 40, 40))
    painter = plots.Painter.fit(x, ("time", "y", "x"))
    data = plots.film({"test": list(x[:3]), "generated": list(x[3:])}, painter)
    assert len(data) <= motion.BYTES
    assert 2 < Image.open(io.BytesIO(data)).n_frames <= motion.FRAMES


def test_pictures_are_the_same_for_the_same_samples():
    x = RNG.normal(size=(3, 4, 5, 6))
    painter = plots.Painter.fit(x, ("time", "y", "x"))
    assert plots.png(plots.gallery({"test": list(x)}, painter)) == plots.png(plots.gallery({"test": list(x)}, painter))
    assert plots.film({"test": list(x)}, painter) == plots.film({"test": list(x)}, painter)


def test_kinds_have_their_colours():
    x = RNG.normal(size=(2, 5, 6))
    figure = plots.gallery({"generated": list(x)}, plots.Painter.fit(x, ("y", "x")))
    assert same_color(figure.texts[0].get_color(), plots.COLOURS["generated"])
