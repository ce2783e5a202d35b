"""Parts of the report's page: numbers as text, small tables of facts, and pictures in their places."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from diffats.errors import InputError

Numbers = Mapping[str, Any]
Description = tuple[str, str, str]  # section, title, caption
_PNG = b"\x89PNG\r\n\x1a\n"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LONG = ("held_out", "credit", "licence")  # texts that come last
WIDE = 1200  # pixels across from which on a picture takes the page's whole width


# --- numbers as text ----------------------------------------------------------------------------------------------


def number(value: Any) -> str:
    """Three significant digits, thousands apart by thin spaces; anything but a number as it is.

    >>> number(0.012345), number(1234567), number(None), number(44.0)
    ('0.0123', '1\u2009234\u2009567', '–', '44')
    """
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return "–"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u2009")
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\u2009")
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}·10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return f"{value:.3g}"


def percent(value: Any) -> str:
    """A share as percent.

    >>> percent(0.0351), percent(0.42), percent(0.0004)
    ('3.5 %', '42 %', '0.04 %')
    """
    if value is None or not math.isfinite(value):
        return "–"
    share = 100 * float(value)
    digits = 0 if abs(share) >= 10 else 1 if abs(share) >= 1 else 2
    return f"{share:.{digits}f} %"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(3.21), duration(75), duration(4000)
    ('3.2 s', '1 min 15 s', '1 h 6 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def sizes_text(sizes: Mapping[str, int]) -> str:
    """Sizes of a sample, and the names of its modes.

    >>> sizes_text({"y": 16, "x": 8})
    '16 × 8 (y, x)'
    """
    return f"{' × '.join(map(number, sizes.values()))} ({', '.join(sizes)})"


# --- pictures -----------------------------------------------------------------------------------------------------


def placed(
    pictures: Mapping[str, bytes],
    captions: Mapping[str, str],
    catalogue: Mapping[str, Description],
    *,
    folded: Container[str],
    sections: Iterable[str],
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Pictures by section, those to see at once (``shown``) and the others (``folded``), in the catalogue's order.

    Parameters
    ----------
    pictures
        PNG bytes by name: one of the catalogue, one with ``_<mode>`` behind it, or any other.
    captions
        Sentences added to those of the catalogue.
    catalogue
        Section, title and caption of each name.
    folded
        Names of pictures that are not seen at once; unknown ones are not either.
    """
    found: dict[str, dict[str, list[dict[str, Any]]]] = {name: {"shown": [], "folded": []} for name in sections}
    order = list(catalogue)
    for name in sorted(pictures, key=lambda name: _rank(name, order)):
        section, title, caption = _described(name, catalogue)
        width, height = _png_size(name, pictures[name])
        hidden = section == "more" or _kind(name, catalogue) in folded
        found[section]["folded" if hidden else "shown"].append(
            {
                "name": name,
                "title": title,
                "caption": " ".join(filter(None, (caption, captions.get(name, "")))),
                "uri": "data:image/png;base64," + base64.b64encode(pictures[name]).decode("ascii"),
                "width": width,
                "height": height,
                "wide": width >= WIDE,
            }
        )
    return found


def _kind(name: str, catalogue: Container[str]) -> str:
    return name if name in catalogue else name.partition("_")[0]


def _rank(name: str, order: list[str]) -> tuple[int, str]:
    kind = _kind(name, order)
    return (order.index(kind) if kind in order else len(order), name)


def _described(name: str, catalogue: Mapping[str, Description]) -> Description:
    if name in catalogue:
        return catalogue[name]
    kind, _, mode = name.partition("_")
    if kind in catalogue and mode:
        section, title, caption = catalogue[kind]
        return section, f"{title}: {mode}", caption
    return "more", name.replace("_", " ").capitalize(), ""


def _png_size(name: str, png: bytes) -> tuple[int, int]:
    """Width and height from the header, so that the page does not jump while it loads."""
    if not png.startswith(_PNG) or len(png) < 24:
        raise InputError(f'picture "{name}" of the report is not a PNG. Give the bytes of plots.png(figure).')
    width, height = struct.unpack(">II", png[16:24])
    return width, height


# --- tables of labels and texts -----------------------------------------------------------------------------------


def plain(values: Numbers, labels: Mapping[str, str] | None = None) -> dict[str, str]:
    """Label and text of every value that has one."""
    labels = labels or {}
    return {
        labels.get(key, key.replace("_", " ")): number(value)
        for key, value in values.items()
        if value not in (None, "") and not isinstance(value, Mapping)
    }


def data_facts(data: Numbers) -> dict[str, str]:
    """What a sample is, where it is from, and which samples test."""
    facts = {}
    if data.get("sizes"):
        facts["one sample"] = sizes_text(data["sizes"])
    if data.get("variables"):
        named = (f"{name} ({unit})" if unit and unit != "1" else name for name, unit in data["variables"].items())
        facts["variables"] = ", ".join(named)
    hidden = ("title", "description", "sizes", "variables", "train", "test", "samples", "failed", "dropped")
    counts = {"samples": data.get("samples"), "for training": data.get("train"), "for testing": data.get("test")}
    left_out = {"unusable": data.get("failed") or None, "dropped at the split": data.get("dropped") or None}
    counted = ", ".join(f"{number(n)} {name}" for name, n in (counts | left_out).items() if n is not None)
    facts |= {"samples": counted.replace(" samples", "", 1)} if counted else {}
    told = {key: value for key, value in data.items() if key not in hidden}
    order = [key for key in told if key not in _LONG] + [key for key in _LONG if key in told]
    return facts | plain({key: told[key] for key in order}, {"held_out": "test part"})


def compression_facts(compression: Numbers, errors: Numbers) -> dict[str, str]:
    """Kind, ranks and size of a primitive, and what it loses."""
    facts = {}
    if compression.get("kind"):
        kinds = {"tgp": "tensor (Tucker, TGP)", "mgp": "matrix of patches (MGP)"}
        facts["primitive"] = kinds.get(compression["kind"], str(compression["kind"]))
    for key, label in (("ranks", "ranks"), ("patch", "patch")):
        if compression.get(key):
            facts[label] = ", ".join(f"{mode} {number(n)}" for mode, n in compression[key].items())
    if compression.get("aligned"):
        facts["aligned modes"] = ", ".join(compression["aligned"])
    if compression.get("raw_numbers") and compression.get("primitive_numbers"):
        facts["numbers per sample"] = (
            f"{number(compression['raw_numbers'])} raw, {number(compression['primitive_numbers'])} stored"
        )
    for key, label in (("anomaly", "anomaly error"), ("relative", "relative error")):
        if errors.get(key):
            parts = [f"{kind} {percent(value)}" for kind, value in errors[key].items() if value is not None]
            facts[label] = ", ".join(parts)
    if errors.get("over"):
        facts["errors over"] = str(errors["over"])
    return facts


def alignment_facts(alignment: Numbers) -> dict[str, str]:
    """The anchor, and the overlaps with it."""
    facts = {}
    if alignment.get("strategy"):
        facts["anchor"] = str(alignment["strategy"])
        if alignment.get("sample") is not None:
            facts["anchor"] += f", sample {alignment['sample']}"
    for mode, sigma in alignment.get("overlap_sigma_min", {}).items():
        parts = [f"{kind} {number(value)}" for kind, value in sigma.items() if value is not None]
        facts[f"smallest overlap, {mode}"] = ", ".join(parts)
    if alignment.get("low_share") is not None and alignment.get("min_overlap") is not None:
        facts[f"samples below {number(alignment['min_overlap'])}"] = percent(alignment["low_share"])
    return facts


def drift_facts(growths: Sequence[Numbers]) -> dict[str, str]:
    """The newest growth, and how many there were."""
    if not growths:
        return {}
    newest, alarming = growths[-1], [growth for growth in growths if growth["alarms"]]
    facts = {
        "growths": f"{len(growths)}, {len(alarming)} with an alarm",
        "newest": f"samples {newest['first']} to {newest['stop'] - 1}",
        "compared": f"{newest['samples']} against {newest['reference']} of the first version",
    }
    for name, row in newest["statistics"].items():
        facts[name.replace("_", " ")] = (
            f"median {number(row['before'])} before, {number(row['new'])} now; a new sample is the more unusual one "
            f"with probability {row['effect']:.2f} (p = {number(row['p'])})"
            f"{': alarm' if name in newest['alarms'] else ''}"
        )
    return facts


def generation_facts(generation: Numbers) -> dict[str, str]:
    """How samples were drawn, and how far their factors are from orthonormal ones."""
    facts = plain(generation, {"count": "samples"})
    if defects := generation.get("orthonormality_defect"):
        worst = max(defects, key=lambda factor: defects[factor])
        facts["orthonormality defect"] = f"{number(defects[worst])} ({worst.removeprefix('factor_')}, the largest)"
    return facts
