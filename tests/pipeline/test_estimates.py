import warnings

import pytest
import torch

from ilwp_plugin import IlwpConfig, compress
from ilwp_plugin.errors import ConfigError, IlwpWarning
from ilwp_plugin.pipeline.estimates import estimates
from ilwp_plugin.zoo import build_model

CHOICES = [(mode, bits) for mode in ("none", "full", "local", "collocated") for bits in (2, 6)]


@pytest.mark.parametrize(
    "config",
    [
        IlwpConfig(),
        IlwpConfig.of("paper"),
        IlwpConfig(scope="conv", ignored_scopes=("features.3",), batch_norm_eps=1e-5),
    ],
)
def test_estimates_are_those_of_whole_files(config: IlwpConfig) -> None:
    torch.manual_seed(0)
    state = build_model("mobilenetv2", width=0.25).state_dict()
    told: list[tuple[str, int, int]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IlwpWarning)
        found = list(estimates(state, config, CHOICES, lambda *progress: told.append(progress)))
        for (mode, bits), ledger in list(zip(CHOICES, found, strict=True))[:: len(CHOICES) - 1]:
            file = compress(state, config.replace(mode=mode, bits=bits))
            assert ledger == file.ledger and ledger.file_bytes == len(file.to_bytes())
    assert all(0 < done <= total for _, done, total in told)
    assert len({ledger.file_bytes for ledger in found}) > 4


def test_without_chains_there_is_nothing_to_compare() -> None:
    with pytest.raises(ConfigError, match="none of chains"):
        list(estimates({"a": torch.randn(9, 9)}, IlwpConfig(recipes=({"name": "grid"},)), CHOICES))
