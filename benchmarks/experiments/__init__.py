"""Ideas that were tried, each with a verdict in docs/results.md. None of it is in the package.

They are measured on the MAR of Fashion-MNIST that comes with the package, and on mixtures of Gaussians, whose truth is
known.
"""
