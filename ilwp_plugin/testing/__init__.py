"""Contract tests for integrations; importing this needs pytest."""

from ilwp_plugin.testing.contract import Adapter, IntegrationContract, settle

__all__ = ["Adapter", "IntegrationContract", "settle"]
