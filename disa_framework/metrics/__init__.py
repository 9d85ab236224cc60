"""Fréchet distance, Inception Score, precision and recall, and the feature extractors they measure with.

What disa-evaluate does is in `evaluation`, what a study makes small in `quality`.
"""

from disa_framework.metrics.feature_set import Features, FeatureSet, features_of
from disa_framework.metrics.features import FeatureExtractor
from disa_framework.metrics.fid import FrechetDistance, frechet_distance, load_statistics, save_statistics
from disa_framework.metrics.images import to_uint8
from disa_framework.metrics.inception import InceptionFeatures
from disa_framework.metrics.inception_score import inception_score
from disa_framework.metrics.precision_recall import precision_recall
from disa_framework.metrics.wasserstein import sliced_wasserstein

__all__ = [
    "FeatureExtractor", "FeatureSet", "Features", "FrechetDistance", "InceptionFeatures", "features_of",
    "frechet_distance", "inception_score", "load_statistics", "precision_recall", "save_statistics",
    "sliced_wasserstein", "to_uint8",
]  # fmt: skip
