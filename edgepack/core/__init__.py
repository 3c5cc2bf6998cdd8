"""Provide what all other folders use; it uses none of them."""
