"""Which plans are worth trying for a model on a runtime."""
