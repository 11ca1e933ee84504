"""What decides which clips of a dataset are used."""
