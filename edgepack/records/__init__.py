"""Define what a build finds out: the values in build.json."""
