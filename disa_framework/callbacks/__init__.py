"""Lightning callbacks, and the folder that samples are written to."""

from disa_framework.callbacks.folder_writer import FolderWriter
from disa_framework.callbacks.last_checkpoint import LastCheckpoint
from disa_framework.callbacks.sample_folder import SampleFolder
from disa_framework.callbacks.sample_writers import Arrays, Images, SampleWriter

__all__ = ["Arrays", "FolderWriter", "Images", "LastCheckpoint", "SampleFolder", "SampleWriter"]
