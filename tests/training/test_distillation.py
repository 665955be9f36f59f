import pytest
import torch
import torch.nn.functional as F

from ilwp_plugin.training import distillation_loss


def test_distillation_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(4, 3, generator=generator, requires_grad=True)
    targets, labels = torch.randn(4, 3, generator=generator), torch.tensor([0, 1, 2, 0])
    assert torch.equal(distillation_loss(outputs, labels, targets, share=0.0), F.cross_entropy(outputs, labels))
    assert float(distillation_loss(targets, labels, targets, share=1.0)) == pytest.approx(0, abs=1e-6)
    wanted, given = (targets / 2).softmax(1), (outputs / 2).softmax(1)
    divergence = (wanted * (wanted / given).log()).sum(1).mean()
    expected = 0.25 * F.cross_entropy(outputs, labels) + 0.75 * 4 * divergence
    torch.testing.assert_close(distillation_loss(outputs, labels, targets, share=0.75), expected)
