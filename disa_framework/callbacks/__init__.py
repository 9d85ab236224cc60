"""Lightning callbacks, and the folder they write to."""

from disa_framework.callbacks.evaluation import Evaluation
from disa_framework.callbacks.image_writer import ImageWriter
from disa_framework.callbacks.last_checkpoint import LastCheckpoint
from disa_framework.callbacks.overlap import Overlap
from disa_framework.callbacks.samples import SampleFolder
from disa_framework.callbacks.throughput import Throughput

__all__ = ["Evaluation", "ImageWriter", "LastCheckpoint", "Overlap", "SampleFolder", "Throughput"]
