"""Inter-layer weight prediction inside a toolkit's training: loss, quantization and statistics under one schedule."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ilwp_plugin.compression import CompressedModel, LayerSummary
from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import TrainingError
from ilwp_plugin.ledger import Ledger
from ilwp_plugin.method.loss import inter_layer_loss
from ilwp_plugin.models.chains import Chains
from ilwp_plugin.training.closed_loop import ClosedLoop, WeightSource
from ilwp_plugin.training.loss_weight import automatic_loss_weight
from ilwp_plugin.training.schedule import Schedule

__all__ = ["Session", "SessionStatistics"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SessionStatistics:
    """What a training has come to.

    Attributes:
        inter_layer_loss: mean |residual| of the predicted weights, without the loss weight, in units of weight.
        loss_weight: what it is multiplied with in this epoch.
        quantizes: whether the model computes with quantized residuals.
        bits: of the residual codes in the file.
        layers: the compressed layers, as the file would store them.
        ledger: exact sizes of the file that would be written now; None where only quick statistics were asked for.
    """

    inter_layer_loss: float
    loss_weight: float
    quantizes: bool
    bits: int | None
    layers: tuple[LayerSummary, ...] = ()
    ledger: Ledger | None = None

    def to_str(self) -> str:
        """As a table of text."""
        lines = [
            "Statistics of inter-layer weight prediction:",
            f"  inter-layer loss {self.inter_layer_loss:.6g}, weight {self.loss_weight:.4g}, "
            f"residual quantization {f'on, {self.bits} bits' if self.quantizes else 'off'}",
        ]
        if self.ledger is not None:
            width = max((len(layer.name) for layer in self.layers), default=5)
            lines.append(f"  {'layer':{width}}  mode        bits  zeros  texture  non-texture    total bytes")
            sizes = self.ledger.layers
            for layer in self.layers:
                size = sizes[layer.name]
                zeros = "" if layer.zeros is None else f"{layer.zeros:.3f}"
                lines.append(
                    f"  {layer.name:{width}}  {layer.mode:10}  {layer.bits or '':>4}  {zeros:>5}  "
                    f"{size.texture_bytes:>7,}  {size.non_texture_bytes:>11,}  {size.total_bytes:>13,}"
                )
            whole = self.ledger.whole
            lines.append(
                f"  all layers: texture {whole.texture_bytes:,}, non-texture {whole.non_texture_bytes:,}, "
                f"total {whole.total_bytes:,} bytes; whole file {whole.file_bytes:,} bytes"
            )
        return "\n".join(lines)


class Session:
    """One training. A toolkit's adapter makes it, hooks its `loops` into the model and tells it the epochs.

    Args:
        config: what is regularized and quantized.
        schedule: when.
        chains: the chains of the model.
        sources: by layer name, where the weight of each layer of the chains is found.
        model: the model that trains; an automatic loss weight is smaller where it is trained already.

    Attributes:
        loss_weight: of the configuration, or the automatic one; the schedule multiplies it.
        loops: one for each chain; empty where `config.bits` is None.

    Raises:
        TrainingError: an automatic loss weight without `schedule.training`.
    """

    def __init__(
        self,
        config: IlwpConfig,
        schedule: Schedule,
        chains: Chains,
        sources: Mapping[str, WeightSource],
        model: nn.Module,
    ) -> None:
        self.config, self.schedule, self.chains = config, schedule, chains
        self._sources = [[sources[layer] for layer in chain.layers] for chain in chains]
        self.loops = (
            []
            if config.bits is None
            else [ClosedLoop(config, c.layers, s) for c, s in zip(chains, self._sources, strict=True)]
        )
        self.loss_weight = self._choose_weight(model)
        self.set_epoch(0)

    def _choose_weight(self, model: nn.Module) -> float:
        if self.config.loss_weight != "auto":
            return self.config.loss_weight
        if self.schedule.training is None:
            raise TrainingError(
                "loss_weight: 'auto' scales the weight to the length of the training; say in `params` "
                '"training": {"steps": ..., "mean_lr": ..., "momentum": ...} what SGD is going to do, '
                "or set loss_weight to a number"
            )
        predicted = sum(source.weight().numel() for sources in self._sources for source in sources[1:])
        run = self.schedule.training.run().for_network(model)
        with torch.no_grad():
            weight = automatic_loss_weight(run, predicted, float(self.inter_layer_loss()))
        _log.info("inter-layer loss weight %.4g (automatic, for %d predicted weights)", weight, predicted)
        return weight

    def set_epoch(self, epoch: int) -> None:
        """An epoch begins, counted from 0."""
        self.epoch = max(0, epoch)
        for loop in self.loops:
            loop.enabled = self.quantizes

    @property
    def quantizes(self) -> bool:
        """Whether the model computes with quantized residuals in this epoch."""
        return bool(self.loops) and self.schedule.quantizes(self.epoch)

    @property
    def current_loss_weight(self) -> float:
        """The weight of the loss in this epoch."""
        return self.loss_weight * self.schedule.loss_factor(self.epoch)

    def inter_layer_loss(self) -> Tensor:
        """The loss without its weight: the mean |residual| of the predicted weights, a float32 scalar."""
        weights = [[source.weight() for source in sources] for sources in self._sources]
        pruned = any(source.pruned for sources in self._sources for source in sources)
        with torch.autocast(weights[0][0].device.type, enabled=False):
            return inter_layer_loss(weights, pruned=pruned)

    def loss(self) -> Tensor:
        """The weighted loss of this epoch."""
        weight = self.current_loss_weight
        if weight == 0:
            return torch.zeros((), device=self._sources[0][0].weight().device)
        return weight * self.inter_layer_loss()

    def statistics(self, compressed: Callable[[], CompressedModel] | None = None) -> SessionStatistics:
        """What the training has come to.

        Args:
            compressed: makes the model as the file would hold it; None gives quick statistics without sizes.
        """
        with torch.no_grad():
            loss = float(self.inter_layer_loss())
        file = None if compressed is None else compressed()
        return SessionStatistics(
            inter_layer_loss=loss,
            loss_weight=self.current_loss_weight,
            quantizes=self.quantizes,
            bits=self.config.bits,
            layers=() if file is None else tuple(file.layers),
            ledger=None if file is None else file.ledger,
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON has it."""
        return {"loss_weight": self.loss_weight, "epoch": self.epoch}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.loss_weight = float(state["loss_weight"])
        self.set_epoch(int(state["epoch"]))
