"""Replays of recorded runs of the published systems."""
