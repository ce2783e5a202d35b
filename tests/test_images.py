"""Folders of images as a source: what Pillow decodes is what samples hold, one file at a time."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffats.config import Data
from diffats.errors import SourceError
from diffats.sources import open_samples, opening
from diffats.sources.images import ImageArray, holds_images
from diffats.sources.samples import Samples

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 6, 9, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight pictures of two classes, and what is none of them."""
    for i, pixels in enumerate(PIXELS):
        save(tmp_path / "pictures" / ("cat" if i < 4 else "dog") / f"{i}.png", pixels)
    (tmp_path / "pictures" / "notes.txt").write_text("none")
    (tmp_path / "pictures" / ".hidden").mkdir()
    save(tmp_path / "pictures" / ".hidden" / "x.png", PIXELS[0, :3])
    return tmp_path / "pictures"


def data(source: Path | str, **options: Any) -> Data:
    return Data(**{"source": str(source), "modes": ["y", "x", "channel"], "sample_dim": "sample", **options})


def test_samples_are_the_pixels_in_the_order_of_the_names(folder: Path) -> None:
    samples = open_samples(data(folder, condition={"labels": "label"}))
    assert (samples.sizes, samples.variables) == ({"y": 6, "x": 9, "channel": 3}, ("image",))
    np.testing.assert_array_equal(samples.read(np.arange(8)), PIXELS)
    np.testing.assert_array_equal(samples.read([5, 1]), PIXELS[[5, 1]])
    assert samples.label_names == ("cat", "dog")
    labels = samples.conditions(np.arange(8), samples.read(np.arange(8)))["label"]
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert samples.sample_coords([4])["file"].values.tolist() == ["dog/4.png"]
    assert samples.template()["channel"].values.tolist() == ["red", "green", "blue"]


def test_windows_are_cut_from_pictures(folder: Path) -> None:
    samples = open_samples(data(folder, windows={"size": {"y": 3, "x": 3}}))
    assert samples.n == 8 * 2 * 3
    np.testing.assert_array_equal(samples.read([7])[0], PIXELS[1, :3, 3:6])


def test_only_what_is_asked_for_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    plain = ImageArray._decode
    monkeypatch.setattr(ImageArray, "_decode", lambda self, path: decoded.append(path.name) or plain(self, path))
    samples = Samples(data(folder))
    assert not decoded
    samples.read([2, 6])
    assert decoded == ["2.png", "6.png"]


def test_folders_named_train_and_test_are_no_classes(tmp_path: Path) -> None:
    for i, pixels in enumerate(PIXELS):
        save(tmp_path / ("train" if i < 6 else "test") / str(i % 2) / f"{i}.png", pixels)
    split = {"by": "coordinate", "coordinate": "subset", "values": ["test"]}
    samples = open_samples(data(tmp_path, condition={"labels": "label"}, split=split))
    assert samples.label_names == ("0", "1")
    assert [name for name, held in zip(samples.dataset["file"].values, samples.is_test, strict=True) if held] == [
        "test/0/6.png",
        "test/1/7.png",
    ]


@pytest.mark.parametrize(
    ("pixels", "dims", "dtype"),
    [
        (PIXELS[0, :, :, 0], ("y", "x"), np.uint8),
        (PIXELS[0, :, :, 0].astype(np.uint16) * 257, ("y", "x"), np.uint16),
        (PIXELS[0, :, :, 0] > 99, ("y", "x"), np.uint8),
        (np.concatenate([PIXELS[0], PIXELS[1, :, :, :1]], axis=-1), ("y", "x", "channel"), np.uint8),
    ],
)
def test_grey_deep_binary_and_transparent_pictures(
    tmp_path: Path, pixels: np.ndarray, dims: tuple[str, ...], dtype: Any
) -> None:
    save(tmp_path / "one.png", pixels)
    made = opening.open_source(data(tmp_path / "one.png"))
    assert (made["image"].dims, made["image"].dtype) == (dims, dtype)
    np.testing.assert_array_equal(made["image"], pixels * (255 if pixels.dtype == bool else 1))


def test_a_glob_stacks_pictures(folder: Path) -> None:
    samples = open_samples(data(f"{folder}/*/*.png"))
    np.testing.assert_array_equal(samples.read(np.arange(8)), PIXELS)


def test_a_camera_held_on_its_side(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a.png", PIXELS[0], exif=exif)
    made = opening.open_source(data(tmp_path / "a.png"))
    np.testing.assert_array_equal(made["image"], np.rot90(PIXELS[0], -1))


def test_pictures_of_several_kinds_are_read_as_rgb(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(folder / "cat" / "9.png", PIXELS[0, :, :, 0])
    with caplog.at_level(logging.WARNING):
        samples = Samples(data(folder))
    assert "8 RGB, 1 L" in caplog.text
    np.testing.assert_array_equal(samples.read([4])[0], np.repeat(PIXELS[0, :, :, :1], 3, axis=-1))


def test_the_first_picture_of_another_size_is_named(folder: Path) -> None:
    save(folder / "dog" / "a.png", PIXELS[0, :5])
    with pytest.raises(SourceError, match=r"dog/a\.png is 9 x 5 pixels, but .*cat/0\.png is 9 x 6"):
        open_samples(data(folder))


def test_what_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "dog" / "5.png").read_bytes()
    (folder / "dog" / "5.png").write_bytes(whole[:-80])
    samples = open_samples(data(folder))  # its header is sound
    with pytest.raises(SourceError, match=r"dog/5\.png cannot be read"):
        samples.read([5])
    (folder / "dog" / "5.png").write_bytes(b"no picture")
    with pytest.raises(SourceError, match=r"dog/5\.png cannot be read"):
        Samples(data(folder))
    frames = [Image.fromarray(pixels) for pixels in PIXELS[:2]]
    frames[0].save(tmp_path / "film.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(SourceError, match="has 2 frames, expected one"):
        opening.open_source(data(tmp_path / "film.tif"))
    (tmp_path / "page.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")  # which Pillow would hand to a program
    with pytest.raises(SourceError, match="cannot be read"):
        opening.open_source(data(tmp_path / "page.png"))


def test_a_change_is_seen(folder: Path) -> None:
    before = Samples(data(folder)).fingerprint()
    assert Samples(data(folder)).fingerprint() == before
    save(folder / "dog" / "5.png", PIXELS[0])
    os.utime(folder / "dog" / "5.png", ns=(1, 2**62))
    changed = Samples(data(folder)).fingerprint()
    save(folder / "dog" / "9.png", PIXELS[0])
    assert len({before, changed, Samples(data(folder)).fingerprint()}) == 3


def test_pictures_beside_data_are_no_source(tmp_path: Path) -> None:
    save(tmp_path / "plot.png", PIXELS[0])
    for name in ("a.nc", "b.nc"):
        (tmp_path / name).write_bytes(b"")
    assert not holds_images(tmp_path)
    with pytest.raises(SourceError, match=r"holds no images.*\*\.nc"):
        open_samples(data(tmp_path))
