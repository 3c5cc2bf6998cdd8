"""What makes a model smaller or faster."""
