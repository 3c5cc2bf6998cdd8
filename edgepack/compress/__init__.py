"""Make a model smaller or faster."""
