"""The networks and data of the paper, for the demo, the examples and comparisons."""

from ilwp_plugin.zoo.data import DATASETS, Dataset, load_data
from ilwp_plugin.zoo.models import MODELS, build_model
from ilwp_plugin.zoo.train import Recipe, accuracy, train

__all__ = ["DATASETS", "MODELS", "Dataset", "Recipe", "accuracy", "build_model", "load_data", "train"]
