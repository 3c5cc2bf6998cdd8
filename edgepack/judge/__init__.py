"""Compare measurements with budgets, and builds with each other."""
