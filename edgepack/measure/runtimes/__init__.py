"""Hold one module per runtime, named in core/runtimes.py; contract.py defines what each must provide."""
