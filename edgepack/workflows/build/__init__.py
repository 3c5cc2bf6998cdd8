"""A recipe and a device -> a bundle and its verdicts."""
