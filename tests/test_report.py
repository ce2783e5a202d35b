"""The report: what it says for good and bad figures, and that it is one safe, self-contained file."""

import re
from html import escape
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from diffats import plots
from diffats.errors import InputError
from diffats.report import FOLDED, PICTURES, ReportContent, cautions, headline, render, summary

PNG = plots.png(Figure(figsize=(1, 0.5), dpi=40))
METRIC = {
    "value": 0.05,
    "train_vs_test": 0.02,
    "gaussian": 0.1,
    "codec": None,
    "persistence": None,
    "training_mean": None,
    "better": "lower",
    "unit": "scaled units",
    "label": "Energy distance",
    "meaning": "Distance between two clouds.",
}


def content(**changes: object) -> ReportContent:
    given = {
        "name": "indian-pines",
        "created": "22 November 2026",
        "data": {
            "title": "AVIRIS Indian Pines",
            "sizes": {"y": 16, "x": 16, "band": 200},
            "variables": {"reflectance": "counts"},
            "samples": 1089,
            "train": 980,
            "test": 109,
            "failed": 0,
        },
        "compression": {
            "ratio": 37.2,
            "raw_numbers": 51200,
            "primitive_numbers": 1376,
            "ranks": {"y": 6, "band": 8},
            "aligned": ["y", "band"],
            "kind": "tgp",
        },
        "errors": {"anomaly": {"mean": 0.12, "max": 0.2}, "relative": {"mean": 0.02, "max": 0.04}},
        "alignment": {"strategy": "medoid", "sample": 7, "overlap_sigma_min": {"y": {"min": 0.2, "median": 0.6}}},
        "training": {"steps": 2000, "heldout_loss": 0.1, "best_heldout_loss": 0.1},
        "generation": {"count": 64, "sampler": "ddim", "orthonormality_defect": {"factor_y": 0.04}},
        "metrics": {"energy_distance": METRIC, "other": METRIC | {"value": 0.2}},
        "model": {"name": "indian-pines", "version": "3", "alias": "champion", "uri": "models:/indian-pines@champion"},
        "provenance": {"Software": {"torch": "2.13.0"}},
        "seconds": {"decompose": 12.3, "train": 240.0},
        "pictures": dict.fromkeys(PICTURES, PNG) | {"factors_y": PNG, "my_own": PNG},
    }
    return ReportContent(**(given | changes))


class Page(HTMLParser):
    """Tags must balance; what the page loads is collected."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(html)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.sources += [found[key] for key in ("src", "data", "xlink:href") if key in found]
        self.links += [found["href"]] if "href" in found else []
        self.ids += [found["id"]] if "id" in found else []
        if tag == "img":
            assert found["alt"]
            assert int(found["width"]) == 40
            assert int(found["height"]) == 20
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def test_a_full_page_is_self_contained():
    html = render(content())
    page = Page(html)
    assert len(page.sources) == len(PICTURES) + 2
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "<script" not in html
    assert "url(" not in html
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert "width=device-width" in html
    assert "diffats.load(&#39;models:/indian-pines@champion&#39;)" in html


def test_an_empty_page_and_every_part_alone():
    Page(render(ReportContent("tiny")))
    full = content()
    for part in ("data", "compression", "errors", "alignment", "training", "generation", "metrics", "model"):
        Page(render(ReportContent("tiny", **{part: getattr(full, part)})))
    for name in full.pictures:
        page = Page(render(ReportContent("tiny", pictures={name: PNG})))
        assert len(page.sources) == 1


def test_text_is_escaped():
    html = render(ReportContent("<script>alert(1)</script>", data={"title": "<b>&"}, cautions=["<i>"]))
    assert "<script>" not in html
    assert "&lt;b&gt;&amp;" in html
    assert "<i>" not in html


def test_summary_leads_with_data_compression_and_anomaly_error():
    text = " ".join(summary(content()))
    assert "1\u2009089 samples of 16 × 16 × 200 (y, x, band)" in text
    assert "37.2 times smaller" in text
    assert text.index("anomaly error") < text.index("measured against the sample itself")
    assert "model 0.05, Gaussian reference 0.1, real training samples 0.02" in text
    assert "beats the Gaussian reference" in text
    assert "better on 1" in text


def test_a_model_that_loses_is_called_so():
    losing = content(metrics={"energy_distance": METRIC | {"value": 0.3}})
    assert "does not beat the Gaussian reference" in " ".join(summary(losing))
    assert any("does not beat" in caution for caution in cautions(losing))
    assert '<b class="bad">no</b>' in render(losing)


def test_forecasts_name_their_trivial_predictors():
    metric = METRIC | {
        "gaussian": None,
        "train_vs_test": None,
        "persistence": 0.4,
        "training_mean": 0.5,
        "label": "CRPS",
    }
    text = " ".join(summary(content(metrics={"crps": metric}, deciding="crps")))
    assert "Predictions for unseen conditions (CRPS): model 0.05, persistence 0.4, training mean 0.5." in text
    assert "Persistence</th>" in render(content(metrics={"crps": metric}, deciding="crps"))


def test_the_headline_follows_from_all_rows():
    won, lost = METRIC, METRIC | {"value": 0.3}
    table = {"energy_distance": won, "sliced_wasserstein": lost, "spectrum_error": lost}
    assert headline(content(metrics=table)) == "partly"
    page = render(content(metrics=table))
    assert "it is better on 1 of 3 metrics with references" in page
    assert '<b class="good">yes</b>' in page  # in its row alone
    assert headline(content(metrics={**table, "sliced_wasserstein": won})) == "yes"
    assert headline(content(metrics={"energy_distance": lost, "spectrum_error": won})) == "no"
    assert headline(content(metrics={"energy_distance": METRIC | {"gaussian": None}})) is None
    assert headline(content(metrics={})) is None


@pytest.mark.parametrize(
    ("interval", "groups", "answer", "cell", "caution"),
    [
        ([-0.08, -0.02], 40, "yes", '<b class="good">yes</b>', ""),
        ([-0.1, 0.02], 40, "undecided", '<b class="">not distinguishable</b>', "About 2 times as many test samples"),
        ([0.01, 0.02], 40, "no", '<b class="bad">no</b>', "Train longer"),
        ([-0.08, -0.02], 5, "undecided", '<b class="">too few samples</b>', "5 do not depend on each other, and 8"),
    ],
)
def test_a_difference_within_its_interval_is_no_verdict(interval, groups, answer, cell, caution):
    metric = METRIC | {"groups": groups, "intervals": {"value": [-0.01, 0.09], "gaussian": interval}, "unbiased": True}
    made = content(metrics={"energy_distance": metric})
    assert headline(made) == answer
    assert cell in render(made)
    assert "The model's is between 0 and 0.09 with 90 % confidence." in " ".join(summary(made))
    assert any(caution in each for each in cautions(made)) or not caution


def test_compression_is_not_counted_among_what_the_model_wins():
    metric = METRIC | {"gaussian": None, "training_mean": 1.0}
    text = " ".join(summary(content(metrics={"energy_distance": METRIC, "anomaly_error": metric})))
    assert "it is better on 1 of 1 metrics with references (1 without)" in text


def test_a_forecast_must_beat_both_trivial_predictors():
    metric = METRIC | {"gaussian": None, "persistence": 0.04, "training_mean": 0.5, "label": "CRPS"}
    made = content(metrics={"crps": metric}, deciding="crps")
    assert headline(made) == "partly"
    assert "the model beats the training mean, but does not beat persistence" in " ".join(summary(made))
    assert any("beats the training mean, but does not beat persistence" in caution for caution in cautions(made))


def test_the_mean_of_an_ensemble_must_be_right_too():
    """Any ensemble of samples has a lower CRPS than their mean."""
    crps = METRIC | {"gaussian": None, "persistence": 0.4, "training_mean": 0.5, "label": "Forecast, CRPS"}
    mean = crps | {"value": 0.45, "label": "Forecast, relative L2"}
    made = content(metrics={"crps": crps, "relative_l2": mean}, deciding="crps")
    assert headline(made) == "partly"
    text = " ".join(summary(made))
    lost = "beats the training mean, but does not beat persistence"
    assert f"the model beats persistence and the training mean, and {lost}" in text
    both = content(metrics={"crps": crps, "relative_l2": mean | {"value": 0.3}}, deciding="crps")
    assert headline(both) == "yes"
    assert "By both measures the model beats persistence and the training mean;" in " ".join(summary(both))
    assert (
        "beats persistence and the training mean (forecast, CRPS and forecast, relative L2); it is better on 2 of"
        in render(both)
    )


def test_an_estimate_below_zero_is_zero_within_its_noise():
    below = METRIC | {"value": -0.013, "unbiased": True}
    made = content(metrics={"energy_distance": below})
    assert "model 0, within its noise, Gaussian reference" in " ".join(summary(made))
    assert "0.013" not in render(made)


@pytest.mark.parametrize(
    ("better", "words"), [("near 0.9", "Closer to 0.9"), ("near 1", "Closer to 1"), ("lower", "Lower")]
)
def test_every_direction_is_said(better, words):
    table = {"energy_distance": METRIC | {"better": better, "truth": 0.01}}
    assert f"{words} is better." in " ".join(summary(content(metrics=table)))
    assert "The truth itself</th>" in render(content(metrics=table))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"errors": {"anomaly": {"mean": 0.42}}}, "loses much"),
        ({"alignment": {"overlap_sigma_min": {"x": {"min": 0.0, "median": 0.03}}}}, "Alignment along x is fragile"),
        ({"data": {"failed": 3}}, "3 samples could not be used"),
        ({"data": {"dropped": 5}}, "5 windows were dropped"),
        ({"training": {"heldout_loss": 0.3, "best_heldout_loss": 0.1}}, "overfits"),
        ({"metrics": {"nearest_training_ratio": METRIC | {"value": 0.1, "train_vs_test": 0.9}}}, "may copy"),
        ({"metrics": {"spread_ratio": METRIC | {"value": 0.5}}}, "vary less"),
        ({"metrics": {"energy_distance": METRIC | {"value": 0.01}}}, "closer to the test samples than real training"),
        ({"cautions": ["the clock was wrong"]}, "the clock was wrong"),
    ],
)
def test_doubts_are_said_aloud(changes, words):
    assert not any(words in caution for caution in cautions(content()))
    assert any(words in caution for caution in cautions(content(**changes)))


def test_good_figures_raise_no_caution():
    assert not cautions(content())


def test_a_picture_must_be_a_png():
    with pytest.raises(InputError, match='picture "scree" of the report is not a PNG'):
        render(ReportContent("tiny", pictures={"scree": b"GIF89a"}))


def test_times_and_numbers_read_well():
    html = render(content())
    assert "4 min 0 s" in html
    assert "Together 4 min 12 s, interrupted runs included: each stage" in html
    assert re.search(r"numbers per sample</dt><dd>51\u2009200 raw, 1\u2009376 stored", html)


def test_pictures_that_can_wait_are_folded_and_no_metric_is_lost():
    html = render(content())
    folds = re.findall(r"<details>.*?</details>", html, re.DOTALL)
    folded = "".join(folds)
    for name, (_, title, _) in PICTURES.items():
        if name != "factors":
            of_forecasts = name in ("plume", "quantiles", "power_spectra")  # which show others first
            assert ("<b>" + escape(title).replace("&#x27;", "&#39;") in folded) == (name in FOLDED or of_forecasts), (
                name
            )
    assert "My own" in folded
    assert html.count("<small>Distance between two clouds.</small>") == 2
    assert folded.count("<small>Distance between two clouds.</small>") == 1  # what decides is seen at once


def test_the_recipe_and_its_command_are_on_the_page():
    html = render(content(recipe='name = "a"', command="python -m flows.end_to_end a.toml"))
    assert "name = &#34;a&#34;" in html
    assert "python -m flows.end_to_end a.toml" in html
    assert "The recipe" not in render(content())


def test_a_defect_is_one_number_with_its_meaning():
    html = render(content(generation={"orthonormality_defect": {"factor_y": 0.04, "factor_band": 0.6}}))
    assert "<dt>orthonormality defect</dt><dd>0.6 (band, the largest)</dd>" in html
    assert "0 is exact" in html
    assert "far from orthonormal (defect 0.6)" in html
    assert "far from orthonormal" not in render(content())


def test_colour_and_contrast_are_fixed_to_light():
    assert 'name="color-scheme" content="light"' in render(ReportContent("tiny"))


@pytest.mark.parametrize(
    ("last", "step", "words"),
    [
        (0.51, 900, "has not fallen since step 900 of 2"),
        (0.9, 900, "rose from 0.5 at step 900 to 0.9 by the end"),
        (0.51, 1900, ""),
    ],
)
def test_a_held_out_loss_that_stopped_falling_is_told(last, step, words):
    facts = {"steps": 2000, "heldout_loss": last, "best_heldout_loss": 0.5, "best_step": step}
    found = " ".join(cautions(content(training=facts)))
    assert words in found if words else "held-out" not in found


def test_a_small_distance_within_its_noise_is_not_suspicious():
    metric = METRIC | {"value": 0.01, "groups": 40, "intervals": {"value": [-0.02, 0.2]}}
    assert not any("closer to the test" in each for each in cautions(content(metrics={"energy_distance": metric})))
    sure = metric | {"intervals": {"value": [0.005, 0.015]}}
    assert any("closer to the test" in each for each in cautions(content(metrics={"energy_distance": sure})))


def test_what_decides_is_shown_for_each_condition():
    parts = [{"condition": "calm <sea>", "samples": 12, "value": -0.001, "gaussian": 0.2, "train_vs_test": 0.1}]
    metrics = {"energy_distance_within": METRIC | {"parts": parts}}
    html = render(content(metrics=metrics, deciding="energy_distance_within"))
    assert '<th scope="row">calm &lt;sea&gt;</th><td data-label="Test samples">12</td>' in html
    assert "The same for each condition" not in render(content())
