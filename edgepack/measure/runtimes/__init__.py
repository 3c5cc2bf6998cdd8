"""One module a runtime, named in core/runtimes.py; contract.py says what each must define."""
