"""Recipes, devices and budgets: what a person writes, checked."""
