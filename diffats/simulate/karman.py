"""Karman vortex street: the vorticity behind a cylinder whose size, place and Reynolds number vary.

Several clips are cut one after the other from one flow; all of them are on one side of the split.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from diffats.config import Simulate
from diffats.errors import RecipeError
from diffats.simulate import drawing
from diffats.simulate.drawing import Array
from diffats.simulate.lattice_boltzmann import Circle, Tunnel, vorticity

VERSION = 1
DIMS = ("time", "y", "x")
REYNOLDS = (44.0, 90.0)
#: In heights of the channel: the cylinder's radius and place, measured from the corner of the stored window.
RADIUS, ABOVE, BEHIND = (1 / 16, 3 / 32), (0.44, 0.56), (0.19, 0.25)
MOST_TOGETHER = 1
IN_PROCESSES = True
_SPEED = 0.12  # of the flow in cells a step: a Mach number of 0.2
_DIAMETER = 5 / 32  # the mean one, by which times and vorticity are scaled
_SPIN_UP, _CLIP = 60.0, 16.0  # mean diameters that the flow goes on: until vortices are shed evenly, and in one clip
_UPSTREAM, _LENGTH = 0.25, 1.75  # in heights; the stored window is a square


def solver() -> str:
    """What solves it."""
    return f"diffats.simulate.lattice_boltzmann {VERSION}: D2Q9, two relaxation times, one cell a stored point"


def describe(settings: Simulate) -> xr.Dataset:
    """Coordinates and parameters of all samples, and variables that are still to be made."""
    frames, n = _sizes(settings)
    stream, clips = drawing.parameter_stream(settings), settings.clips
    ranges = {"re": REYNOLDS, "radius": RADIUS, "centre_y": ABOVE, "centre_x": BEHIND}
    parameters = {name: stream.uniform(*bounds, settings.count) for name, bounds in ranges.items()}
    names = {
        "re": "Reynolds number, by the diameter",
        "radius": "radius of the cylinder, in heights of the channel",
        "centre_y": "centre of the cylinder, in heights of the channel",
        "centre_x": "centre of the cylinder, in heights of the channel",
    }
    side = drawing.held_out(settings, parameters)
    interval = _every(frames, n) * _SPEED / (_DIAMETER * n)
    total = settings.count * clips
    return xr.Dataset(
        {"vorticity": drawing.empty(("sample", *DIMS), (total, frames, n, n), {"long_name": "vorticity, scaled"})},
        coords={
            "time": drawing.coordinate("time", interval * np.arange(frames), "mean diameters that the flow went on"),
            "y": drawing.coordinate("y", (np.arange(n) + 0.5) / n, "position, in heights of the channel"),
            "x": drawing.coordinate("x", (np.arange(n) + 0.5) / n, "position, in heights of the channel"),
            "trajectory": drawing.coordinate("sample", np.repeat(np.arange(settings.count), clips), "flow"),
            "clip": drawing.coordinate("sample", np.tile(np.arange(clips), settings.count), "clip of the flow"),
            **{name: drawing.coordinate("sample", np.repeat(parameters[name], clips), names[name]) for name in names},
            "held_out": drawing.sides("sample", np.repeat(side, clips), *drawing.NEW),
        },
        attrs={
            "title": "Karman vortex street, vorticity times mean diameter over speed",
            "references": "Williamson, Annu. Rev. Fluid Mech. 28 (1996) 477",
        },
    )


def solve(settings: Simulate, part: xr.Dataset) -> dict[str, Array]:
    """The clips of whole trajectories, float32 ``(k, time, y, x)``."""
    frames, n = _sizes(settings)
    starts = part.isel(sample=slice(None, None, settings.clips))
    clips = [
        _flow(starts.isel(sample=i), n=n, frames=frames, clips=settings.clips) for i in range(starts.sizes["sample"])
    ]
    return {"vorticity": np.concatenate(clips)}


def _flow(parameters: xr.Dataset, *, n: int, frames: int, clips: int) -> Array:
    """The clips of one flow, ``(clips, frames, n, n)``."""
    re, radius, y, x = (float(parameters[name]) for name in ("re", "radius", "centre_y", "centre_x"))
    left = round(_UPSTREAM * n)
    # the first point is half a cell inside the window, and the window begins after the columns upstream
    circle = Circle(y * n - 0.5, left + x * n - 0.5, radius * n)
    tunnel = Tunnel(n, round(_LENGTH * n), _SPEED * 2 * radius * n / re, _SPEED, circle)
    diameter = _DIAMETER * n
    tunnel.run(round(_SPIN_UP * diameter / _SPEED))
    out = np.empty((clips * frames, n, n), dtype=np.float32)
    for frame, u in enumerate(tunnel.frames(clips * frames, _every(frames, n))):
        out[frame] = vorticity(u)[:, left : left + n] * (diameter / _SPEED)
    return out.reshape(clips, frames, n, n)


def _every(frames: int, n: int) -> int:
    """Steps from one frame to the next."""
    return max(1, round(_CLIP * _DIAMETER * n / _SPEED / frames))


def _sizes(settings: Simulate) -> tuple[int, int]:
    frames, ny, nx = drawing.check_sizes(settings, DIMS)
    if ny != nx or ny < 64:
        raise RecipeError(
            f'simulate.sizes: problem "karman" is on a square of at least 64 points, which the thinnest cylinder '
            f"needs, got y = {ny}, x = {nx}."
        )
    return frames, nx
