"""One module a data set; see data/contract.py."""
