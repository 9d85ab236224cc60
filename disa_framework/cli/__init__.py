"""The commands, one module each: parsing and wiring, nothing else."""
