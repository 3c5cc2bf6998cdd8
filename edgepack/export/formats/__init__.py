"""One package a file format; see export/contract.py."""
