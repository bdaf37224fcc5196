from __future__ import annotations

import pytest

from automonai.errors import SpecError
from automonai.execution.machine import refuse_unusable
from automonai.spec import ExecutionSpec


def test_torch_itself_is_asked_what_this_machine_cannot_do() -> None:
    with pytest.raises(SpecError, match="^execution.precision is float16, but the device is a CPU"):
        refuse_unusable(ExecutionSpec(device="cpu", precision="float16"))
