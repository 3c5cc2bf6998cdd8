"""What a build finds out: values that build.json is made of."""
