import os
import subprocess
import sys
from pathlib import Path


def loaded_after(code: str, tmp_path: Path) -> set[str]:
    """Return the top-level modules that a fresh interpreter has, warnings being errors."""
    script = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    return set(finished.stdout.split())


def test_the_search_loads_neither_torch_nor_hpbandster_before_bohb_is_asked_for(tmp_path: Path) -> None:
    loaded = loaded_after("import automonai.search", tmp_path)
    assert not loaded & {"torch", "monai", "hpbandster", "ConfigSpace", "scipy", "statsmodels", "Pyro4"}


def test_bohb_loads_hpbandster_but_not_torch(tmp_path: Path) -> None:
    loaded = loaded_after(
        "from automonai.spec import SearchSpec\nfrom automonai.search import make_sampler\nmake_sampler(SearchSpec())",
        tmp_path,
    )
    assert "hpbandster" in loaded
    assert not loaded & {"torch", "monai"}
