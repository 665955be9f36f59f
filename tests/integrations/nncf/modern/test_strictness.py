"""The JSON on NNCF 3 is read as strictly as on NNCF 2."""

from typing import Any

import jsonschema
import pytest
from ilwp_integrations.nncf import NNCFConfig, schema

from ilwp_plugin.errors import ConfigError
from tests.integrations.nncf.helpers import FILTERS, ILWP, INT8, MAGNITUDE, RB

WRONG: list[tuple[Any, str]] = [
    ("ilwp", "compression"),
    (["ilwp"], "compression"),
    ({"bits": 8}, "algorithm 'None'"),
    ({"algorithm": "quantisation"}, "quantisation.*did you mean 'quantization'"),
    ({"algorithm": "ilpw"}, "ilpw.*did you mean 'ilwp'"),
    ({**INT8, "preset": "fast"}, "preset: .*'performance'"),
    ({**INT8, "preset": 3}, "preset"),
    ({**INT8, "initializer": {"range": {"num_init_samples": -1}}}, "num_init_samples: .*greater than or equal to 0"),
    ({**INT8, "initializer": {"range": {"num_init_samples": "8"}}}, "num_init_samples"),
    ({**INT8, "initializer": {"precision": {}}}, "initializer.precision"),
    ({**INT8, "weights": {"bits": 4}}, "weights.bits: .*4 bits cannot be mapped to NNCF 3"),
    ({**INT8, "weights": {"mode": "symetric"}}, "weights.mode"),
    ({**INT8, "activations": {"per_channel": 1}}, "activations.per_channel"),
    ({**INT8, "quantize_inputs": False}, "quantize_inputs"),
    ({**INT8, "overflow_fix": True}, "overflow_fix"),
    ({**INT8, "ignored_scopes": 3}, "ignored_scopes"),
    ({**MAGNITUDE, "sparsity_init": 1.5}, "sparsity_init: .*less than or equal to 1"),
    ({**MAGNITUDE, "sparsity_init": -0.1}, "sparsity_init: .*greater than or equal to 0"),
    ({**MAGNITUDE, "sparsity_init": True}, "sparsity_init"),
    ({**MAGNITUDE, "params": {"schedule": "linear"}}, "schedule"),
    (
        {**MAGNITUDE, "params": {"schedule": "multistep", "multistep_steps": [1, 2]}},
        "one more multistep_sparsity_levels",
    ),
    ({**MAGNITUDE, "params": {"sparsity_targett": 0.5}}, "did you mean 'sparsity_target'"),
    ({**RB, "compression_lr_multiplier": -1}, "compression_lr_multiplier"),
    ({**FILTERS, "params": {"filter_importance": "geometric_median"}}, "filter_importance"),
    ({**ILWP, "bits": "4"}, "bits"),
    ([MAGNITUDE, RB], "both put masks"),
    ([INT8, INT8], "two sections 'quantization'"),
    ([{**INT8, "preset": "fast"}, {**MAGNITUDE, "sparsity_init": 3}], "preset.*sparsity_init"),
]


BEYOND_A_SCHEMA = ("both put masks", "two sections 'quantization'", "one more multistep_sparsity_levels")


@pytest.mark.parametrize(("compression", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_sections(compression: Any, message: str) -> None:
    whole = {"input_info": {"sample_size": [1, 1, 16, 16]}, "compression": compression}
    with pytest.raises(ConfigError, match=message):
        NNCFConfig.from_dict(whole)
    if message.split(":")[0] not in (
        "both put masks",
        "two sections 'quantization'",
        "one more multistep_sparsity_levels",
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(whole, schema())


@pytest.mark.parametrize(
    "fields",
    [
        {"target_device": "TPU"},
        {"input_info": {"sample_size": [1, -1]}},
        {"input_info": {"sample_sizes": [1]}},
        {"input_info": 3},
        {"log_dir": 3},
        {"ignored_scopes": {}},
    ],
    ids=str,
)
def test_wrong_fields_around_the_sections(fields: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        NNCFConfig.from_dict({"input_info": {"sample_size": [1, 1, 16, 16]}, "compression": ILWP, **fields})


def test_what_scripts_keep_in_their_config_is_left_alone() -> None:
    config = NNCFConfig.from_dict({"compression": ILWP, "model": "net", "optimizer": {"lr": 0.1}, "epochs": 3})
    assert config["optimizer"] == {"lr": 0.1}
