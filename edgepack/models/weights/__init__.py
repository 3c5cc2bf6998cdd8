"""Weights as people save them -> a model's own."""
