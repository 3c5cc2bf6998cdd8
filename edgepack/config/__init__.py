"""Read and check what a person writes: recipes, devices and budgets."""
