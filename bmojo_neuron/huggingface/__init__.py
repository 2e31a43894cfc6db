"""What transformers asks of a model beyond the model itself."""
