"""Quantization-aware training: every layer of a chain computes with what the file will restore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import ConfigError, TrainingError
from ilwp_plugin.method.provenance import Origin, Provenance
from ilwp_plugin.method.quantization import KernelPool, as_kernels, straight_through
from ilwp_plugin.method.rounding import naming
from ilwp_plugin.models.chains import stored_weight, unwrap
from ilwp_plugin.selection import chains_of, layer_configs
from ilwp_plugin.training.closed_loop import restore_layer
from ilwp_plugin.training.inter_layer_loss import FakeQuantization, chain_modules, references_of

__all__ = ["ResidualFakeQuantizer"]


class _ChainState:
    """The reconstruction of one chain, computed once for each state of its weights."""

    def __init__(
        self,
        names: Sequence[str],
        modules: Sequence[nn.Conv2d],
        configs: Sequence[IlwpConfig],
        references: Sequence[Tensor | None],
    ) -> None:
        self.names = list(names)
        self.modules = list(modules)
        self.configs = list(configs)
        self.references = list(references)
        self.enabled = True
        # Pruned weights stay pruned, whatever the training does to what lies behind them.
        zeros = [cast(Tensor, stored_weight(module)).detach() == 0 for module in modules]
        self.zeros = [mask if bool(mask.any()) else None for mask in zeros]
        self._versions: list[tuple[int, int]] = []
        self._restored: list[Tensor] = []

    def forget(self, *_: Any) -> None:
        """Weights changed behind the version counter (`.data`) are noticed at the next forward of the model."""
        self._versions = []

    def masked(self, number: int, weight: Tensor) -> Tensor:
        """A raw weight with its pruned ones 0, and no gradient to them."""
        zeros = self.zeros[number]
        return weight if zeros is None else weight.masked_fill(zeros.to(weight.device), 0.0)

    def restored(self, number: int) -> Tensor:
        weights = [cast(Tensor, stored_weight(module)) for module in self.modules]
        versions = [(weight.data_ptr(), weight._version) for weight in weights]
        if versions != self._versions:
            self._restored = self._reconstruct(weights)
            self._versions = versions
        return self._restored[number]

    @torch.inference_mode(False)  # what a forward in inference mode leaves in the cache has to serve training too
    @torch.no_grad()
    def _reconstruct(self, weights: Sequence[Tensor]) -> list[Tensor]:
        taps = weights[0].shape[-2] * weights[0].shape[-1]
        kernels = [as_kernels(self.masked(i, weight), taps) for i, weight in enumerate(weights)]
        pool = KernelPool(sum(map(len, kernels)), taps, weights[0].device)
        layers = zip(self.names, kernels, weights, self.configs, self.references, strict=True)
        for name, layer, weight, config, given in layers:
            with naming(f"layer {name!r}"):
                pool.append(restore_layer(layer, weight.dtype, pool, config, given))
        return [k.to(w.dtype).reshape(w.shape) for k, w in zip(pool.layers, weights, strict=True)]


class _Reconstructed(FakeQuantization):
    """Parametrization of one layer's weight: forward the reconstruction, backward straight through."""

    def __init__(self, state: _ChainState, number: int) -> None:
        super().__init__()
        self.state, self.number = state, number

    def forward(self, weight: Tensor) -> Tensor:
        raw = self.state.masked(self.number, weight)
        if not self.state.enabled:
            return raw
        return straight_through(raw, self.state.restored(self.number))


class ResidualFakeQuantizer:
    """Closed-loop residual quantization of all chains of a model, while it trains.

    Each chained layer computes with the weights that the file would restore; gradients go straight through to the raw
    weights. Weights that are exactly 0 at the start, as pruning leaves them, stay 0. `remove` gives the raw weights
    back: compressed with the same configuration they restore, bit for bit, to what the model last computed with.

        quantizer = ResidualFakeQuantizer(model, config)
        ...train...
        quantizer.remove()
        compress(model, config).save("model.ilwp")

    Args:
        model: the model; its convolutions get a parametrization of their weight.
        config: IlwpConfig() if None.
        example_inputs: see `compress`.
        references: index maps or origins by layer name, see `compress`.

    Raises:
        ChainError: the model has no chain.
        ConfigError: `config.bits` is None.
        TrainingError: a layer's weight is parametrized already, or another module holds it too.
    """

    def __init__(
        self,
        model: nn.Module,
        config: IlwpConfig | None = None,
        *,
        example_inputs: Any = None,
        references: Mapping[str, Tensor] | Provenance | None = None,
    ) -> None:
        config = IlwpConfig.of(config)
        if config.bits is None:
            raise ConfigError("bits: None quantizes nothing; set bits to 2..8")
        if config.align:
            raise ConfigError(
                "align=True: the file would hold aligned weights, not those that the model trains with; align the "
                "model first, with ilwp_integrations.torch_pruning.align or training.fine_tune, then set align to False"
            )
        model = unwrap(model)
        self.chains = chains_of(model, config, example_inputs=example_inputs)
        modules = chain_modules(model, self.chains)
        for chain, members in zip(self.chains, modules, strict=True):
            for name, module in zip(chain.layers, members, strict=True):
                if parametrize.is_parametrized(module, "weight"):
                    raise TrainingError(f"layer {name!r}: its weight is parametrized already; remove that first")
                holders = [
                    n for n, m in model.named_modules() if any(p is module.weight for p in m._parameters.values())
                ]
                if len(holders) > 1:
                    raise TrainingError(
                        f"layer {name!r}: its weight is also that of {holders}, which would compute with another value;"
                        " leave it out with `ignored_scopes`"
                    )
        maps = references_of(self.chains, modules, references or {})
        if config.mode != "collocated" and any(isinstance(value, Origin) for value in (references or {}).values()):
            maps = [[None] * len(members) for members in modules]  # as `compress` does
        configs = [layer_configs(chain, config) for chain in self.chains]
        names = [chain.layers for chain in self.chains]
        self._states = [_ChainState(*state) for state in zip(names, modules, configs, maps, strict=True)]
        self._hooks = []
        for state in self._states:
            for number, module in enumerate(state.modules):
                parametrize.register_parametrization(module, "weight", _Reconstructed(state, number), unsafe=True)
            self._hooks.append(model.register_forward_pre_hook(state.forget))

    @property
    def enabled(self) -> bool:
        """Whether layers compute with reconstructed weights; False trains on as if there were no quantizer."""
        return all(state.enabled for state in self._states)

    @enabled.setter
    def enabled(self, value: bool) -> None:
        for state in self._states:
            state.enabled = value

    def remove(self, bake: bool = False) -> None:
        """Take the parametrizations off.

        Args:
            bake: leave the reconstructed weights in the model, not the raw ones.
        """
        for hook in self._hooks:
            hook.remove()
        for state in self._states:
            weights = [state.restored(number) for number in range(len(state.modules))] if bake else []
            for module in state.modules:
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
                if "bias" in module._parameters:  # behind the weight again: state dicts have an order
                    module._parameters["bias"] = module._parameters.pop("bias")
            with torch.no_grad():
                for number, module in enumerate(state.modules):
                    module.weight.copy_(weights[number] if bake else state.masked(number, module.weight))
        self._hooks, self._states = [], []
