"""What stands in for devices and packages that are not here."""
