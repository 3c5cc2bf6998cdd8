"""One module or package a way to reach a device; see measure/contract.py."""
