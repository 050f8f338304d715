"""Bits per byte: windows, byte counts, scores."""
