import numpy as np
import pytest

from genval.metrics.clusters import ClusterModel, fit_clusters
from genval.runtime.errors import GenValError


def groups(seed=0):
    """Three groups of 20 images, far apart, and which group each is of."""
    generator = np.random.default_rng(seed)
    centres = np.array([[0.0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 1, 0]])
    member = np.repeat(np.arange(3), 20)
    return centres[member] + 0.05 * generator.normal(size=(60, 4)), member


@pytest.mark.parametrize("method", ["kmeans", "gmm"])
def test_groups_are_found(method):
    features, member = groups()
    model = fit_clusters(features, 3, method)
    assigned = model.assign(features)
    assert len({(a, b) for a, b in zip(member, assigned, strict=True)}) == 3
    weights = model.weights(features)
    np.testing.assert_allclose(weights.sum(1), 1)
    assert (weights.argmax(1) == assigned).all()
    assert (
        fit_clusters(features, 3, method, seed=5).centres == fit_clusters(features, 3, method, seed=5).centres
    ).all()


def test_a_mixture_agrees_with_scikit_learn():
    from sklearn.mixture import GaussianMixture

    features, _ = groups(1)
    mixture = GaussianMixture(3, covariance_type="diag", reg_covar=1e-6, n_init=3, random_state=0).fit(features)
    model = fit_clusters(features, 3, "gmm")
    np.testing.assert_allclose(model.weights(features), mixture.predict_proba(features), atol=1e-8)


def test_soft_shares_are_inverse_distances():
    model = ClusterModel("kmeans", np.array([[0.0], [3.0]]), np.ones((2, 1)), np.full(2, 0.5))
    np.testing.assert_allclose(model.weights(np.array([[1.0], [3.0]])), [[2 / 3, 1 / 3], [0, 1]])
    one = fit_clusters(np.array([[1.0], [2.0]]), 1)
    assert one.weights(np.array([[1.5], [9.0]])).tolist() == [[1.0], [1.0]]


def test_invalid_features_are_refused():
    with pytest.raises(GenValError, match="3 clusters need as many images, found 2"):
        fit_clusters(np.zeros((2, 4)), 3)
    with pytest.raises(GenValError, match="finite"):
        fit_clusters(np.full((2, 4), np.nan), 1)
    with pytest.raises(GenValError, match="Unknown clustering 'dbscan'"):
        fit_clusters(np.zeros((2, 4)), 1, "dbscan")
    with pytest.raises(GenValError, match=r"expected finite \(N, 4\), found \(2, 5\)"):
        fit_clusters(groups()[0], 2).assign(np.zeros((2, 5)))


@pytest.mark.parametrize("seed", [0, 3, 2**33 + 5])
def test_centres_are_those_of_scikit_learn(seed):
    from sklearn.cluster import KMeans

    features = np.random.default_rng(10).random((80, 3)).astype(np.float32)  # seed 0 finds better centres at start 11
    model = fit_clusters(features, 8, seed=seed)
    expected = KMeans(8, n_init=10, random_state=seed % 2**32).fit(features.astype(np.float64)).cluster_centers_
    np.testing.assert_array_equal(model.centres, expected)
    assert model.method == "kmeans" and model.centres.dtype == np.float64
    assert (model.variances == np.ones((8, 3))).all() and model.shares == pytest.approx([1 / 8] * 8)
    mixture = fit_clusters(features, 2, "gmm", seed)
    assert mixture.method == "gmm" and mixture.shares.sum() == pytest.approx(1)


def test_one_cluster_has_the_moments_of_all_images():
    features = np.array([[1, 5], [2, 5], [6, 5]])
    model = fit_clusters(features, 1, "gmm")
    assert model.centres.tolist() == [[3, 5]] and model.shares.tolist() == [1]
    assert model.variances == pytest.approx(features.var(0, keepdims=True) + 1e-6, rel=1e-12)
    assert model.variances.shape == (1, 2)


def test_a_mixture_assigns_by_probability_and_not_by_distance():
    centres, variances = np.array([[0.0], [3.0]]), np.array([[100.0], [0.01]])
    assert ClusterModel("gmm", centres, variances, np.full(2, 0.5)).assign(np.array([[2.0], [3.0]])).tolist() == [0, 1]
    assert ClusterModel("kmeans", centres, variances, np.full(2, 0.5)).assign(np.array([[2.0]])).tolist() == [1]
    with pytest.raises(GenValError, match=r"expected one of kmeans, gmm\.$"):
        fit_clusters(centres, 1, "KMEANS")
