"""Write what leaves the build: the bundle, its signature, reports."""
