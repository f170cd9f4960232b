"""The method dvdquant."""
