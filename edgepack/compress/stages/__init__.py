"""One module or package a stage; see compress/contract.py."""
