"""The operations of a model by the names that NNCF 2 gave them, for scopes; NNCF 3 names them in another way."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nncf
from nncf.torch.function_hook.nncf_graph.nncf_graph_builder import build_nncf_graph
from nncf.torch.function_hook.wrapper import wrap_model
from nncf.torch.model_graph_manager import get_const_node
from torch import nn

from ilwp_plugin.errors import ConfigError, nearest

from ..scopes import legacy_names, match

__all__ = ["Operations"]

_SPELLINGS = {
    "add": ("__add__", "__radd__"),
    "add_": ("__iadd__",),
    "sub": ("__sub__", "__rsub__"),
    "sub_": ("__isub__",),
    "mul": ("__mul__", "__rmul__"),
    "mul_": ("__imul__",),
    "div": ("__truediv__", "__rtruediv__"),
    "div_": ("__itruediv__",),
    "matmul": ("__matmul__",),
    "pow": ("__pow__",),
}
"""What NNCF 2 called operators; NNCF 3 calls them as the functions of the same meaning, and counts both together."""
_WEIGHTED = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear")
_NO_OPERATIONS = ("nncf_model_input", "nncf_model_output", "nncf_model_const")


@dataclass(frozen=True)
class _Operation:
    """One node of NNCF's graph.

    Attributes:
        node: its name.
        module: that of the module which it belongs to; None where NNCF 3 does not tell.
        spellings: its names in NNCF 2.
    """

    node: str
    module: str | None
    spellings: tuple[str, ...]


class Operations:
    """Of a model.

    Args:
        model: the model; it stays as it is.
        example: an input.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self._model = model
        names = legacy_names(model)
        graph = build_nncf_graph(wrap_model(copy.deepcopy(model)), example)
        self._operations: list[_Operation] = []
        for node in graph.topological_sort():
            if node.node_type in _NO_OPERATIONS or node.node_name.count("/") < 2:
                continue
            path, kind, number = node.node_name.rsplit("/", 2)
            module: str | None = path.replace("/", ".")
            if kind in _WEIGHTED:  # of modules in a list NNCF 3 tells the last part of the name only
                with contextlib.suppress(nncf.InternalError):
                    constant = get_const_node(node, 1, graph)
                    module = module if constant is None else constant.layer_attributes.name.rpartition(".")[0]
            known = () if module is None else names.get(module, ())
            kinds = (kind, *_SPELLINGS.get(kind, ()))
            spellings = tuple(f"{name}/{k}_{number}" for name in known for k in kinds)
            self._operations.append(_Operation(node.node_name, module if known else None, spellings))

    def match(self, pattern: str) -> list[str]:
        """The nodes that a scope of an NNCF 2 config names.

        Args:
            pattern: NNCF 2's name of an operation, of a module or of a container; the module's own name; or `{re}` and
                a regular expression that is found in the first, or matches the whole of the last.

        Raises:
            ConfigError: it is no regular expression.
        """
        if "{re}" not in pattern:
            spelled = [operation.node for operation in self._operations if pattern in operation.spellings]
            modules = set(match(pattern, self._model))
            return spelled or [o.node for o in self._operations if o.module and o.module in modules]
        try:
            expression = re.compile(pattern.replace("{re}", ""))
        except re.error as error:
            raise ConfigError(f"{pattern!r} is not a regular expression: {error}") from None

        def named(operation: _Operation) -> bool:
            parts = (operation.module or "").split(".")
            holders = [".".join(parts[:number]) for number in range(1, len(parts) + 1)]
            return any(expression.search(name) for name in operation.spellings) or any(
                expression.fullmatch(name) for name in holders if name
            )

        return [operation.node for operation in self._operations if named(operation)]

    def check(self, scopes: Mapping[str, Sequence[str]]) -> None:
        """Raises ConfigError where scopes name nothing; `scopes` are patterns by where they stand."""
        spelled = [name for operation in self._operations for name in operation.spellings]
        faults = [
            f"{place}: {pattern!r} names nothing in the model; {nearest(pattern, spelled)}"
            for place, patterns in scopes.items()
            for pattern in patterns
            if not self.match(pattern)
        ]
        if faults:
            raise ConfigError("; ".join(faults))

    def left_out(self, ignored: Iterable[str], targets: Sequence[str]) -> dict[str, str | None]:
        """What `ignored_scopes` name, and `target_scopes` do not: nodes, and the modules that they belong to."""
        nodes = {node for pattern in ignored for node in self.match(pattern)}
        if targets:
            targeted = {node for pattern in targets for node in self.match(pattern)}
            nodes |= {operation.node for operation in self._operations} - targeted
        return {operation.node: operation.module for operation in self._operations if operation.node in nodes}

    def ignored(self, ignored: Iterable[str], targets: Sequence[str]) -> nncf.IgnoredScope | None:
        """The same as NNCF 3 wants it."""
        nodes = self.left_out(ignored, targets)
        return nncf.IgnoredScope(names=sorted(nodes), validate=False) if nodes else None
