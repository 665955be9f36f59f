import copy

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from ilwp_plugin import IlwpConfig, compress, loads
from ilwp_plugin.errors import TensorError
from ilwp_plugin.models.names import translate
from ilwp_plugin.testing import settle
from ilwp_plugin.zoo import build_model


@pytest.mark.parametrize(
    ("own", "stored", "expected"),
    [
        (["a.w", "b"], ["b", "a.w"], ["a.w", "b"]),
        (["a.w", "b"], ["module.a.w", "module.b"], ["module.a.w", "module.b"]),
        (["_orig_mod.module.a.w"], ["a.w"], ["a.w"]),
        (["a._orig_mod.w", "b.w"], ["module.a.w", "module.b.w"], ["module.a.w", "module.b.w"]),
        (["a.w", "b"], ["model.a.w", "model.b"], ["model.a.w", "model.b"]),
        (["net.0.a.w", "net.0.b"], ["a.w", "b"], ["a.w", "b"]),
        (["module.w", "w"], ["w", "module.w"], ["module.w", "w"]),  # a layer that is called so
        (["module.w", "w"], ["x.w", "x.module.w"], ["x.module.w", "x.w"]),
        (["a.w"], ["a.a.w"], ["a.a.w"]),
        ([], [], []),
        (["a.w", "a.b"], ["x.w", "x.b"], None),  # another part of a model
        (["a.w"], ["xa.w"], None),
        (["a", "b"], ["module.a"], None),
        (["a"], ["module.a", "module.b"], None),
        (["a", "b"], ["module.a", "module.c"], None),
        (["a"], ["a", "module.a"], None),
        (["a"], [], None),
    ],
)
def test_names(own: list[str], stored: list[str], expected: list[str] | None) -> None:
    assert translate(own, stored) == (None if expected is None else dict(zip(own, expected, strict=True)))


WHOLE = IlwpConfig(weight_step=0.01)


def _nets() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    plain = settle(build_model("mobilenet", width=0.25), torch.randn(2, 3, 32, 32)).eval()
    parts = copy.deepcopy(plain)
    for name, part in list(parts.named_children()):
        setattr(parts, name, checkpoint_wrapper(part))
    return {
        "plain": plain,
        "parallel": nn.DataParallel(copy.deepcopy(plain)),
        "compiled": torch.compile(copy.deepcopy(plain), backend="eager"),
        "both": torch.compile(nn.DataParallel(copy.deepcopy(plain)), backend="eager"),
        "parts": parts,
        "lightning": nn.ModuleDict({"model": copy.deepcopy(plain)}),
    }


def test_files_of_wrapped_models_fit_plain_ones_and_the_other_way_round() -> None:
    for source, model in _nets().items():
        file = loads(compress(model.state_dict(), IlwpConfig(mode="none")).to_bytes())
        assert list(file.state_dict()) == list(model.state_dict())  # what was given comes back
        for target, other in _nets().items():
            for restore in (file.apply_to, file.restore):
                with torch.no_grad():
                    for tensor in other.state_dict().values():
                        tensor.zero_()
                restore(other)
                pairs = zip(other.state_dict().values(), file.state_dict().values(), strict=True)
                assert all(torch.equal(a, b) for a, b in pairs), (source, target)


def test_a_pruned_file_under_a_prefix_is_restored() -> None:
    small, large = nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.Conv2d(3, 8, 1))
    file = compress(nn.DataParallel(small).state_dict(), WHOLE)
    assert file.restore(large)[0].weight.shape == (4, 3, 1, 1)
    assert torch.equal(large[0].weight, file.tensor("module.0.weight"))


def test_more_tensors_than_the_model_has_are_told() -> None:
    averaged = AveragedModel(nn.Linear(2, 2))
    with pytest.raises(TensorError, match="not in the model: 'n_averaged'"):
        compress(averaged.state_dict(), WHOLE).apply_to(nn.Linear(2, 2))
    compress(averaged.module.state_dict(), WHOLE).apply_to(nn.Linear(2, 2))
