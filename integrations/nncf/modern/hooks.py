"""What is hooked into the model, and what is read from its hooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from nncf.torch.function_hook.hook_storage import HookStorage, decode_hook_name
from nncf.torch.function_hook.nncf_graph.nncf_graph_builder import build_nncf_graph
from nncf.torch.function_hook.pruning.magnitude.modules import UnstructuredPruningMask
from nncf.torch.function_hook.pruning.rb.modules import RBPruningMask
from nncf.torch.function_hook.wrapper import get_hook_storage, is_wrapped
from nncf.torch.layer_utils import StatefulModuleInterface
from nncf.torch.model_graph_manager import get_const_node
from nncf.torch.quantization.layers import BaseQuantizer
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize
from torch.overrides import handle_torch_function, has_torch_function_unary

from ilwp_plugin import IlwpConfig
from ilwp_plugin.errors import TrainingError
from ilwp_plugin.models.network import Network
from ilwp_plugin.training import Session
from ilwp_plugin.training.parts import Parts

from ..network import DescribedNetwork
from ..saving import LARGEST, LARGEST_HALF

__all__ = [
    "FrozenRBPruningMask",
    "MaskedWeight",
    "Restored",
    "WeightHook",
    "ilwp_weight",
    "mask_hooks",
    "parameter_hooks",
    "take_quantizers_off",
    "weight_hooks",
    "weight_quantizers",
]

_MASKS = (UnstructuredPruningMask, RBPruningMask)


def ilwp_weight(weight: Tensor, hook: WeightHook) -> Tensor:
    """One operation for NNCF's graph, whatever goes on inside."""
    if has_torch_function_unary(weight):
        return handle_torch_function(ilwp_weight, (weight,), weight, hook)
    return weight if hook.passing else hook.owner.parts.weight(hook.key, weight)


class WeightHook(nn.Module, StatefulModuleInterface):  # type: ignore[misc]
    """Function hook on a parameter: it becomes what the file will restore.

    Args:
        key: of the weight.
        owner: the model's session; of a hook that NNCF has restored, what stands for it.
        network: the model.
        trained: what recipes train beside the weights; the hook holds it for the optimizer.
        sites: names of the hooks by which NNCF quantized the weight before, with the largest codes that they allowed.

    Attributes:
        passing: whether the weight is left as it is, whatever the recipes say.
    """

    def __init__(
        self,
        key: str,
        owner: Session | Restored,
        network: Network | None = None,
        trained: Sequence[Any] = (),
        sites: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.key, self.passing = key, False
        self.owner: Session | Restored = owner
        self.trained = nn.ParameterList(trained)
        self.sites = dict(sites or {})
        if isinstance(owner, Session) and network is not None:
            self.connect(owner, network)

    def connect(self, session: Session, network: Network) -> None:
        """The hook's model is there."""
        self.owner = session
        self._shapes = {layer.weight: list(network.state[layer.weight].shape) for layer in network.layers.values()}

    def forward(self, weight: Tensor) -> Tensor:
        return ilwp_weight(weight, self)

    def get_config(self) -> dict[str, Any]:
        """For `nncf.torch.get_config`."""
        if isinstance(self.owner, Restored):
            return {"key": self.key, "sites": self.sites, **self.owner.described(self.key)}
        session = self.owner
        described = {
            "config": session.config.to_dict(),
            "layers": [layer for chain in session.chains for layer in chain.layers],
            "shapes": self._shapes,
            "parts": session.parts.state_dict(),
        }
        return {
            "key": self.key,
            "sites": self.sites,
            **Restored.described_by(described, list(session.parts.keys), self.key),
        }

    @classmethod
    def from_config(cls, state: dict[str, Any]) -> WeightHook:
        """For `nncf.torch.load_from_config`."""
        return cls(state["key"], Restored.of(state["key"], state["keys"], state["model"]), sites=state["sites"])


class Restored:
    """What the hooks of one model share, which NNCF restores one by one, in any order, before their model is there."""

    _latest: ClassVar[Restored | None] = None

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys, self._seen = list(keys), set[str]()
        self._model: Mapping[str, Any] | None = None
        self._parts: Parts | None = None

    @classmethod
    def of(cls, key: str, keys: Sequence[str], model: Mapping[str, Any] | None) -> Restored:
        """That of the model whose hooks are being restored, or of the next one."""
        latest = cls._latest
        if latest is None or latest._keys != list(keys) or key in latest._seen:
            latest = cls(keys)
        latest._seen.add(key)
        latest._model = model or latest._model
        cls._latest = None if len(latest._seen) == len(keys) else latest
        return latest

    def described(self, key: str) -> dict[str, Any]:
        """What `of` takes, once more."""
        return self.described_by(self._description, self._keys, key)

    @staticmethod
    def described_by(model: Mapping[str, Any], keys: Sequence[str], key: str) -> dict[str, Any]:
        """The hooks of a model, and what is known of it: the first hook keeps that for all."""
        return {"keys": list(keys), "model": dict(model) if key == keys[0] else None}

    @property
    def config(self) -> IlwpConfig:
        """Of the session."""
        return IlwpConfig.from_dict(self._description["config"])

    @property
    def layers(self) -> tuple[str, ...]:
        """Of the chains."""
        return tuple(self._description["layers"])

    @property
    def state(self) -> dict[str, Any]:
        """Of the parts."""
        return dict(self._description["parts"])

    @property
    def _description(self) -> Mapping[str, Any]:
        if self._model is None:
            raise TrainingError("the hook of ilwp that holds the configuration of the others has not been restored")
        return self._model

    @property
    def parts(self) -> Parts:
        """Of the recipes; they know the model's shapes only."""
        if self._parts is None:
            sources = {key: _Unknown(key, shape) for key, shape in self._description["shapes"].items()}
            state = {key: source.weight() for key, source in sources.items()}
            network = DescribedNetwork.of_state(state, self.layers)
            self._parts = Parts(self.config, network, {key: sources[key] for key in self._keys})
            self._parts.load_state_dict(self.state)
            for source in sources.values():
                source.ready = False
        return self._parts


class FrozenRBPruningMask(RBPruningMask):  # type: ignore[misc]
    """A mask of NNCF's regularization-based pruning that learns no more and is not drawn at random."""

    def train(self, mode: bool = True) -> FrozenRBPruningMask:
        super().train(False)
        self.mask.requires_grad_(False)
        return self


class _Unknown:
    """The source of a layer of a restored hook, until the whole model is there."""

    pruned = False

    def __init__(self, key: str, shape: Sequence[int]) -> None:
        self.key, self._shape, self.ready = key, tuple(shape), True

    def weight(self) -> Tensor:
        if not self.ready:
            raise TrainingError(
                f"layer {self.key!r} has not run yet in this pass, and its hook has been restored without its model; "
                "call ilwp_integrations.nncf.controller_of(model, example_input)"
            )
        return torch.zeros(()).expand(self._shape)


class MaskedWeight:
    """The weight of a layer as it enters our hook: with the masks before it applied.

    Args:
        model: the wrapped model.
        key: of the weight.
    """

    def __init__(self, model: nn.Module, key: str) -> None:
        self.model, self.key = model, key

    @property
    def masks(self) -> list[nn.Module]:
        """The masks of NNCF on the weight."""
        return [hook for _, hook in parameter_hooks(self.model, self.key) if isinstance(hook, _MASKS)]

    @property
    def pruned(self) -> bool:
        """Whether there are any."""
        return bool(self.masks)

    def weight(self) -> Tensor:
        """A `WeightSource`; the gradient goes to the weight, not to masks that are learned."""
        weight: Tensor = self.model.get_parameter(self.key)
        masks = self.masks
        if not masks:
            return weight
        with torch.no_grad():
            kept = weight.detach()
            for mask in masks:
                training = mask.training
                mask.training = False  # in training the masks of rb pruning are drawn at random
                kept = mask(kept)
                mask.training = training
        return weight * (kept != 0)


def parameter_hooks(model: nn.Module, parameter: str) -> list[tuple[str, nn.Module]]:
    """Names and hooks on a parameter, in the order in which they run."""
    if not is_wrapped(model):
        return []
    storage = get_hook_storage(model)
    key = HookStorage._generate_key(parameter, 0)
    return (
        [(f"post_hooks.{key}.{number}", hook) for number, hook in storage.post_hooks[key].items()]
        if (key in storage.post_hooks)
        else []
    )


def weight_hooks(model: nn.Module) -> dict[str, WeightHook]:
    """Ours, by their names in the hook storage; none in a model that is not wrapped."""
    hooks = get_hook_storage(model).named_hooks() if is_wrapped(model) else []
    return {name: hook for name, hook in hooks if isinstance(hook, WeightHook)}


def mask_hooks(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Hook name, parameter name and hook of every mask."""
    for name, hook in get_hook_storage(model).named_hooks():
        if isinstance(hook, _MASKS):
            yield name, decode_hook_name(name)[1], hook


def take_quantizers_off(model: nn.Module, names: Iterable[str]) -> dict[str, int]:
    """Take NNCF's quantizers off a weight; by the names of their hooks, the largest codes that they allowed."""
    storage, sites = get_hook_storage(model), dict[str, int]()
    for name in names:
        half = getattr(storage.get_submodule(name), "is_half_range", False)
        sites[name] = LARGEST_HALF if half else LARGEST
        storage.delete_hook(name)
    return sites


def weight_quantizers(model: nn.Module, example_input: Any = None) -> dict[str, list[str]]:
    """Names of the hooks by which NNCF quantizes weights, by the name of the parameter; one for each call of a layer.

    Args:
        model: a wrapped model.
        example_input: by which the weights of functions without a module are found; without it they count as
            activations.
    """
    parameters = dict(model.named_parameters())
    found: dict[str, list[str]] = {}
    unknown: dict[str, tuple[str, int]] = {}
    for name, hook in get_hook_storage(model).named_hooks():
        if not isinstance(hook, (BaseQuantizer, FakeQuantize)):
            continue
        kind, operation, port = decode_hook_name(name)
        layer = operation.rpartition("/")[0].rpartition("/")[0].replace("/", ".")
        key = operation if kind == "post_hooks" else f"{layer}.weight"
        if key in parameters and (kind == "post_hooks" or port == 1):
            found.setdefault(key, []).append(name)
        elif kind == "pre_hooks":
            unknown[name] = operation, port
    if unknown and example_input is not None:
        graph = build_nncf_graph(model, example_input)
        for name, (operation, port) in unknown.items():
            constant = get_const_node(graph.get_node_by_name(operation), port, graph)
            if constant is not None:
                found.setdefault(constant.layer_attributes.name, []).append(name)
    return found
