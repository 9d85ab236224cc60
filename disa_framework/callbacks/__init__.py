"""Lightning callbacks, and the folder that samples are written to."""

from disa_framework.callbacks.finite_loss import FiniteLoss
from disa_framework.callbacks.folder_writer import FolderWriter
from disa_framework.callbacks.last_checkpoint import LastCheckpoint
from disa_framework.callbacks.sample_folder import SampleFolder
from disa_framework.callbacks.sample_writers import Arrays, Images, SampleWriter
from disa_framework.callbacks.teacher import Teacher
from disa_framework.callbacks.training_distance import TrainingDistance
from disa_framework.callbacks.training_lines import TrainingLines
from disa_framework.callbacks.training_samples import TrainingSamples

__all__ = [
    "Arrays", "FiniteLoss", "FolderWriter", "Images", "LastCheckpoint", "SampleFolder", "SampleWriter", "Teacher",
    "TrainingDistance", "TrainingLines", "TrainingSamples",
]  # fmt: skip
