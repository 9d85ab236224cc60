"""FID, Inception Score, precision and recall, and the feature extractors they measure with."""

from disa_framework.metrics.digits import DigitsClassifier, DigitsFeatures, DigitsLogits, agreement
from disa_framework.metrics.features import FeatureExtractor
from disa_framework.metrics.images import to_uint8
from disa_framework.metrics.inception import InceptionFeatures

__all__ = [
    "DigitsClassifier",
    "DigitsFeatures",
    "DigitsLogits",
    "FeatureExtractor",
    "InceptionFeatures",
    "agreement",
    "to_uint8",
]
