"""Tests of a mean that hold at any time, however often one looks: e-values of Student's t.

With t the t statistic of n differences and nu = n - 1, the e-value against a mean of 0 is the ratio of the
likelihoods of t when the standardised mean is drawn from a normal with variance G, and when it is 0:

    e = (1 + n G)^(-1/2) ((1 + t^2 / nu) / (1 + t^2 / (nu (1 + n G))))^((nu + 1) / 2)

Under a mean of 0 it exceeds 1/p at any n in a share p of studies at most (Ville's inequality, which needs the
invariance to scale shown by Perez-Ortiz and others 2022). So 1 / (its largest value so far) is a p-value, and
so is that of fewer values.
"""

from __future__ import annotations

import math

import numpy as np

from jepa_lm.study.paired import hall_p
from jepa_lm.study.power import ALPHA, MINIMUM_PAIRS

G = 1.0
"""Variance of the standardised mean under the alternative: differences of about their own spread."""
TAIL = 90
"""Factor on the p of the tail test, since e-values of Student's t do not allow for a long tail on one side:
with it, exponential differences at the margin are called equal in 4 % of studies within `MOST` seeds."""
MOST = 100
"""Seeds after which a word is no longer to be expected."""


def e_values(differences: np.ndarray, mean: float = 0.0) -> np.ndarray:
    """Return the e-value against this mean after the third difference and every later one.

    Args:
        differences: [..., n], in the order of the looks.

    Returns:
        [..., n - 2].
    """
    d = differences - mean
    n = np.arange(1, d.shape[-1] + 1)[MINIMUM_PAIRS - 1 :]
    total, squares = (np.cumsum(d**k, axis=-1)[..., MINIMUM_PAIRS - 1 :] for k in (1, 2))
    spread = np.maximum(squares - total**2 / n, np.finfo(np.float64).tiny)
    return np.exp(np.minimum(_log_e(n, total**2 / n / spread), 700.0))


def _log_e(n: np.ndarray, ratio: np.ndarray | float) -> np.ndarray:
    """Return the logarithm of the e-value of n differences, given t^2 / nu."""
    found = np.log1p(ratio) - np.log1p(ratio / (1 + n * G))
    return np.asarray(-0.5 * np.log1p(n * G) + n / 2 * found)


def anytime_test(differences: np.ndarray) -> np.ndarray:
    """Return p, H0: the mean is 0 or on the other side of it than the mean of all n, at any time.

    Only looks at which the mean was on this side count: what spoke for a harm is no evidence of a gain.

    Args:
        differences: [..., n], in the order of the looks.

    Returns:
        [...].
    """
    sides = np.sign(_means(differences))
    refuted = np.where(sides == sides[..., -1:], e_values(differences), 0.0)
    return np.minimum(1.0, 1.0 / refuted.max(axis=-1))


def anytime_equivalence_test(differences: np.ndarray, margin: float) -> np.ndarray:
    """Return p, H0: the mean is at +-margin or outside; [..., n] to [...].

    The sequence of intervals must come to lie within; p is 1 where the mean of all n does not.
    """
    refuted = np.minimum(e_values(differences, margin), e_values(differences, -margin))
    inside = np.abs(_means(differences)) < margin
    within = np.where(inside & inside[..., -1:], refuted, 0.0).max(axis=-1)
    return np.minimum(1.0, 1.0 / np.maximum(within, 1.0))


def _means(differences: np.ndarray) -> np.ndarray:
    """Return the mean of the first three differences, and of the first n at each later look."""
    n = np.arange(1, differences.shape[-1] + 1)
    return (np.cumsum(differences, axis=-1) / n)[..., MINIMUM_PAIRS - 1 :]


def seeds_expected(far: float, *, same: bool = False) -> int | None:
    """Return after how many differences a mean is expected to be refuted; None above `MOST`.

    Args:
        far: distance of the true mean from it, in standard deviations of the differences.
        same: whether the mean is a margin, so that the tail test must refute it, too.
    """
    n = np.arange(MINIMUM_PAIRS, MOST + 1)
    shown = _log_e(n, far**2) > -math.log(ALPHA)
    if same:
        skewed = np.sqrt(6 / n * 2 / math.pi)  # what normal differences show of it on average
        shown &= TAIL * hall_p(np.array(-far), skewed, n) < ALPHA
    return int(n[shown][0]) if shown.any() else None
