"""Stands in for torchmetrics in processes of tests.

Lightning imports all of torchmetrics and needs two classes of it. The rest imports SciPy's signal processing,
Matplotlib and transformers: over a third of a process's start. test_wheel_slow.py imports the real package.
"""

import logging
import sys
from importlib.metadata import distribution
from types import ModuleType
from typing import Any

_found = distribution("torchmetrics")
__version__ = _found.version
__path__ = [str(_found.locate_file("torchmetrics"))]
_logger = logging.getLogger("torchmetrics")

_plot: Any = ModuleType("torchmetrics.utilities.plot")
_plot._AX_TYPE = _plot._PLOT_OUT_TYPE = _plot.plot_single_or_multi_val = None
sys.modules[_plot.__name__] = _plot

import torchmetrics.utilities  # noqa: E402, F401  (first: it and `metric` need each other)
from torchmetrics.collections import MetricCollection as MetricCollection  # noqa: E402
from torchmetrics.metric import Metric as Metric  # noqa: E402
