"""Small data to try models on: the exact mixture, handwritten digits, clothes, and classifiers that measure them."""
