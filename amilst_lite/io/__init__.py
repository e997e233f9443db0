"""Readers: one file a family of formats."""
