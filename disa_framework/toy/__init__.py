"""What needs no download: the exact mixture, handwritten digits, and the classifier that measures them."""
