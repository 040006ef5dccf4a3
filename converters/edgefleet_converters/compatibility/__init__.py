"""Whether a model runs on a runtime and a board, told without running it."""
