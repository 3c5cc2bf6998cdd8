"""One module a source of models; see models/contract.py."""
