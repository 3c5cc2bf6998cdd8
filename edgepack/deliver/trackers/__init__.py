"""One module a tracker; see deliver/contract.py."""
