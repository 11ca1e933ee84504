"""Filters, which decide which clips of a dataset are used."""
