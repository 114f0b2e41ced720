"""The decoder, described by one frozen record."""
