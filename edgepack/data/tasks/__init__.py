"""One module a task; see data/contract.py."""
