"""One module a report; see deliver/contract.py."""
