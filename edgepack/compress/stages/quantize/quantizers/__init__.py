"""The quantizers: one plugin each. ../contract.py says what a plugin defines."""
