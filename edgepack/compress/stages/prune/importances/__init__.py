"""One module an importance of channels; see compress/stages/prune/contract.py."""
