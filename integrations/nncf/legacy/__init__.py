"""NNCF 2.19: JSON configs and `create_compressed_model` are its own; ilwp becomes one of its algorithms."""

from nncf import NNCFConfig
from nncf.torch import create_compressed_model, register_default_init_args

from .registration import register, schema
from .restoring import restore

__all__ = ["NNCFConfig", "create_compressed_model", "register", "register_default_init_args", "restore", "schema"]
