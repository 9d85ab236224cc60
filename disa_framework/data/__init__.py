"""Lightning data modules."""

from disa_framework.data.digits import DigitsData
from disa_framework.data.labels import LabelBatch, LabelsData

__all__ = ["DigitsData", "LabelBatch", "LabelsData"]
