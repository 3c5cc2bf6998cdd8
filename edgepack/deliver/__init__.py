"""What leaves the build: the bundle, its signature, reports."""
