import builtins
import pickle

import pytest

from ilwp_plugin import IlwpConfig, errors, load, loads
from ilwp_plugin.errors import ConfigError, FileError, FormatError, IlwpError, IlwpWarning
from ilwp_plugin.training import Schedule


def test_every_error_has_one_root() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(classes) > 8 and all(issubclass(c, (IlwpError, UserWarning)) for c in classes)
    assert {c.__name__ for c in classes} <= set(errors.__all__)


@pytest.mark.parametrize(
    ("name", "python"),
    [
        ("ConfigError", ValueError),
        ("TensorError", ValueError),
        ("ChainError", ValueError),
        ("FormatError", ValueError),
        ("CalibrationError", ValueError),
        ("FileError", OSError),
        ("MissingDependencyError", ImportError),
        ("RegistryError", LookupError),
    ],
)
def test_those_who_catch_errors_of_python_catch_ours(name: str, python: type[Exception]) -> None:
    error = getattr(errors, name)("what is wrong")
    assert isinstance(error, python) and str(error) == "what is wrong"
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(again) is type(error) and str(again) == str(error)
    assert not hasattr(builtins, name)


def test_a_configuration_raises_ours_although_pydantic_catches_value_errors() -> None:
    for make in (
        lambda: IlwpConfig(bits=99),
        lambda: IlwpConfig(coder="no such"),
        lambda: IlwpConfig(preset="no such"),
        lambda: IlwpConfig.model_validate({"bits": 99}),
        lambda: IlwpConfig.from_dict({"recipes": [{"name": "no such"}]}),
        lambda: Schedule(loss_weight_schedule=[(2, 1.0), (1, 1.0)]),
    ):
        with pytest.raises(ConfigError) as caught:
            make()
        assert "Value error" not in str(caught.value)


def test_files() -> None:
    with pytest.raises(OSError, match=r"^cannot read [^:]*: [^:]*$") as caught:
        load("/no/such/file.ilwp")
    assert isinstance(caught.value, FileError)
    with pytest.raises(OSError, match=r"^cannot read /: Is a directory$"):
        load("/")
    with pytest.raises(ValueError, match="data") as refused:
        loads(b"nothing")
    assert isinstance(refused.value, FormatError)


def test_warnings_have_a_category() -> None:
    with pytest.warns(IlwpWarning, match="could be better"):
        errors.warn("could be better")


def test_the_schema_is_for_editors() -> None:
    assert IlwpConfig.from_json('{"$schema": "ilwp.schema.json", "bits": 4}').bits == 4
