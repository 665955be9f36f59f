"""NNCF 3: it has function hooks and no JSON config; both ways in are here."""

from .config import NNCFConfig, register_default_init_args, schema
from .creation import apply_ilwp, controller_of, create_compressed_model, load_from_config
from .post_training import plain_model, restore
from .registration import register
from .stacking import stack

__all__ = [
    "NNCFConfig",
    "apply_ilwp",
    "controller_of",
    "create_compressed_model",
    "load_from_config",
    "plain_model",
    "register",
    "register_default_init_args",
    "restore",
    "schema",
    "stack",
]
