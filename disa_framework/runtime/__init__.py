"""What does not change samples beyond rounding: placement, precision, compilation, products; and the feature cache."""
