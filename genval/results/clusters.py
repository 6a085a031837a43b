"""The file `cluster_model.npz`: the clusters of images that relis/compute_clusters_temp_scaling.py fits."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from genval.artifacts.tensors import read_arrays
from genval.metrics.clusters import ClusterModel
from genval.runtime.errors import GenValError
from genval.runtime.files import write_bytes


def save_clusters(path: Path, model: ClusterModel) -> None:
    """Write `cluster_model.npz`."""
    stream = io.BytesIO()
    method = np.array(model.method)
    np.savez(stream, method=method, centres=model.centres, variances=model.variances, shares=model.shares)
    write_bytes(path, stream.getvalue())


def load_clusters(path: Path) -> ClusterModel:
    """Read `cluster_model.npz`.

    Raises:
        GenValError: the file is missing or damaged.
    """
    remedy = "Run: python relis/compute_clusters_temp_scaling.py"
    arrays = read_arrays(path, ("centres", "variances", "shares"), remedy)
    try:
        with np.load(path) as content:
            method = str(content["method"])
    except Exception as error:  # as in `read_arrays`
        raise GenValError(f"{path} does not name its method. {remedy}") from error
    return ClusterModel(method, *arrays.values())
