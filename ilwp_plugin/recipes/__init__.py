"""What is done with which tensors: one file for each recipe."""

from ilwp_plugin.recipes import (
    batch_norm,
    deep_compression,
    ecsq,
    grid,
    ilwp,
    mlq,
    slq,
    soft_to_hard,
    soft_weight_sharing,
    universal,
    weight_fixing,
)
from ilwp_plugin.recipes.base import RECIPES, Claims, Encoding, Options, Recipe, TrainingPart, WeightRecipe

__all__ = [
    "RECIPES",
    "Claims",
    "Encoding",
    "Options",
    "Recipe",
    "TrainingPart",
    "WeightRecipe",
    "batch_norm",
    "deep_compression",
    "ecsq",
    "grid",
    "ilwp",
    "mlq",
    "slq",
    "soft_to_hard",
    "soft_weight_sharing",
    "universal",
    "weight_fixing",
]
