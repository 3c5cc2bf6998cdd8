"""Measurements against budgets, and builds against each other."""
