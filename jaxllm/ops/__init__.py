"""Attention, rotary positions and token log-probabilities: arrays in, arrays out."""
