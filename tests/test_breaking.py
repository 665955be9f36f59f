"""The faults of `make breaking` can still be put in: what they change is there."""

import pytest

from tests.breaking import FAULTS, ROOT, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_what_a_fault_changes_is_there(fault: Fault) -> None:
    where, _ = fault.tests
    assert fault.right in (ROOT / fault.path).read_text(encoding="utf-8") and (ROOT / where).exists()
