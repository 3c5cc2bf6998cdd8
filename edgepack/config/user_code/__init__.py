"""Code and files of the user's that a recipe leads to: what they are made of is part of every key."""
