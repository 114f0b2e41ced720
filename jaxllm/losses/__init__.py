"""Losses: arrays in, numbers out."""
