"""What `ilwp compress` works with: the model of a file, and what the user gives to calibrate it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ilwp_plugin import toolkits
from ilwp_plugin.cli.calibrating import function_of, inputs_of
from ilwp_plugin.config import IlwpConfig
from ilwp_plugin.errors import ConfigError
from ilwp_plugin.models import exported
from ilwp_plugin.models.network import Network
from ilwp_plugin.models.torch_network import network_of
from ilwp_plugin.models.weights import read_state_dict
from ilwp_plugin.pipeline.calibration_inputs import CalibrationInputs, read_inputs
from ilwp_plugin.pipeline.fidelity import OutputCosine
from ilwp_plugin.pipeline.file import CompressedModel

__all__ = ["Given", "calibration_of", "open_source"]

Shapes = Mapping[str, Sequence[int | str]]

_HELD_BACK = 5
"""One of so many calibration inputs, where the drop is measured on them."""


def open_source(source: Path, config: IlwpConfig, key: str | None, trust: bool) -> tuple[Network, Shapes]:
    """A model of an integration's kind, a program of torch.export, or a state dict; and the shapes of its inputs.

    Args:
        source: the file.
        config: of the compression.
        key: where the state dict is inside a checkpoint.
        trust: read a program although that can run code.

    Raises:
        FileError, TensorError: the file cannot be read, or holds nothing of the kind.
        MissingDependencyError: what its kind needs is not installed.
        ConfigError: a key of a file that is no checkpoint.
    """
    opener = toolkits.for_file(source, "open_model")
    program = source.suffix.casefold() == ".pt2"
    if key is not None and (program or opener is not None):
        raise ConfigError(f"--key: {source} is no checkpoint")
    if opener is not None:
        network: Network = opener(source, config)
        return network, network.input_shapes()
    if program:
        read = exported.read_program(source, trust=trust)
        inputs = [leaf for leaf in tree_leaves(read.example_inputs) if isinstance(leaf, Tensor)]
        shapes = {f"input {number}": ["?", *leaf.shape[1:]] for number, leaf in enumerate(inputs)}
        return network_of(exported.layers_of_program(read)), shapes
    return network_of(read_state_dict(source, key, mapped=True)), {}


@dataclass(frozen=True)
class Given:
    """What the user gives besides the model.

    Attributes:
        inputs: to calibrate with, if any.
        evaluate: what a model scores, if that is asked for.
        held: inputs to measure outputs with.
        where: what these are, in words.
    """

    inputs: CalibrationInputs | None = None
    evaluate: Callable[[Any], float] | None = None
    held: CalibrationInputs | None = None
    where: str = ""

    def cosine(self, network: Network, compressed: CompressedModel) -> float | None:
        """The cosine of the outputs, see `OutputCosine`; None where no inputs were given."""
        if self.held is None:
            return None
        own = self.evaluate if isinstance(self.evaluate, OutputCosine) else OutputCosine(network, self.held)
        return own(network.evaluated(compressed.state_dict())) / 100


def calibration_of(
    network: Network,
    shapes: Shapes,
    calibration: str | None,
    pixels: str | None,
    size: int | None,
    max_drop: float | None,
    evaluate: str | None,
) -> Given:
    """Read what the options of these names say; see `ilwp compress --help`.

    Raises:
        ConfigError: they do not fit together, or the model.
        CalibrationError, FileError: inputs cannot be read, or do not fit the model.
    """
    scores = None if evaluate is None else function_of(evaluate, "--evaluate")
    if calibration is None:
        if max_drop is not None and scores is None:
            raise ConfigError("--max-drop: needs --calibration, or --evaluate, to see what the restored model computes")
        return Given(evaluate=scores)
    module = network.runnable()
    if module is None:
        raise ConfigError(
            "--calibration: a state dict cannot be run; give an .onnx model, a .pt2 program, or the module in Python"
        )
    inputs = read_inputs(module, inputs_of(calibration, shapes, pixels, size))
    if max_drop is None or scores is not None:
        return Given(inputs, scores, inputs, f"on the {inputs.size:,} calibration inputs")
    inputs, held = inputs.split(_HELD_BACK)
    return Given(inputs, OutputCosine(network, held), held, f"on {held.size:,} inputs that were held back")
