"""A page in the browser: two ways to draw side by side, from the same noise, stage by stage."""
