"""Pictures in files: decoded, chosen for splits, kept, and changed at random."""
