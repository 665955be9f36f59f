"""The networks and data of the paper, for the demo, the examples and comparisons."""

from ilwp_plugin.zoo.data import DATASETS, Dataset, load_data
from ilwp_plugin.zoo.models import LAYERS, MODELS, build_model, scope_layers, scope_of
from ilwp_plugin.zoo.train import Recipe, accuracy, train

__all__ = [
    "DATASETS",
    "LAYERS",
    "MODELS",
    "Dataset",
    "Recipe",
    "accuracy",
    "build_model",
    "load_data",
    "scope_layers",
    "scope_of",
    "train",
]
