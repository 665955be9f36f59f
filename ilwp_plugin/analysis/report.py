"""The figures of one model, or of several side by side, as PNG and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ilwp_plugin.analysis.distributions import Distribution, distributions
from ilwp_plugin.analysis.figures import draw_distributions, draw_reference_shares
from ilwp_plugin.analysis.references import ReferenceShares, reference_shares
from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import FileError
from ilwp_plugin.models.chains import unwrap
from ilwp_plugin.models.torch_network import Model
from ilwp_plugin.recipes.ilwp import IlwpOptions, chains_of, finite_kernels

__all__ = ["analysis_of", "analyze"]

Analysis = tuple[ReferenceShares, tuple[Distribution, Distribution]]
"""Best references, and the distributions of weights and residuals, of one chain."""


def analyze(
    models: Mapping[str, Model],
    folder: str | os.PathLike[str],
    config: IlwpConfig | None = None,
    *,
    example_inputs: Any = None,
    report: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Draw the heat map of best references (Fig. 2, 3) and the distributions (Fig. 7) of every chain.

    Writes `references_KxK.png` and `distributions_KxK.png` for each kernel size, with a panel for each model, and
    `analysis.json` with the numbers.

    Args:
        models: modules or state dicts, by title.
        folder: is made if need be.
        config: chooses the layers.
        example_inputs: see `compress`.
        report: is told what is searched, how many kernels are done, and of how many.

    Returns:
        What `analysis.json` holds: by kernel size and title, `references` and `distributions`.

    Raises:
        FileError: the folder cannot be written.
        ChainError, TensorError: as `compress`.
    """
    folder = Path(folder)
    found: dict[str, dict[str, Analysis]] = {}
    for title, model in models.items():
        for size, analysis in _analyses(model, config, example_inputs, report).items():
            found.setdefault(size, {})[title] = analysis
    result = {size: {title: _to_dict(a) for title, a in panels.items()} for size, panels in found.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for size, panels in found.items():
            draw_reference_shares({t: shares for t, (shares, _) in panels.items()}, folder / f"references_{size}.png")
            draw_distributions({t: pair for t, (_, pair) in panels.items()}, folder / f"distributions_{size}.png")
        (folder / "analysis.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise FileError(f"cannot write {error.filename or folder}: {error.strerror or error}") from error
    return result


def analysis_of(model: Model, config: IlwpConfig | None = None, *, example_inputs: Any = None) -> dict[str, Any]:
    """The numbers of `analyze` for one model: by kernel size `references` and `distributions`.

    Args:
        model: a module, or a state dict.
        config: which layers are chained; IlwpConfig() if None.
        example_inputs: see `compress`.

    Raises:
        ChainError, TensorError: as `compress`.
    """
    return {size: _to_dict(analysis) for size, analysis in _analyses(model, config, example_inputs).items()}


def _analyses(
    model: Model,
    config: IlwpConfig | None,
    example_inputs: Any,
    report: Callable[[str, int, int], None] | None = None,
) -> dict[str, Analysis]:
    state: Mapping[str, Tensor] = unwrap(model).state_dict() if isinstance(model, nn.Module) else model
    found: dict[str, Analysis] = {}
    options = IlwpConfig.of(config).ilwp() or IlwpOptions()
    for chain in chains_of(model, options, example_inputs=example_inputs):
        kernels = [finite_kernels(key, state[key], chain.taps) for key in chain.keys]
        size = chain.size
        tell = None if report is None else partial(report, f"references of {size} kernels")
        shares = reference_shares(chain.kernel_size, chain.layers, kernels, tell)
        found[size] = (shares, distributions(kernels))
    return found


def _to_dict(analysis: Analysis) -> dict[str, Any]:
    shares, pair = analysis
    return {"references": shares.to_dict(), "distributions": [distribution.to_dict() for distribution in pair]}
