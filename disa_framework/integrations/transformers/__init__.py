"""Step annealing of speech: schedules and solvers of this package within `generate` of transformers' VibeVoice."""

from disa_framework.integrations.transformers.recording import RecordedTokens, calibrate, record
from disa_framework.integrations.transformers.scheduler import AnnealedScheduler

__all__ = ["AnnealedScheduler", "RecordedTokens", "calibrate", "record"]
