"""Street-scene segmenters by name: the model zoo, one's own files, and any Python factory, behind one protocol."""

from genval.segmenters.base import Segmenter
from genval.segmenters.registry import describe_segmenters, list_segmenters, load_segmenter, specify

__all__ = ["Segmenter", "describe_segmenters", "list_segmenters", "load_segmenter", "specify"]
