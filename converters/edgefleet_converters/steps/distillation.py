"""Steps of distillation."""
