import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ilwp_plugin.errors import ChainError
from ilwp_plugin.models.chains import Chains, find_chains, find_chains_by_name, unwrap
from ilwp_plugin.zoo import MODELS, build_model


def depthwise(channels: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels)


class Ordered(nn.Module):
    """Calls its layers in another order than it names them."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        self.order = list(layers)
        for name in sorted(layers):
            self.add_module(name, layers[name])

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = self.get_submodule(name)(x)
        return x


class Branching(Ordered):
    """Its control flow depends on values, so that no symbolic trace can follow it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def layers(chains: Chains) -> list[tuple[str, ...]]:
    return [chain.layers for chain in chains]


@pytest.mark.parametrize(
    "inputs", [None, torch.ones(1, 4, 8, 8), (torch.ones(1, 4, 8, 8),), {"x": torch.ones(1, 4, 8, 8)}]
)
def test_execution_order_not_name_order(inputs: object) -> None:
    model = Ordered(c=depthwise(4), a=depthwise(4), b=depthwise(4))
    assert layers(find_chains(model, example_inputs=inputs)) == [("c", "a", "b")]


def test_untraceable_models_need_inputs_or_layers() -> None:
    model = Branching(c=depthwise(4), a=depthwise(4))
    with pytest.raises(ChainError, match=r"cannot be traced without inputs.*example_inputs"):
        find_chains(model)
    assert layers(find_chains(model, example_inputs=torch.ones(1, 4, 8, 8))) == [("c", "a")]
    assert layers(find_chains(model, layers=["c", "a"])) == [("c", "a")]


def test_bad_inputs_are_reported() -> None:
    with pytest.raises(ChainError, match="Ordered does not run on the example inputs: RuntimeError"):
        find_chains(Ordered(c=depthwise(4), a=depthwise(4)), example_inputs=torch.ones(1, 3, 8, 8))


def test_tracing_leaves_no_mark() -> None:
    model = nn.Sequential(depthwise(4), nn.BatchNorm2d(4), depthwise(4))
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_chains(model, example_inputs=torch.randn(2, 4, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and model[0].training and not model[1].training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_one_chain_for_each_kernel_size() -> None:
    model = nn.Sequential(depthwise(4, 5), depthwise(4), depthwise(4, 5), depthwise(4), depthwise(4, 7))
    chains = find_chains(model)
    assert [(chain.kernel_size, chain.layers) for chain in chains] == [((3, 3), ("1", "3")), ((5, 5), ("0", "2"))]
    assert chains.excluded == {"4": "the only layer with 7x7 kernels: nothing could predict it"}
    assert chains.chains[0].keys == ("1.weight", "3.weight") and chains.chains[0].taps == 9


def test_kernels_of_one_and_three_dimensions_have_chains_of_their_own() -> None:
    kinds = {"Conv1d": nn.Conv1d, "Conv2d": nn.Conv2d, "Conv3d": nn.Conv3d, "ConvTranspose1d": nn.ConvTranspose1d}
    model = nn.ModuleDict(
        {
            f"{name}{i}": kind(4, 4, 7 if name == "Conv2d" else 3, groups=4)
            for i in range(2)
            for name, kind in kinds.items()
        }
    )
    with pytest.raises(ChainError, match="cannot be traced"):
        find_chains(model)
    order = [name for name in model if not name.startswith("ConvTranspose")]
    expected = [((3,), ("Conv1d0", "Conv1d1")), ((7, 7), ("Conv2d0", "Conv2d1")), ((3, 3, 3), ("Conv3d0", "Conv3d1"))]
    chains = find_chains(model, layers=order)
    assert [(chain.kernel_size, chain.layers) for chain in chains] == expected
    assert [(chain.size, chain.taps) for chain in chains] == [("length-3", 3), ("7x7", 49), ("3x3x3", 27)]
    by_name = find_chains_by_name(model.state_dict(), layers=order)
    assert [(chain.kernel_size, chain.layers) for chain in by_name] == expected


def test_shared_modules_and_weights_count_once() -> None:
    shared = depthwise(4)
    model = nn.Sequential(shared, depthwise(4), shared, depthwise(4))
    model[3].weight = model[1].weight
    chains = find_chains(model)
    assert layers(chains) == [("0", "1")]
    assert chains.excluded == {"3": "shares its weight with '1'"}


def test_parametrized_layers_are_told_apart() -> None:
    """Their `.weight` is a new tensor at each access; two of them can have the same id, one after the other."""
    model = nn.Sequential(*(depthwise(4) for _ in range(8)))
    for module in list(model)[:7]:
        nn.utils.parametrize.register_parametrization(module, "weight", nn.Identity())
    nn.utils.parametrizations.weight_norm(model[7])
    shared = nn.Sequential(*model, depthwise(4))
    shared[8].weight = model[0].parametrizations.weight.original  # type: ignore[union-attr,assignment]
    for _ in range(20):
        chains = find_chains(shared)
        assert len(chains.chains[0].layers) == 8
        assert chains.excluded == {"8": "shares its weight with '0'"}


def test_never_executed_layers_are_left_out() -> None:
    model = Ordered(a=depthwise(4), b=depthwise(4))
    model.unused = depthwise(4)
    chains = find_chains(model)
    assert layers(chains) == [("a", "b")] and "not reached by the symbolic trace" in chains.excluded["unused"]
    chains = find_chains(model, example_inputs=torch.ones(1, 4, 8, 8))
    assert layers(chains) == [("a", "b")] and chains.excluded == {"unused": "never executed"}


def test_scope_conv_takes_every_larger_kernel() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), depthwise(8), nn.Conv2d(8, 4, 3, groups=2))
    assert layers(find_chains(model, scope="conv")) == [("0", "2", "3")]
    with pytest.raises(ChainError, match=r"0: not depthwise.*1: 1x1 kernels.*scope='conv'"):
        find_chains(model)


def test_no_chain_lists_every_convolution_and_why() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.ConvTranspose2d(8, 8, 3, groups=8), depthwise(8), nn.Conv1d(8, 8, 3)
    )
    with pytest.raises(ChainError) as caught:
        find_chains(model, layers=["0", "1", "2", "3"])
    message = str(caught.value)
    for reason in ("0: not depthwise", "1: 1x1 kernels", "2: a ConvTranspose2d", "3: the only layer", "4: not named"):
        assert reason in message
    with pytest.raises(ChainError, match="holds no convolution"):
        find_chains(nn.Linear(3, 3))


def test_dtypes_that_the_codec_does_not_compute_with() -> None:
    model = nn.Sequential(depthwise(4), depthwise(4), nn.Conv2d(4, 4, 3, groups=4, dtype=torch.complex64))
    assert find_chains(model).excluded == {"2": "its weight is torch.complex64"}
    state = {f"{i}.weight": torch.ones(4, 1, 3, 3) for i in range(2)}
    state["x.weight"] = torch.ones(4, 1, 3, 3).to(torch.float8_e4m3fn)
    assert layers(find_chains_by_name(state)) == [("0", "1")]


def test_messages_name_the_cause() -> None:
    with pytest.raises(ChainError, match=r"\(the model itself\): "):
        find_chains(nn.Conv2d(3, 3, 3))
    with pytest.raises(ChainError, match="scripted or traced module"):
        find_chains(torch.jit.trace(nn.Sequential(depthwise(4), depthwise(4)), torch.ones(1, 4, 8, 8)))


def test_one_input_channel_is_no_depthwise_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), depthwise(8), depthwise(8))
    assert layers(find_chains(model)) == [("1", "2")]


def test_scopes() -> None:
    model = nn.Sequential(nn.Sequential(depthwise(4), depthwise(4)), depthwise(4), depthwise(4))
    assert layers(find_chains(model, ignored_scopes=["0.0.weight", "1.weight"])) == [("0.1", "2")]
    assert layers(find_chains(model, layers=["2.weight", "1"])) == [("2", "1")]
    assert layers(find_chains(model, ignored_scopes=["0"])) == [("1", "2")]
    assert layers(find_chains(model, target_scopes=["0"])) == [("0.0", "0.1")]
    assert layers(find_chains(model, target_scopes=["{re}0.*", "2"], ignored_scopes=["0.1"])) == [("0.0", "2")]
    assert find_chains(model, ignored_scopes=["0"]).excluded["0.0"] == "named by `ignored_scopes`"
    assert find_chains(model, target_scopes=["0"]).excluded["1"] == "not named by `target_scopes`"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignored_scopes": ["3"]}, "`ignored_scopes`: '3' matches no convolution"),
        ({"target_scopes": ["{re}x.*"]}, r"`target_scopes`: '{re}x\.\*' matches no convolution"),
        ({"target_scopes": ["{re}("]}, "is not a regular expression"),
        ({"layers": ["0", "9"]}, "`layers` names '9', which is no convolution; known: '0', '1'"),
        ({"layers": ["0", "0"]}, "names '0' more than once"),
    ],
)
def test_names_that_match_nothing_are_refused(options: dict[str, list[str]], message: str) -> None:
    model = nn.Sequential(depthwise(4), depthwise(4))
    with pytest.raises(ChainError, match=message):
        find_chains(model, **options)  # type: ignore[arg-type]
    with pytest.raises(ChainError, match=message):
        find_chains_by_name(model.state_dict(), **options)  # type: ignore[arg-type]


def test_explicit_layers_set_the_order() -> None:
    model = nn.Sequential(depthwise(4), depthwise(4), depthwise(4))
    chains = find_chains(model, layers=["2", "0"])
    assert layers(chains) == [("2", "0")] and chains.excluded == {"1": "not named in `layers`"}
    assert layers(find_chains_by_name(model.state_dict(), layers=["2", "0"])) == [("2", "0")]


DEPTHWISE = {"mobilenet": 13, "mobilenetv2": 17, "shufflenet": 16, "shufflenetv2": 19}
"""Networks, and how many depthwise layers they have."""


@pytest.mark.parametrize("name", DEPTHWISE)
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_of_the_paper(name: str, channels: int) -> None:
    """Symbolic trace, forward pass and names agree, also on branches and shuffles."""
    model = build_model(name, width=0.5, in_channels=channels)
    traced = find_chains(model)
    assert traced.chains == find_chains(model, example_inputs=torch.randn(2, channels, 32, 32)).chains
    assert set(traced.chains[0].layers) == set(find_chains_by_name(model.state_dict()).chains[0].layers)
    assert len(traced.chains[0].layers) == DEPTHWISE[name]


@pytest.mark.parametrize("name", [name for name in MODELS if name not in (*DEPTHWISE, "lenet300")])
def test_networks_without_depthwise_layers(name: str) -> None:
    model = build_model(name, width=0.5)
    assert not find_chains(model, required=False).chains
    traced = find_chains(model, scope="conv")
    assert traced.chains == find_chains(model, scope="conv", example_inputs=torch.randn(2, 3, 32, 32)).chains


def test_side_branch_comes_in_order_of_execution() -> None:
    order = find_chains(build_model("shufflenetv2", width=0.5)).chains[0].layers
    side, main = (next(i for i, n in enumerate(order) if f"3.{part}" in n) for part in ("side", "main"))
    assert side < main


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_wrappers_are_looked_through(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(depthwise(4), depthwise(4))
    assert unwrap(wrap(model)) is model
    assert layers(find_chains(wrap(model))) == [("0", "1")]


def test_subclasses_of_convolutions_are_found() -> None:
    class MyConv(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if bool((x > 0).any()) else x

    model = nn.Sequential(MyConv(4, 4, 3, groups=4), MyConv(4, 4, 3, groups=4))
    assert layers(find_chains(model)) == [("0", "1")]


def test_names_only() -> None:
    state = {
        "stem.weight": torch.randn(8, 1, 3, 3),
        "a.weight": torch.randn(8, 1, 3, 3),
        "point.weight": torch.randn(8, 8, 1, 1),
        "b.weight": torch.randn(8, 1, 3, 3),
        "b.bias": torch.randn(8),
        "integers.weight": torch.ones(8, 1, 3, 3, dtype=torch.int32),
    }
    chains = find_chains_by_name(state)
    assert layers(chains) == [("a", "b")]
    assert "the first convolution" in chains.excluded["stem"]
    assert layers(find_chains_by_name(state, layers=["stem", "a", "b"])) == [("stem", "a", "b")]
    assert layers(find_chains_by_name({"dense.weight": torch.randn(8, 8, 3, 3), **state}))[0][0] == "stem"
    last = dict(sorted(state.items())) | {"stem.weight": torch.randn(8, 3, 3, 3)}
    assert layers(find_chains_by_name(last)) == [("a", "b")], "a stem that comes last by name"
    del state["point.weight"]
    assert layers(find_chains_by_name(state)) == [("stem", "a", "b")], "nothing else says what the first one is"
    state["again.weight"] = state["a.weight"]
    assert find_chains_by_name(state).excluded == {"again": "shares its weight with 'a'"}


def test_names_of_many_layers_take_linear_time() -> None:
    """A quarter of a second; with lists of names that are searched for each it was ten."""
    state = {f"{i}.weight": weight for i, weight in enumerate(torch.zeros(20_000, 1, 1, 1, 2))}
    start = time.process_time()
    (chain,) = find_chains_by_name(state, scope="conv", layers=list(map(str, range(20_000))))
    assert len(chain.layers) == 20_000 and time.process_time() - start < 3
