"""The file of clusters."""

import numpy as np
import pytest

from genval.metrics.clusters import fit_clusters
from genval.results.clusters import load_clusters, save_clusters
from genval.runtime.errors import GenValError


@pytest.mark.parametrize("method", ["kmeans", "gmm"])
def test_a_saved_model_assigns_images_to_the_same_clusters(method, tmp_path):
    features = np.random.default_rng(0).normal(size=(60, 4))
    model = fit_clusters(features, 3, method)
    save_clusters(tmp_path / "cluster_model.npz", model)
    loaded = load_clusters(tmp_path / "cluster_model.npz")
    assert loaded.method == method and (loaded.assign(features) == model.assign(features)).all()
    assert (loaded.weights(features) == model.weights(features)).all()


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "cluster_model.npz").write_bytes(b"no")
    with pytest.raises(GenValError, match="missing or damaged"):
        load_clusters(tmp_path / "cluster_model.npz")
