"""Calibrated output: each number of the network's guess combined with the noisy number, by what training samples say.

A network is judged by the whole field, so its guess of numbers that vary little may be off by many of their deviations:
harmless in a field once, ruinous in a chain of denoising. After training, ``x0 = a guess + b z_t`` is fitted for each
number at each noise level, by least squares with ``0 <= a <= 1.05`` and ``0 <= b <= 1 / sqrt(abar)``. The best linear
filter of the number alone is among the candidates (``a = 0``), so on the samples that it is fitted to no number is
denoised worse than by that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffats import config
from diffats.diffusion import Diffusion, Network, random_source
from diffats.disk import replace_file
from diffats.errors import IntegrityError
from diffats.models import resolve_device
from diffats.primitives import Layout

LEVELS = 33
BATCHES = 8
MOST_GUESS = 1.05
_NOISE = 7  # keeps the random numbers apart from others of the same seed

Array = np.ndarray[Any, Any]
Batch = tuple[Array, Mapping[str, Array]]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a network's guess and the noisy number count for.

    Attributes
    ----------
    levels
        Noise levels ``(L,)``, ascending.
    guess, noisy
        ``a`` and ``b`` by kind of call, ``"given"`` and ``"dropped"`` (conditions), each ``(L, D)``. The second is
        there only where conditions were dropped in training.
    """

    levels: Tensor
    guess: Mapping[str, Tensor]
    noisy: Mapping[str, Tensor]

    def to(self, device: torch.device) -> Calibration:
        """The same on a device."""
        guess = {kind: x.to(device) for kind, x in self.guess.items()}
        return Calibration(self.levels, guess, {kind: x.to(device) for kind, x in self.noisy.items()})

    def to_tensors(self) -> dict[str, Tensor]:
        """The weights as tensors."""
        out = {"levels": self.levels}
        out |= {f"guess.{kind}": x for kind, x in self.guess.items()}
        return out | {f"noisy.{kind}": x for kind, x in self.noisy.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Calibration:
        """The calibration that ``to_tensors`` described."""

        def part(what: str) -> dict[str, Tensor]:
            return {name.removeprefix(what): x for name, x in tensors.items() if name.startswith(what)}

        return cls(tensors["levels"], part("guess."), part("noisy."))


_KINDS = ("given", "dropped")


def _names(kinds: Iterable[str]) -> set[str]:
    return {f"{what}.{kind}" for what in ("guess", "noisy") for kind in kinds}


class Calibrated:
    """A network whose guess of the clean sample is calibrated; it is called like the network itself.

    Parameters
    ----------
    network
        ``network(z_t, t, cond, drop) -> (B, D)``.
    diffusion
        What it predicts, and at which levels.
    calibration
        On the network's device.
    """

    def __init__(self, network: Network, diffusion: Diffusion, calibration: Calibration) -> None:
        self.network, self.diffusion, self.calibration = network, diffusion, calibration
        levels = calibration.levels.numpy()
        log_snr = diffusion.log_snr()
        place = np.interp(-log_snr, -log_snr[levels], np.arange(len(levels)))
        device = calibration.guess[_KINDS[0]].device
        self._below = torch.from_numpy(np.floor(place).astype(np.int64)).to(device)
        self._share = torch.from_numpy((place - np.floor(place)).astype(np.float32)).to(device)

    def __call__(self, z: Tensor, t: Tensor, cond: Mapping[str, Tensor], drop: Tensor | None) -> Tensor:
        """The network's kind of prediction ``(B, D)`` that means the calibrated guess."""
        guess = self.diffusion.to_x0(self.network(z, t, cond, drop).float(), z, t)
        a, b = (self._weights(part, t, cond, drop) for part in (self.calibration.guess, self.calibration.noisy))
        return self.diffusion.from_x0(a * guess + b * z, z, t)

    def _weights(
        self, tables: Mapping[str, Tensor], t: Tensor, cond: Mapping[str, Tensor], drop: Tensor | None
    ) -> Tensor:
        if "dropped" not in tables or (cond and drop is None):
            return self._at(tables["given"], t)
        dropped = self._at(tables["dropped"], t)
        if not cond or drop is None:
            return dropped
        return torch.where(drop[:, None], dropped, self._at(tables["given"], t))

    def _at(self, table: Tensor, t: Tensor) -> Tensor:
        """Rows at the levels ``t`` ``(B,)``, straight between those of the table in log-SNR."""
        below = self._below[t]
        return torch.lerp(table[below], table[(below + 1).clamp(max=len(table) - 1)], self._share[t][:, None])


def load_calibrated(
    file: Path, network: Network, layout: Layout, recipe: config.Recipe, *, device: str = "auto"
) -> Calibrated:
    """A network with the calibration of a file.

    Raises
    ------
    IntegrityError
        Where the file is damaged, or belongs to another network.
    """
    diffusion = Diffusion(recipe.diffusion)
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{file} is damaged ({error}). Copy the model again, or train again.") from error
    if not _fits(tensors, diffusion, layout.numbers):
        raise IntegrityError(f"{file} does not fit this recipe's network. Copy the model again, or train again.")
    return Calibrated(network, diffusion, Calibration.from_tensors(tensors).to(resolve_device(device)))


def _fits(tensors: Mapping[str, Tensor], diffusion: Diffusion, numbers: int) -> bool:
    """Whether tensors are a calibration of a network of this process with so many numbers."""
    tables = {name: x for name, x in tensors.items() if name != "levels"}
    levels = torch.tensor(levels_of(diffusion))
    if set(tables) not in (_names(_KINDS[:1]), _names(_KINDS)) or "levels" not in tensors:
        return False
    if tensors["levels"].dtype != levels.dtype or not torch.equal(tensors["levels"], levels):
        return False
    most = {"guess": torch.tensor(MOST_GUESS), "noisy": diffusion.abar[levels].double().rsqrt()[:, None]}
    return all(
        x.shape == (len(levels), numbers)
        and x.dtype == torch.float32
        and bool(((x >= 0) & (x <= most[name.partition(".")[0]] * (1 + 1e-6))).all())
        for name, x in tables.items()
    )


def levels_of(diffusion: Diffusion) -> list[int]:
    """The levels at which is fitted: evenly spaced in log-SNR, ascending."""
    return diffusion.timesteps(min(LEVELS, diffusion.sampling_levels()))[::-1]


@torch.no_grad()
def fit(
    network: Network,
    diffusion: Diffusion,
    batches: Sequence[Batch],
    *,
    seed: int,
    dropped: bool,
    file: Path,
    identity: str,
    device: torch.device | None = None,
    at_once: int | None = None,
    progress: Callable[[int, int], None] = lambda done, levels: None,
) -> Calibration:
    """Fit a calibration; one that was interrupted goes on where it stopped.

    Parameters
    ----------
    network
        Ready to predict.
    batches
        Normalised clean samples ``(B, D)`` and their conditions.
    seed
        Of the noise.
    dropped
        Whether calls without conditions get weights of their own.
    file
        Where finished levels are kept.
    identity
        Of the weights; what ``file`` holds of others is not used.
    device, at_once
        Where the network is, the CPU where left out, and how many samples it gets in a call, a batch where left out.
    progress
        Called with levels done and levels in all.
    """
    levels = levels_of(diffusion)
    kinds = _KINDS if dropped and batches[0][1] else _KINDS[:1]
    rows = _kept(file, identity, levels, kinds)
    for i in range(len(rows), len(levels)):
        row: dict[str, Tensor] = {}
        for kind in kinds:
            parts = _denoised(network, diffusion, batches, levels[i], (seed, kind), device, at_once)
            most = 1 / float(diffusion.abar[levels[i]].double().sqrt())
            weights = bounded_least_squares(_sums(parts), most_guess=MOST_GUESS, most_noisy=most)
            for what, x in zip(("guess", "noisy"), weights, strict=True):
                row[f"{what}.{kind}"] = torch.from_numpy(x.astype(np.float32))
        rows.append(row)
        whole = {name: torch.stack([each[name] for each in rows]) for name in row}
        tensors = {"levels": torch.tensor(levels[: i + 1]), **whole}
        replace_file(file, lambda path, kept=tensors: _save(path, kept, identity))  # type: ignore[misc]
        progress(i + 1, len(levels))
    return Calibration.from_tensors(load_file(file))


def weights_identity(weights: Path, settings: Mapping[str, Any]) -> str:
    """Digest of what a calibration depends on: the averaged weights, and how they were trained."""
    digest = hashlib.sha256(weights.read_bytes())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def _kept(file: Path, identity: str, levels: list[int], kinds: tuple[str, ...]) -> list[dict[str, Tensor]]:
    """The finished rows of a file; none where it is of other weights or damaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            noted = opened.metadata() or {}
        tensors = load_file(file)
    except (OSError, SafetensorError):
        return []
    if noted != {"digest": _digest(tensors, identity)} or set(tensors) != {"levels", *_names(kinds)}:
        return []
    done = tensors.pop("levels").tolist()
    return (
        [{name: x[i] for name, x in tensors.items()} for i in range(len(done))] if done == levels[: len(done)] else []
    )


def _digest(tensors: Mapping[str, Tensor], identity: str) -> str:
    """SHA-256 of tensors, their names and what they belong to."""
    digest = hashlib.sha256(identity.encode())
    for name, x in sorted(tensors.items()):
        digest.update(name.encode() + x.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _save(path: Path, tensors: dict[str, Tensor], identity: str) -> None:
    # one entry: several come in an order that differs from process to process, and so would the file
    save_tensors(path, tensors, {"digest": _digest(tensors, identity)})


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; OSError where it cannot be written."""
    try:
        save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, path, metadata=metadata)
    except SafetensorError as error:  # a full disk, for one
        raise OSError(f"{path} cannot be written ({error})") from error


def _denoised(
    network: Network,
    diffusion: Diffusion,
    batches: Sequence[Batch],
    level: int,
    call: tuple[int, str],
    device: torch.device | None,
    at_once: int | None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The network's guess, the noisy and the clean numbers ``(B, D)`` of the batches at one level, part by part.

    ``call``: the seed of the noise, and the kind of call.
    """
    seed, kind = call
    for number, (clean, cond) in enumerate(batches):
        eps = torch.randn(clean.shape, generator=random_source(seed, _NOISE, level, number))
        for start in range(0, len(clean), at_once or len(clean)):
            part = slice(start, start + (at_once or len(clean)))
            z, noise = (torch.as_tensor(x[part]).to(device) for x in (clean, eps))
            given = {name: torch.as_tensor(x[part]).to(device) for name, x in cond.items()} if kind == "given" else {}
            t = torch.full((len(z),), level, device=device)
            noisy = diffusion.add_noise(z, noise, t)
            yield diffusion.to_x0(network(noisy, t, given, None).float(), noisy, t), noisy, z


def _sums(parts: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Array:
    """Sums of products ``(5, D)`` for `bounded_least_squares`, of guesses, noisy and clean numbers; float64."""
    total: Array | float = 0.0
    for part in parts:
        g, z, x = (_wide(each) for each in part)
        total += np.stack([(a * b).sum(0).cpu().numpy() for a, b in ((g, g), (g, z), (z, z), (g, x), (z, x))])
    return np.asarray(total)


def _wide(x: Tensor) -> Tensor:
    return x.cpu().double() if x.device.type == "mps" else x.double()


def bounded_least_squares(sums: Array, *, most_guess: float, most_noisy: float) -> tuple[Array, Array]:
    """``a`` and ``b`` ``(D,)`` that minimise ``sum (a g + b z - x)^2`` with ``0 <= a, b <=`` their most.

    Parameters
    ----------
    sums
        ``(5, D)``: of ``g g``, ``g z``, ``z z``, ``g x`` and ``z x``.

    >>> g, z, x = np.array([1.0, 2.0]), np.array([1.0, -1.0]), np.array([2.0, 1.0])
    >>> sums = np.array([g @ g, g @ z, z @ z, g @ x, z @ x])[:, None]
    >>> [w.round(6).tolist() for w in bounded_least_squares(sums, most_guess=5.0, most_noisy=5.0)]
    [[1.0], [1.0]]
    >>> [w.round(6).tolist() for w in bounded_least_squares(sums, most_guess=0.0, most_noisy=5.0)]
    [[0.0], [0.5]]
    """
    gg, gz, zz, gx, zx = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        determinant = gg * zz - gz**2
        inside = np.stack([(gx * zz - zx * gz) / determinant, (zx * gg - gx * gz) / determinant])
        edges = [
            np.stack([np.full_like(gg, a), np.clip((zx - a * gz) / zz, 0, most_noisy)]) for a in (0.0, most_guess)
        ] + [np.stack([np.clip((gx - b * gz) / gg, 0, most_guess), np.full_like(gg, b)]) for b in (0.0, most_noisy)]
    candidates = np.nan_to_num(np.stack([inside, *edges]), nan=0.0, posinf=0.0, neginf=0.0)  # (5, 2, D)
    a, b = candidates[:, 0], candidates[:, 1]
    lost = a**2 * gg + 2 * a * b * gz + b**2 * zz - 2 * a * gx - 2 * b * zx
    allowed = (a >= 0) & (a <= most_guess) & (b >= 0) & (b <= most_noisy)
    best = np.argmin(np.where(allowed, lost, np.inf), axis=0)
    columns = np.arange(len(best))
    return a[best, columns], b[best, columns]
