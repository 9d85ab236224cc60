"""Layers that families of models share."""
