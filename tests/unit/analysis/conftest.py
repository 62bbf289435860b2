"""What tests of the analysis share."""

import importlib.util
import sys
from types import ModuleType

import pytest
from helpers import ROOT


@pytest.fixture(scope="session")
def simulation() -> ModuleType:
    """benchmarks/significance_simulations.py, whose table these tests redraw in small."""
    path = ROOT / "benchmarks" / "significance_simulations.py"
    spec = importlib.util.spec_from_file_location("simulation", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module
