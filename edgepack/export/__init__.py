"""A candidate -> the file that ships."""
