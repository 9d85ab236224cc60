"""How samples are drawn: the config, the loop, guidance, noise, and what stages leave behind."""
