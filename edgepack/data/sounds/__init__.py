"""Sounds as samples: how files are read, and log-mel features made of them."""
