"""Implement what each command does."""
