"""The figures, drawn with matplotlib without a display."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ilwp_plugin._imports import optional
from ilwp_plugin.analysis.distributions import Distribution
from ilwp_plugin.analysis.references import ReferenceShares

__all__ = ["draw_distributions", "draw_reference_shares"]

_COLOURS = {"weights": "#4c72b0", "residuals": "#dd8452"}


def _panels(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    figure_class = optional("matplotlib.figure", "report").Figure  # no pyplot: no global state, no display
    figure = figure_class(figsize=(width * count, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, count)))


def draw_reference_shares(panels: Mapping[str, ReferenceShares], path: Path) -> None:
    """Fig. 2 and 3: heat maps of best references, one panel for each title."""
    figure, axes = _panels(len(panels), 5.0, 4.6)
    for axis, (title, shares) in zip(axes, panels.items(), strict=True):
        n = len(shares.layers)
        table = np.array(shares.shares)
        table[np.triu_indices(n)] = np.nan  # only earlier layers can be references
        image = axis.imshow(table, cmap="viridis", vmin=0, vmax=1)
        step = max(1, n // 10)
        axis.set_xticks(range(0, n, step), [str(i + 1) for i in range(0, n, step)])
        axis.set_yticks(range(0, n, step), [str(i + 1) for i in range(0, n, step)])
        axis.set_xlabel("source layer")
        axis.set_ylabel("target layer")
        share = shares.previous_layer_share
        axis.set_title(title if share is None else f"{title}\nfrom the layer before: {share:.0%}", fontsize=10)
    figure.colorbar(image, ax=axes, label="share of best references (least L1)", shrink=0.85)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def draw_distributions(panels: Mapping[str, tuple[Distribution, Distribution]], path: Path) -> None:
    """Fig. 7: histograms of weights and residuals with their Laplace fits, one panel for each title."""
    figure, axes = _panels(len(panels), 5.4, 4.0)
    for axis, (title, pair) in zip(axes, panels.items(), strict=True):
        for distribution in pair:
            edges = np.array(distribution.edges)
            colour, b = _COLOURS[distribution.name], distribution.laplace_scale
            axis.stairs(distribution.density, edges, fill=True, alpha=0.35, color=colour)
            x = np.linspace(edges[0], edges[-1], 801)
            label = f"{distribution.name}: b = {b:.3g}, {distribution.laplace_entropy_bits:.2f} bits"
            if b > 0:
                axis.plot(x, np.exp(-np.abs(x) / b) / (2 * b), color=colour, label=label)
        top = max(max(d.density) for d in pair)
        axis.set_yscale("log")
        axis.set_ylim(top * 1e-4, top * 100)  # room for the legend
        axis.set_xlabel("value, in units of weight")
        axis.set_ylabel("density")
        axis.set_title(title, fontsize=10)
        axis.legend(title="Laplace fit and its entropy", loc="upper center", fontsize=8, title_fontsize=8)
    figure.savefig(path, dpi=120, bbox_inches="tight")
