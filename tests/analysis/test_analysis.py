import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from ilwp_plugin import IlwpConfig
from ilwp_plugin.analysis import analyze, distributions, reference_shares, references
from ilwp_plugin.errors import ChainError, FileError, TensorError


def test_shares_count_the_nearest_kernels() -> None:
    first = torch.randn(8, 9, generator=torch.Generator().manual_seed(0))
    second = first + 100
    third = torch.cat([first[:2] + 0.001, second[:6] + 0.001])
    shares = reference_shares((3, 3), ["a", "b", "c"], [first, second, third])
    assert shares.shares == ((0, 0, 0), (1, 0, 0), (0.25, 0.75, 0))
    assert shares.previous_layer_share == 0.75


def test_two_layers_have_no_choice(tmp_path: Path) -> None:
    assert reference_shares((3, 3), ["a", "b"], [torch.ones(2, 9), torch.ones(2, 9)]).previous_layer_share is None
    analyze({"x": {f"{n}.weight": torch.ones(2, 1, 3, 3) for n in "ab"}}, tmp_path)


def test_large_layers_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense convolutions have hundreds of thousands of kernels, of which a search takes hours."""
    generator = torch.Generator().manual_seed(0)
    kernels = [torch.randn(n, 9, generator=generator) for n in (300, 700, 1000)]
    exact = reference_shares((3, 3), ["a", "b", "c"], kernels)
    monkeypatch.setattr(references, "SAMPLE", 400)
    told: list[tuple[int, int]] = []
    sampled = reference_shares((3, 3), ["a", "b", "c"], kernels, lambda done, total: told.append((done, total)))
    assert told[-1] == (350 + 334, 350 + 334) and told == sorted(told)
    assert np.abs(np.array(exact.shares) - np.array(sampled.shares)).max() < 0.08
    assert [sum(row) for row in sampled.shares] == pytest.approx([0, 1, 1])


def test_distributions_against_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    anchor = torch.randn(50, 9, generator=generator)
    noise = torch.from_numpy(scipy.stats.laplace(scale=0.1).rvs((100, 9), random_state=0)).float()
    layer = torch.cat([anchor, anchor]) + noise
    weights, residuals = distributions([anchor, layer])
    assert weights.count == residuals.count == 900
    _, scale = scipy.stats.laplace.fit(noise.numpy().ravel(), floc=0)
    assert residuals.laplace_scale == pytest.approx(scale, rel=1e-4)
    entropy = scipy.stats.laplace(scale=residuals.laplace_scale).entropy() / math.log(2)
    assert residuals.laplace_entropy_bits == pytest.approx(entropy)
    assert residuals.laplace_entropy_bits < weights.laplace_entropy_bits
    width = np.diff(residuals.edges)
    assert float((np.array(residuals.density) * width).sum()) == pytest.approx(1, abs=0.01)


def test_constant_chain_has_no_residual() -> None:
    _, residuals = distributions([torch.ones(2, 9), torch.ones(4, 9)])
    assert residuals.laplace_scale == 0 and residuals.to_dict()["laplace_entropy_bits"] is None


def state(scale: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"a": 3, "b": 5, "c": 3, "d": 5, "e": 3}
    return {f"{n}.weight": scale * torch.randn(8, 1, k, k, generator=generator) for n, k in sizes.items()}


def test_analyze_draws_every_chain_of_every_model(tmp_path: Path) -> None:
    result = analyze({"one": state(1), "two": state(0.1)}, tmp_path / "new" / "folder")
    written = json.loads((tmp_path / "new" / "folder" / "analysis.json").read_text())
    assert written == result and set(result) == {"3x3", "5x5"} and set(result["3x3"]) == {"one", "two"}
    for name in ("references_3x3", "references_5x5", "distributions_3x3", "distributions_5x5"):
        png = (tmp_path / "new" / "folder" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG") and len(png) > 10000


def test_analyze_refuses_what_compress_refuses(tmp_path: Path) -> None:
    with pytest.raises(ChainError, match="no chain"):
        analyze({"x": {"a.weight": torch.ones(3, 3)}}, tmp_path)
    bad = state(1)
    bad["c.weight"][0] = float("nan")
    with pytest.raises(TensorError, match="NaN"):
        analyze({"x": bad}, tmp_path, IlwpConfig())
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        analyze({"x": state(1)}, tmp_path / "file")
