"""Components of networks. `parts` declares them (no torch); the other modules build them. Nothing here knows a model's name."""
