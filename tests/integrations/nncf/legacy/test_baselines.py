import pytest

from ilwp_plugin.compare.methods import find_method
from ilwp_plugin.errors import MissingDependencyError


def test_comparisons_need_nncf_3() -> None:
    with pytest.raises(MissingDependencyError, match=r"nncf 2\.19.*ilwp-plugin\[nncf\]"):
        find_method("nncf.quantize")
