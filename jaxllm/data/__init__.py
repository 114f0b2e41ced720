"""From raw text to the batch of a step."""
