"""Find the user's code and files that a recipe depends on; they are part of every key."""
