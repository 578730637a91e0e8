"""Components of networks. `parts` declares them (no torch); the other modules build them; none knows a model's name."""
