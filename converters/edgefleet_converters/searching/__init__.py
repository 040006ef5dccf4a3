"""Search for the best variant of a model for each board, under budgets."""
