"""Samples, their splits, and the tasks that they are for."""
