"""Check a model before it is used."""
