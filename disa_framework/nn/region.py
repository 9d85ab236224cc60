"""The parts of a network that a compiler may fuse, each as one."""

from torch import nn


class Region(nn.Module):
    """Base of the parts of a model that are compiled, each as one; `compile_regions` finds them by it.

    They take nothing but tensors and numbers, and whatever these are, they run through the same code: a region is
    compiled once or twice for all sizes, however many stages there are and however many steps they have.
    """
