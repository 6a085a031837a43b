"""Scores on a reference set from a few labelled images of it and many generated ones.

With a few labelled images, the score of every model is known up to the noise of these images. A generated set has its
own error: its scores differ from those on the reference set by a line and by a deviation of each model from that line.
Both are combined as in the estimation for small areas: Fay and Herriot, "Estimates of income for small places" (JASA
1979), with the size of the deviations integrated out (hierarchical Bayes: Rao and Molina, "Small area estimation",
2nd edition, 2015, chapter 10).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from genval.report.comparison import FEWEST_MODELS
from genval.report.scores import Scores
from genval.runtime.errors import GenValError

FEWEST_IMAGES = 4
"""With fewer labelled images, their noise cannot be estimated."""
# With less shrinkage, weights fit the noise of the estimated covariance, and 95 % intervals cover 93 %.
_SHRINKAGE = 4
_GRID = 64
# Wide enough that the smallest deviation on the grid is as good as none, and the largest as good as no information.
_RANGE = (1e-3, 10.0)


@dataclass(frozen=True)
class CombinedScores:
    """Scores of M models on a reference set, in the unit of the scores given.

    Attributes:
        value: float64 (M,), the estimates.
        low: float64 (M,), lower ends of the 95 % intervals.
        high: float64 (M,), upper ends.
        deviation: the standard deviation of the models from the line through generated and reference scores.
        worth: how many labelled images order the models as well as the generated set does: one image's variance of the
            differences between models, divided by the squared deviation. Infinite where no deviation is seen.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    deviation: float
    worth: float


def combine(labelled: Scores, generated: Scores, images: int) -> CombinedScores:
    """Combine the scores on a few labelled images with those on generated ones.

    Args:
        labelled: of M models on the labelled images, and on resamples of them.
        generated: of the same models on the generated set; its own noise counts as deviation from the line.
        images: number of labelled images.

    Raises:
        GenValError: there are fewer than 4 models or 4 labelled images, or a score is missing.
    """
    y, x = labelled.value, generated.value
    if len(y) < FEWEST_MODELS or images < FEWEST_IMAGES or labelled.drawn is None:
        raise GenValError(
            f"A combined estimate needs {FEWEST_MODELS} segmenters and {FEWEST_IMAGES} labelled images, found {len(y)} "
            f"and {images}."
        )
    if not (np.isfinite(y).all() and np.isfinite(x).all()):
        raise GenValError("A combined estimate needs the scores of every segmenter on both sets.")
    noise = noise_covariance(labelled.drawn, images)
    line = np.stack([np.ones_like(x), x - x.mean()], 1)
    if np.ptp(x) == 0:
        line = line[:, :1]
    scale = max(float(y.std(ddof=1)), math.sqrt(float(noise.diagonal().mean())), 1e-9)
    deviations = scale * np.geomspace(*_RANGE, _GRID)
    fits = [_fit(y, line, noise, deviation) for deviation in deviations]
    # A flat prior of the deviation; the grid is geometric, so each point stands for a width in proportion to it.
    log_weight = np.array([likelihood for likelihood, _, _ in fits]) + np.log(deviations)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    means = np.stack([mean for _, mean, _ in fits])
    value = weight @ means
    variance = weight @ np.stack([spread for _, _, spread in fits]) + weight @ (means - value) ** 2
    # The noise is itself estimated from the images: Student's t instead of the normal distribution.
    half = student_quantile(images - 1) * np.sqrt(variance)
    deviation = float(weight @ deviations)
    between = noise - noise.mean(0) - noise.mean(1)[:, None] + noise.mean()
    one_image = images * float(np.trace(between)) / (len(y) - 1)
    return CombinedScores(value, value - half, value + half, deviation, one_image / deviation**2)


def noise_covariance(drawn: np.ndarray, images: int) -> np.ndarray:
    """Estimate the covariance of the noise of M scores, float64 (M, M), from resamples (D, M) of a few images.

    A covariance of few images has few dimensions. It is shrunk towards one variance and one covariance for all models.
    """
    models = drawn.shape[1]
    finite = drawn[np.isfinite(drawn).all(1)]
    # A bootstrap of n images has (n - 1) / n times their variance.
    sample = np.cov(finite, rowvar=False) * images / (images - 1)
    off = (sample.sum() - np.trace(sample)) / (models * (models - 1))
    even = np.full_like(sample, off)
    np.fill_diagonal(even, np.trace(sample) / models)
    share = (images - 1) / (images - 1 + _SHRINKAGE * models)
    return np.asarray(share * sample + (1 - share) * even)


def _fit(y: np.ndarray, line: np.ndarray, noise: np.ndarray, deviation: float) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the log likelihood of a deviation (the line integrated out), and mean and variance of the true scores."""
    identity = np.eye(len(y))
    inverse = np.linalg.inv(noise + deviation**2 * identity)
    information = line.T @ inverse @ line
    covariance = np.linalg.inv(information)
    coefficients = covariance @ line.T @ inverse @ y
    residual = y - line @ coefficients
    likelihood = 0.5 * (
        np.linalg.slogdet(inverse)[1] - np.linalg.slogdet(information)[1] - residual @ inverse @ residual
    )
    gain = deviation**2 * inverse
    mean = line @ coefficients + gain @ residual
    unexplained = line - gain @ line
    spread = deviation**2 * (identity - gain) + unexplained @ covariance @ unexplained.T
    return float(likelihood), mean, np.clip(spread.diagonal(), 0, None)


def student_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution."""
    from scipy.stats import t

    return float(t.ppf(0.975, degrees))
