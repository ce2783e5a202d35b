"""Whether a model is steady: noise is added to samples and taken away, ten times over.

``python -m benchmarks.chain`` takes the networks of `benchmarks.quality` on two tasks, and trains those that are not
there. Primitives of test samples are noised to a level, ``z + eta eps``, and sampled back from it under their own
conditions, along the probability flow. What is drawn so has the distribution that it began with where the model is
right at every level, however often it is done. Shown is the spread of the primitives (root mean square of
the streams' normalised numbers about the training mean) over its spread at the start.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import markdown, save
from benchmarks.quality import MEASURED, Run, Task, make_data, trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS = ("karman", "moving_digits")
ETAS = (0.2, 0.5, 1.0, 2.0)
ROUNDS = 10
CALLS = 20  # of a round, from the level to none
SAMPLES = 64
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "streams": ("normalise.coordinates=stream", "train.calibrate=false"),
    "streams, calibrated": ("normalise.coordinates=stream", "train.calibrate=true"),
    "spectral": ("normalise.coordinates=spectral", "train.calibrate=false"),
    "spectral, calibrated": ("normalise.coordinates=spectral", "train.calibrate=true"),
}


def spreads(run: Run) -> dict[str, Any]:
    """By eta: the spread after each round, over that of the samples at the start."""
    import torch

    from diffats.diffusion import Diffusion

    task = Task(run)
    model = trained(run, task)
    diffusion, layout, normalisation = Diffusion(model.recipe.diffusion), model.made.layout, model.data.normalisation
    chosen = task.test[:SAMPLES]
    streams = {name: values[chosen] for name, values in model.streams.items()}
    start = torch.from_numpy(np.asarray(layout.flatten(normalisation.apply(streams)), np.float32))
    raw = {name: values[chosen] for name, values in task.raw_conditions.items()}
    cond = {name: torch.from_numpy(x) for name, x in task.conditions.normalise(raw).items()} if raw else {}

    def spread(z: Any) -> float:
        plain = normalisation.plain.apply(normalisation.undo(layout.unflatten(z.double().numpy())))
        return float(np.sqrt(np.mean(np.asarray(layout.flatten(plain)) ** 2)))

    found = {}
    for eta in ETAS:
        source, z = torch.Generator().manual_seed(0), start
        rows = [spread(z)]
        for _ in range(ROUNDS):
            z = denoised(model.network, diffusion, z, eta, cond, source)
            rows.append(spread(z))
        found[str(eta)] = [row / rows[0] for row in rows]
    return found


def levels_from(diffusion: Any, eta: float) -> list[int]:
    """At most ``CALLS`` levels, descending, even in log-SNR, from that whose noise is ``eta`` times the signal."""
    log_snr = diffusion.log_snr()
    wanted = np.linspace(-math.log(eta), min(log_snr[0], 5.0), CALLS)
    return sorted({int(t) for t in np.interp(-wanted, -log_snr, np.arange(len(log_snr))).round()}, reverse=True)


def denoised(network: Any, diffusion: Any, z: Any, eta: float, cond: Mapping[str, Any], source: Any) -> Any:
    """Samples ``(B, D)`` noised by ``eta eps``, and where the probability flow takes them from there.

    By DPM-Solver++; ancestral steps, this few, shrink what even an exact network draws.
    """
    import torch

    levels = levels_from(diffusion, eta)
    scheduler = diffusion.scheduler("dpm++", levels=levels)
    alpha, sigma = diffusion.coefficients(torch.tensor(levels[:1]))
    x = alpha * z + sigma * torch.randn(z.shape, generator=source)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t.expand(len(x)), cond, None), t, x).prev_sample
    return x


def page(rows: Iterable[Mapping[str, Any]]) -> str:
    """The results as Markdown."""
    table = [[row["task"], row["model"], *(_cell(row["spread"][str(eta)]) for eta in ETAS)] for row in rows]
    return (
        "# Noise and back, ten times\n\n"
        f"Spread of the primitives of {SAMPLES} test samples after {ROUNDS} rounds, each of noise of deviation eta "
        f"and at most\n{CALLS} calls of the network back to none, over the spread at the start. 1 is right; in "
        "brackets the furthest\nfrom 1 of all rounds.\n\n"
        + markdown(["task", "model", *(f"eta {eta:g}" for eta in ETAS)], table)
    )


def _cell(spread: Sequence[float]) -> str:
    furthest = max(spread, key=lambda x: abs(math.log(x)))
    return f"{spread[-1]:.2f} ({furthest:.2f})"


def figure(rows: Iterable[Mapping[str, Any]]) -> Figure:
    """Spread by round, a panel for each task and eta."""
    import matplotlib.pyplot as plt

    rows = list(rows)
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    drawn, axes = plt.subplots(
        len(tasks), len(ETAS), figsize=(2.6 * len(ETAS), 2.4 * len(tasks)), sharex=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for task, line in zip(tasks, axes, strict=True):
        for eta, axis in zip(ETAS, line, strict=True):
            for row in rows:
                if row["task"] == task:
                    axis.plot(row["spread"][str(eta)], label=row["model"])
            axis.axhspan(0.85, 1.15, color="0.9")
            axis.set(title=f"{task}, eta {eta:g}", yscale="log")
    axes[0, 0].legend(fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("rounds")
    axes[0, 0].set_ylabel("spread, start = 1")
    return drawn


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--validate", action="store_true", help="on a part of the training samples, kept from it")
    options = parser.parse_args(argv)
    make_data(options.tasks)
    rows = []
    for task in options.tasks:
        for model, changes in VARIANTS.items():
            spread = spreads(Run(task, "ours", 0, (*MEASURED, *changes), options.validate))
            rows.append({"task": task, "model": model, "spread": spread})
            print(f"{task}, {model}: " + ", ".join(f"eta {eta} {_cell(x)}" for eta, x in spread.items()), flush=True)
    print(page(rows))
    if not options.validate:
        save("chain", {"rows": rows}, page(rows), figure(rows))


if __name__ == "__main__":
    main()
