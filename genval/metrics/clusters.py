"""Clusters of images by their features, each with its temperature.

Source: the clustered temperature scaling of the relis code base (de Jorge et al., "Reliability in Semantic
Segmentation: Are We on the Right Track?", CVPR 2023). One cluster is plain temperature scaling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genval.runtime.errors import GenValError

METHODS = ("kmeans", "gmm")
# Added to the diagonal covariances of the mixture: features are at most 1.
_VARIANCE_FLOOR = 1e-6


@dataclass(frozen=True)
class ClusterModel:
    """The position and the width of clusters: all that is needed to assign an image, independent of any library."""

    method: str  # one of METHODS
    centres: np.ndarray  # float64 (K, D)
    variances: np.ndarray  # float64 (K, D); ones for k-means
    shares: np.ndarray  # float64 (K,), summing to 1; equal for k-means

    def assign(self, features: np.ndarray) -> np.ndarray:
        """Return the nearest (k-means) or most probable (mixture) cluster, int64 (N,), of features (N, D)."""
        scores = -self._distances(features) if self.method == "kmeans" else self._log_joint(features)
        return scores.argmax(1)

    def weights(self, features: np.ndarray) -> np.ndarray:
        """Return each image's weights of the clusters, float64 (N, K); rows sum to 1.

        For k-means the weights are proportional to the inverse distances, as published; an image at a centre has all
        its weight there. For a mixture they are the posterior probabilities. With one cluster, for which the published
        quotient is not defined, the weight is 1.
        """
        if self.method == "gmm":
            joint = self._log_joint(features)
            posterior = np.exp(joint - joint.max(1, keepdims=True))
        else:
            distances = self._distances(features)
            at_centre = distances <= 1e-12
            with np.errstate(divide="ignore"):
                posterior = np.where(at_centre.any(1, keepdims=True), at_centre, 1 / distances)
        normalised: np.ndarray = posterior / posterior.sum(1, keepdims=True)
        return normalised

    def _distances(self, features: np.ndarray) -> np.ndarray:
        features = self._check(features)
        return np.linalg.norm(features[:, None] - self.centres[None], axis=2)

    def _log_joint(self, features: np.ndarray) -> np.ndarray:
        features = self._check(features)
        squares = (features[:, None] - self.centres[None]) ** 2 / self.variances[None]
        return np.log(self.shares) - 0.5 * (squares + np.log(self.variances)[None]).sum(2)

    def _check(self, features: np.ndarray) -> np.ndarray:
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or features.shape[1] != self.centres.shape[1] or not np.isfinite(features).all():
            raise GenValError(
                f"The features do not fit the clusters: expected finite (N, {self.centres.shape[1]}), found "
                f"{features.shape}. Calibrate and test with the same model and --layer."
            )
        return features


def fit_clusters(features: np.ndarray, clusters: int, method: str = "kmeans", seed: int = 0) -> ClusterModel:
    """Find clusters of images.

    Args:
        features: floats (N, D).
        clusters: number of clusters, at most N; 1 needs no fitting.
        method: `kmeans` (10 starts), or `gmm`, a Gaussian mixture (3 starts). Its covariances are diagonal, since an
            image set has far fewer images than a full covariance has entries.
        seed: of the starts.

    Raises:
        GenValError: the method is unknown, there are fewer images than clusters, or a feature is not finite.
    """
    features = np.asarray(features, np.float64)
    if method not in METHODS:
        raise GenValError(f"Unknown clustering {method!r}: expected one of {', '.join(METHODS)}.")
    if not np.isfinite(features).all():
        raise GenValError("Features must be finite, found NaN or infinity. Run relis/extract_features.py --overwrite.")
    if len(features) < clusters:
        raise GenValError(
            f"{clusters} clusters need as many images, found {len(features)}. Use a smaller --n_clusters."
        )
    if clusters == 1:
        variance = features.var(0, keepdims=True) + _VARIANCE_FLOOR
        return ClusterModel(method, features.mean(0, keepdims=True), variance, np.ones(1))
    if method == "kmeans":
        from sklearn.cluster import KMeans

        centres = KMeans(clusters, n_init=10, random_state=seed % 2**32).fit(features).cluster_centers_
        return ClusterModel(method, centres, np.ones_like(centres), np.full(clusters, 1 / clusters))
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(
        clusters, covariance_type="diag", reg_covar=_VARIANCE_FLOOR, n_init=3, random_state=seed % 2**32
    ).fit(features)
    return ClusterModel(method, mixture.means_, mixture.covariances_, mixture.weights_)
