"""Step annealing within other libraries, one folder for each."""
