"""Measuring runs and assets."""
