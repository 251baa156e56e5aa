"""Pairs of sentences as numbers: `vocabulary` (from text to tokens), `encoded` (pairs in memory, in batches)."""
