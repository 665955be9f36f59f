"""Sections of NNCF 2's config whose meaning on NNCF 3 is ours."""

from tests.integrations.nncf.helpers import ILWP, compressed, depthwise, network, optimizer_of, train


def test_constant_sparsity_keeps_the_zeros_there_are() -> None:
    model = network()
    for weight in depthwise(model).values():
        weight[weight.abs() < weight.abs().median()] = 0
    zeros = {name: weight == 0 for name, weight in depthwise(model).items()}
    controller, model = compressed([{"algorithm": "const_sparsity"}, ILWP], model)
    train(controller, model, optimizer_of(model))
    for name, weight in depthwise(controller.strip()).items():
        assert zeros[name].double().mean() > 0.3 and bool((weight[zeros[name]] == 0).all()), name
        assert not bool((weight[~zeros[name]] == 0).all()), "the others live"
