"""Metrics as mergeable accumulators."""
