"""Rollouts: from prompts to samples, scores and advantages."""
