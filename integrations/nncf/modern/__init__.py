"""NNCF 3: it has function hooks and no JSON config; both ways in are here."""

from .config import NNCFConfig, register_default_init_args, schema
from .creation import apply_ilwp, controller_of, create_compressed_model, load_from_config
from .registration import register

__all__ = [
    "NNCFConfig",
    "apply_ilwp",
    "controller_of",
    "create_compressed_model",
    "load_from_config",
    "register",
    "register_default_init_args",
    "schema",
]
